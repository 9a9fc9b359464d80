"""Weights from files into the parameters of a model."""

import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Shaped

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

  Each shard is read by itself and put on its device: the host holds one at a time. The arrays
  that are replaced are deleted before, so that the devices never hold both.

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
  return flat | {path: _placed(weights[path], flat[path]) for path in named}


def _placed(weights: LazyTensor | np.ndarray, leaf: jax.Array) -> jax.Array:
  shape, dtype, sharding = leaf.shape, leaf.dtype, leaf.sharding
  leaf.delete()
  put = lambda device, index: jax.device_put(_contiguous(weights[index], dtype), device)
  indices = sharding.addressable_devices_indices_map(shape)
  shards = [put(device, index).block_until_ready() for device, index in indices.items()]
  return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _contiguous(x: Shaped[np.ndarray, "..."], dtype: np.dtype) -> Shaped[np.ndarray, "..."]:
  return np.asarray(x, dtype, order="C")
