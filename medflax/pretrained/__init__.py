"""Weights from files into the parameters of a model."""

import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from medflax.pretrained.files import read_safetensors
from medflax.pretrained.lazy import LazyTensor
from medflax.utils import UserError

ASSETS = pathlib.Path(__file__).parent / "assets"


def load_weights(path: str | os.PathLike) -> dict[str, LazyTensor]:
  """Opens a safetensors file of `path/to/leaf` names; a bare file name is one of the package's.

  Raises:
    UserError: if there is no such file, or it is no safetensors file.
  """
  file = ASSETS / path if (ASSETS / path).exists() else pathlib.Path(path)
  if not file.is_file():
    raise UserError(f"config.init: there is no file {str(path)!r}")
  return read_safetensors(file)


def merge_weights(
  flat: dict[str, jax.Array], weights: Mapping[str, LazyTensor | np.ndarray]
) -> dict[str, jax.Array]:
  """`flat` with the leaves that `weights` names replaced, in their dtypes and shardings.

  One leaf at a time is read and put on the devices: the host never holds them all.

  Raises:
    UserError: if a shape differs.
  """
  named = [path for path in flat if path in weights]
  for path in named:
    if flat[path].shape != weights[path].shape:
      raise UserError(
        f"config.init: {path} has shape {weights[path].shape} in the file but "
        f"{flat[path].shape} in the model; match config.model or set config.init to ''"
      )
  placed = lambda path, leaf: jax.device_put(
    np.asarray(weights[path]).astype(leaf.dtype, copy=False), leaf.sharding
  )
  return flat | {path: placed(path, flat[path]) for path in named}
