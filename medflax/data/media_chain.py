"""Scans as a model sees them: the transforms of `config.data.transforms`, then a fixed size."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medflax.data.documents import MEDIA_RANKS, Media
from medflax.data.transforms import Transform, apply_transforms, build_transforms
from medflax.data.transforms.augment import Affine, Flip
from medflax.data.transforms.grids import fit
from medflax.data.transforms.intensity import Intensity, show, to_bytes, to_media
from medflax.data.transforms.scan import Scan
from medflax.utils import UserError, pick

_RANDOM = (Flip, Affine, Intensity)


class Draw(NamedTuple):
  """What chance depends on besides the seed: see `apply_transforms`."""

  epoch: int
  index: int
  text: str


class MediaChain:
  """Turns scans into media of one size for each kind.

  Transforms of chance act on draws alone, which are what training reads: elsewhere flips, affine
  maps and changes of intensity are left out, and random places are the centre.
  """

  def __init__(
    self,
    sizes: Mapping[str, Sequence[int]],
    transforms: Mapping[str, Mapping[str, Mapping[str, Any]]],
    seed: int,
  ):
    """Raises UserError as `build_chains`.

    Args:
      sizes: (H, W) and (D, H, W) by kind; a kind without one keeps its size.
      transforms: of each kind those to apply, by name with their options.
      seed: of the draws.
    """
    self._sizes, self._seed = {kind: tuple(size) for kind, size in sizes.items()}, seed
    chains = build_chains(transforms)
    self._drawn = {kind: chains.get(kind, build_transforms({})) for kind in MEDIA_RANKS}
    self._settled = {kind: _settled(chain) for kind, chain in self._drawn.items()}
    self._plain = MEDIA_RANKS.keys() - transforms.keys()

  def is_random(self, kind: str) -> bool:
    """Whether a draw of this kind may differ from another."""
    return self._drawn[kind] != self._settled[kind]

  def smallest(self, kind: str) -> tuple[int, ...] | None:
    """The size below which a decoder must not scale down; None: it must not at all."""
    return self._sizes.get(kind) if kind in self._plain else None

  def __call__(self, scan: Scan, draw: Draw | None = None) -> Media:
    """Shows a scan.

    Args:
      scan: as a reader returns it.
      draw: what chance depends on; None: nothing is left to chance.

    Raises:
      UserError: as a predicate of the scan.
    """
    if scan.kind in self._plain:
      return self._sized(show(scan))
    if draw is None:
      chain, draw = self._settled[scan.kind], Draw(0, 0, "")
    else:
      chain = self._drawn[scan.kind]
    scan = apply_transforms(
      chain, scan, seed=self._seed, epoch=draw.epoch, index=draw.index, text=draw.text
    )
    return self._sized(scan)

  def _sized(self, scan: Scan) -> Media:
    size = self._sizes.get(scan.kind)
    return to_media(fit(to_bytes(scan), size) if size else scan)


def build_chains(
  transforms: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> dict[str, dict[str, Transform]]:
  """The transforms of each kind of media of `config.data.transforms`.

  Raises:
    UserError: naming the field and what is wrong with it.
  """
  chains = {}
  for kind, section in transforms.items():
    pick(MEDIA_RANKS, kind, "kind of media in config.data.transforms")
    try:
      chains[kind] = build_transforms(section)
    except UserError as error:
      raise UserError(f"config.data.transforms.{kind}: {error}") from None
  return chains


def sample_text(question: str, answer: str, choices: Sequence[str]) -> str:
  """All that is said about a sample's media, which decides whether they may be mirrored."""
  return " ".join((question, answer, *choices))


def _settled(chain: Mapping[str, Transform]) -> dict[str, Transform]:
  return {
    name: dataclasses.replace(transform, at="centre")  # pyright: ignore[reportArgumentType]
    if getattr(transform, "at", "") == "random"
    else transform
    for name, transform in chain.items()
    if not isinstance(transform, _RANDOM)
  }
