"""Intensities: from what a scanner measured to what is shown, and their augmentation."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Num, Shaped, UInt8

from medflax.data.documents import IMAGE, SIGNAL, VOLUME, Media
from medflax.data.transforms.scan import RGB, Scan
from medflax.utils import UserError, pick

PERCENTILES = (1.0, 99.0)  # robust against metal, padding values and hot pixels
_PERCENTILE_SAMPLES = 1_000_000  # more values than this do not move the two percentiles
_DEVIATIONS = 3.0  # what "deviations" shows around the mean

# Centre and width in HU, as radiology uses them (https://radiopaedia.org/articles/windowing-ct).
CT_WINDOWS = {
  "abdomen": (50.0, 400.0),
  "bone": (400.0, 1800.0),
  "brain": (40.0, 80.0),
  "head_neck": (40.0, 375.0),
  "liver": (30.0, 150.0),
  "lung": (-600.0, 1500.0),
  "mediastinum": (50.0, 350.0),
  "spine": (50.0, 250.0),
  "stroke": (40.0, 40.0),
  "subdural": (75.0, 215.0),
  "temporal_bone": (600.0, 2800.0),
}


def window(values: Num[np.ndarray, "..."], low: float, high: float) -> Float[np.ndarray, "..."]:
  """Maps [low, high] linearly to [0, 1], float32, and clips; all zero where high ≤ low."""
  if not high > low:
    return np.zeros(values.shape, np.float32)
  with np.errstate(over="ignore"):
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(1.0 / (high - low))
  return np.clip(scaled, 0.0, 1.0, out=scaled)


def percentile_window(values: Num[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """Windows raw intensities between their 1st and 99th percentile, for want of a better window."""
  step = max(1, values.size // _PERCENTILE_SAMPLES)
  with np.errstate(over="ignore", invalid="ignore"):
    low, high = np.percentile(values.reshape(-1)[::step], PERCENTILES)
  return window(values, float(low), float(high))


def range_window(values: Num[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """Windows between the smallest and the largest value."""
  return window(values, float(values.min()), float(values.max()))


def deviation_window(values: Num[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """Windows three standard deviations around the mean: a z-score, clipped, in [0, 1]."""
  mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
  return window(values, mean - _DEVIATIONS * deviation, mean + _DEVIATIONS * deviation)


def to_uint8(values: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
  """[0, 1] to [0, 255], rounded."""
  return np.rint(values * 255.0).astype(np.uint8)


def to_float(shown: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """A shown array as float32 in [0, 1]."""
  return shown.astype(np.float32) / np.float32(255) if shown.dtype == np.uint8 else shown


def _by_channel(function: Callable[[np.ndarray], np.ndarray], scan: Scan) -> np.ndarray:
  if scan.array.shape[-1] == 1:
    return function(scan.array)
  return np.stack([function(channel) for channel in np.moveaxis(scan.array, -1, 0)], axis=-1)


def _as_the_file_asks(scan: Scan) -> np.ndarray:
  """Bytes and colours as they are, then the file's own window, then the percentiles."""
  if scan.units == RGB and scan.array.dtype == np.uint16:
    return (scan.array >> 8).astype(np.uint8)
  if scan.array.dtype == np.uint8:
    return scan.array
  return scan.voi(scan.array) if scan.voi else _by_channel(percentile_window, scan)


# How to show what is not shown yet: `Window.by` is a key of these or of `CT_WINDOWS`.
WINDOWS: dict[str, Callable[[Scan], np.ndarray]] = {
  "auto": _as_the_file_asks,
  "percentile": lambda scan: _by_channel(percentile_window, scan),
  "range": lambda scan: _by_channel(range_window, scan),
  "deviations": lambda scan: _by_channel(deviation_window, scan),
}


def show(scan: Scan, by: str = "auto") -> Scan:
  """Makes a scan shown, as `Window` says."""
  if by in CT_WINDOWS:
    if scan.units not in ("HU", "") or scan.array.dtype == np.uint8:
      raise UserError(f"holds no Hounsfield units; window {by!r} is for CT")
    centre, width = CT_WINDOWS[by]
    shown = window(scan.array, centre - width / 2, centre + width / 2)
  else:
    shown = WINDOWS[by](scan)
  if shown is scan.array and not scan.inverted and scan.units in ("", RGB):
    return scan
  if scan.inverted:
    shown = 255 - shown if shown.dtype == np.uint8 else 1.0 - shown
  units = RGB if scan.units == RGB else ""
  return dataclasses.replace(scan, array=shown, voi=None, inverted=False, units=units)


@dataclasses.dataclass(frozen=True)
class Window:
  """Makes a scan shown.

  Attributes:
    by: "auto": bytes and colours as they are, else the file's own window, else "percentile", the
      1st to 99th of each channel; "range": smallest to largest; "deviations": three standard
      deviations around the mean; or a key of `CT_WINDOWS`, for values in HU.

  Raises:
    UserError: if `by` is unknown, or a CT window meets values that are known not to be HU.
  """

  by: str = "auto"

  def __post_init__(self):
    pick(WINDOWS | CT_WINDOWS, self.by, "window")

  def __call__(self, scan: Scan, rng: np.random.Generator, text: str | None) -> Scan:
    return show(scan, self.by)


@dataclasses.dataclass(frozen=True)
class Intensity:
  """Random contrast and brightness, gamma and noise of a shown scan.

  Attributes:
    brightness: the most that is added or taken away, of [0, 1].
    contrast: the most that the distance from mid-grey grows or shrinks by, as a share.
    gamma: the most that the logarithm of the exponent differs from 0.
    noise: the largest standard deviation of white noise.
  """

  brightness: float = 0.1
  contrast: float = 0.1
  gamma: float = 0.1
  noise: float = 0.0

  def __call__(self, scan: Scan, rng: np.random.Generator, text: str | None) -> Scan:
    add, stretch, bend = rng.uniform(-1.0, 1.0, 3) * (self.brightness, self.contrast, self.gamma)
    values = to_float(scan.array) ** np.float32(np.exp(bend))
    values = (values - np.float32(0.5)) * np.float32(1 + stretch) + np.float32(0.5 + add)
    deviation = np.float32(rng.uniform(0.0, self.noise))
    if deviation:
      values += deviation * rng.standard_normal(values.shape, np.float32)
    return dataclasses.replace(scan, array=np.clip(values, 0.0, 1.0))


def to_bytes(scan: Scan) -> Scan:
  """A shown image or volume as uint8, volumes in one channel.

  Raises:
    UserError: if a volume has several channels that are not colours.
  """
  if scan.kind == IMAGE and scan.array.dtype == np.uint8:
    return scan
  array = scan.array if scan.array.dtype == np.uint8 else to_uint8(scan.array)
  if scan.kind == VOLUME and array.shape[-1] > 1:
    if scan.units != RGB:
      raise UserError(
        f"has 4 dimensions ({array.shape[-1]} volumes); save the one you mean, e.g. by "
        "image.slicer[..., 0]"
      )
    array = to_uint8(array.mean(axis=-1, keepdims=True) / 255.0)
  return dataclasses.replace(scan, array=array)


def to_media(scan: Scan) -> Media:
  """What a model reads of a shown scan: images in three channels and volumes in one, uint8.

  Signals stay float32 in [0, 1], in as many channels as they have.

  Raises:
    UserError: as `to_bytes`.
  """
  if scan.kind == SIGNAL:
    return Media(to_float(scan.array), SIGNAL)
  array = to_bytes(scan).array
  grey = scan.kind == IMAGE and array.shape[-1] == 1
  return Media(array.repeat(3, axis=-1) if grey else array, scan.kind)
