"""Tensors that stay in their file until they are asked for."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Shaped


@dataclasses.dataclass(frozen=True)
class LazyTensor:
  """A tensor of a checkpoint; `np.asarray` reads it, anew each time.

  Attributes:
    dtype: of what `read` returns.
    part: reads what an index names and no more, where the format can; None: it cannot.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  part: Callable[[Any], np.ndarray] | None = None

  def __getitem__(self, index: Any) -> Shaped[np.ndarray, "..."]:
    """A copy of what an index of NumPy's names: an integer, a slice, or a tuple of them."""
    return self.part(index) if self.part else self.read()[index]

  @property
  def nbytes(self) -> int:
    """Bytes in memory once read."""
    return math.prod(self.shape) * self.dtype.itemsize

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> Shaped[np.ndarray, "..."]:
    """NumPy's protocol; always a copy of what is in the file."""
    x = self.read()
    return x if dtype is None else x.astype(dtype)
