"""Weights from files into the parameters of a model."""

import pathlib

import jax
import numpy as np
import safetensors.numpy

from medflax.utils import UserError

ASSETS = pathlib.Path(__file__).parent / "assets"


def load_weights(path: str) -> dict[str, np.ndarray]:
  """Reads a safetensors file of `path/to/leaf` names; a bare file name is one of the package's.

  Raises:
    UserError: if there is no such file, or it is no safetensors file.
  """
  file = ASSETS / path if (ASSETS / path).exists() else pathlib.Path(path)
  try:
    return safetensors.numpy.load_file(file)
  except FileNotFoundError:
    raise UserError(f"config.init: there is no file {path!r}") from None
  except safetensors.SafetensorError as error:
    raise UserError(f"config.init: {path!r} is not a safetensors file: {error}") from None


def merge_weights(
  flat: dict[str, jax.Array], weights: dict[str, np.ndarray]
) -> dict[str, jax.Array]:
  """`flat` with the leaves that `weights` names replaced, in their dtypes and shardings.

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
  new = {p: jax.device_put(weights[p].astype(flat[p].dtype), flat[p].sharding) for p in named}
  return flat | new
