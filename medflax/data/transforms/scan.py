"""The value type between readers and models: what one file, or one series of files, shows."""

import dataclasses
from collections.abc import Callable

import numpy as np

from medflax.data.documents import MEDIA_RANKS, SIGNAL

MAX_VALUES = 2**28  # of one array: 512 × 512 × 1024, one GiB as float32
RGB = "rgb"  # the units of a scan whose three channels are colours


@dataclasses.dataclass(frozen=True)
class Scan:
  """One image, volume or signal at its native size, in physical units where they are known.

  Volumes of known geometry lie as a radiologist hangs axial slices: D from inferior to superior,
  H from anterior to posterior, W from the patient's right to the left. A scan is "shown" when its
  array is uint8 in [0, 255] or float32 in [0, 1], dark to bright; `intensity.Window` makes it so.

  Attributes:
    array: an image (H, W, C), a volume (D, H, W, C) or a signal (T, C), real numbers.
    kind: "image", "volume" or "signal".
    spacing: mm from one index to the next, an axis each; of a signal, seconds. None: unknown.
    ratio: height of a pixel over its width where `spacing` is unknown, as of secondary captures.
    units: of the values: "HU", "mV", …; "rgb" for colours; "" where the file does not say. Where
      the channels of a signal differ, one for each of them, joined by commas.
    channels: the names of a signal's channels, such as its leads; () where there are none.
    voi: maps values to [0, 1] as the file asks for (DICOM PS3.3 C.11.2); None: it does not.
    inverted: whether low values are meant to be bright (MONOCHROME1).
    notes: what is unusual about the geometry or the samples, for a report; nothing personal.

  Raises:
    ValueError: if rank, spacing or channels do not fit the kind, or the array is empty.
  """

  array: np.ndarray
  kind: str
  spacing: tuple[float, ...] | None = None
  ratio: float = 1.0
  units: str = ""
  channels: tuple[str, ...] = ()
  voi: Callable[[np.ndarray], np.ndarray] | None = None
  inverted: bool = False
  notes: tuple[str, ...] = ()

  def __post_init__(self):
    if self.array.ndim != MEDIA_RANKS[self.kind] or not self.array.size:
      raise ValueError(f"a {self.kind} of shape {self.array.shape}")
    if self.spacing and (len(self.spacing) != self.array.ndim - 1 or min(self.spacing) <= 0):
      raise ValueError(f"spacing {self.spacing} of a {self.kind}")
    if self.channels and len(self.channels) != self.array.shape[-1]:
      raise ValueError(f"{len(self.channels)} channel names for shape {self.array.shape}")

  @property
  def aspect(self) -> float:
    """Height of a pixel over its width."""
    if self.spacing is None or self.kind == SIGNAL:
      return self.ratio
    return self.spacing[-2] / self.spacing[-1]

  def resized(self, array: np.ndarray) -> "Scan":
    """The same field of view on the grid of `array`."""
    old, new = self.array.shape, array.shape
    if self.spacing is None:
      ratio = 1.0 if self.kind == SIGNAL else self.ratio * old[-3] * new[-2] / new[-3] / old[-2]
      return dataclasses.replace(self, array=array, ratio=ratio)
    spacing = tuple(s * a / b for s, a, b in zip(self.spacing, old, new, strict=False))
    return dataclasses.replace(self, array=array, spacing=spacing)
