"""Transforms of scans, 2D and 3D, by name: what a config section may ask for, one file a topic.

A transform is a small frozen dataclass of options, called as `transform(scan, rng, text)`: a pure
function that returns another `Scan`. Options are checked when it is made. Which random numbers it
sees depends on (seed, epoch, index) and its own name alone, so adding one changes no other.

    chain = build_transforms({"window": {"by": "lung"}, "resize": {"size": (224, 224)}, "flip": {}})
    scan = apply_transforms(chain, scan, seed=0, epoch=3, index=17, text=question + answer)
"""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from medflax.data.transforms.augment import Affine, Flip
from medflax.data.transforms.grids import Channel, Crop, Plane, Resample, Resize, Slices
from medflax.data.transforms.intensity import Intensity, Window
from medflax.data.transforms.scan import Scan
from medflax.utils import UserError, pick


@runtime_checkable
class Transform(Protocol):
  """A pure function. `text` is all that is asked and answered about the scan; None: unknown.

  Raises:
    UserError: as a predicate of the scan ("does not tell its spacing; …").
  """

  def __call__(self, scan: Scan, rng: np.random.Generator, text: str | None) -> Scan: ...


# In the order in which they are applied, however a config lists them: geometry in physical units
# first, then what is shown, then sizes, then augmentation.
TRANSFORMS: dict[str, type[Transform]] = {
  "channel": Channel,
  "plane": Plane,
  "resample": Resample,
  "window": Window,
  "slices": Slices,
  "crop": Crop,
  "resize": Resize,
  "flip": Flip,
  "affine": Affine,
  "intensity": Intensity,
}


def build_transforms(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Transform]:
  """Transforms by name, in the order of `TRANSFORMS`; `window` is always among them.

  Args:
    config: for each name the options of that transform, {} for its defaults.

  Raises:
    UserError: naming the transform and what is wrong with its options.
  """
  for name in config:
    pick(TRANSFORMS, name, "transform")
  chosen = {"window": {}, **config}
  return {name: _build(name, chosen[name]) for name in TRANSFORMS if name in chosen}


def _build(name: str, options: Mapping[str, Any]) -> Transform:
  fields = {field.name: field for field in dataclasses.fields(TRANSFORMS[name])}
  for option in options:
    pick(fields, option, f"option of transform {name}")
  try:
    return TRANSFORMS[name](**options)
  except TypeError:
    raise UserError(f"transform {name} needs all of: {', '.join(fields)}") from None
  except UserError as error:
    raise UserError(f"transform {name}: {error}") from None


def apply_transforms(
  transforms: Mapping[str, Transform],
  scan: Scan,
  *,
  seed: int,
  epoch: int,
  index: int,
  text: str | None = None,
) -> Scan:
  """Applies transforms in order; the result is shown, and a function of the arguments alone.

  Args:
    transforms: what `build_transforms` has given.
    scan: as a reader returns it.
    seed: of the run.
    epoch: how often the data set was gone through before.
    index: of the scan in the data set; two scans of one sample need two.
    text: question, choices and answer. A scan whose text is None is never mirrored, nor is one
      whose text speaks of a side.

  Raises:
    UserError: as a predicate of the scan.
  """
  for name, transform in transforms.items():
    rng = np.random.default_rng((seed, epoch, index, zlib.crc32(name.encode())))
    scan = transform(scan, rng, text)
  return scan
