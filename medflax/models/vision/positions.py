"""Position tables of patch grids, made to fit grids of another size."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def cubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
  """Bicubic interpolation along one axis, pixel centres at halves, borders repeated.

  Keys's kernel (1981) with a = -0.75 and no smoothing: what PyTorch's `interpolate` does, by
  which Hugging Face's towers resize their tables. (`jax.image.resize` has a = -0.5.)
  """
  place = (np.arange(new) + 0.5) * old / new - 0.5
  floor = np.floor(place).astype(int)
  a, out = -0.75, np.zeros((new, old), np.float32)
  for offset in range(-1, 3):
    d = np.abs(place - (floor + offset))
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    index = np.clip(floor + offset, 0, old - 1)
    np.add.at(out, (np.arange(new), index), np.where(d <= 1, near, np.where(d < 2, far, 0)))
  return out


def resize_table(
  table: Float[Array, "n d"], old: Sequence[int], new: Sequence[int]
) -> Float[Array, "m d"]:
  """The table of an `old` grid, row-major, interpolated to a `new` one of as many dimensions."""
  x = table.reshape(*old, table.shape[-1])
  for axis, (n, m) in enumerate(zip(old, new, strict=True)):
    if n != m:
      x = jnp.moveaxis(jnp.tensordot(cubic_weights(n, m), x, axes=(1, axis)), 0, axis)
  return x.reshape(-1, table.shape[-1])


def strided_rows(old: int, new: int) -> Int[np.ndarray, " new"]:
  """The rows that RadFM takes for `new` patches from a table of `old`: each stride's last.

  Raises:
    ValueError: if there are more patches than rows.
  """
  if new > old:
    raise ValueError(f"{new} patches along an axis, but its position table has {old} rows")
  return (np.arange(new) + 1) * (old // new) - 1
