"""Embeddings of media by a vision tower: the shipped one, or an imported one."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax
import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float, UInt8

from medflax.data.documents import Media
from medflax.data.transforms.grids import fit
from medflax.data.transforms.scan import Scan
from medflax.models import VISION_TOWERS
from medflax.pretrained import load_weights
from medflax.utils import UserError, pick

WEIGHTS, CONFIG = "weights.safetensors", "config.json"  # of medflax.tools.import_weights
PHANTOM_TOWER = "phantom_tower.safetensors"
# What configs/flamingo_med.py says of the shipped tower.
PHANTOM_FIELDS: Mapping[str, Any] = {
  "type": "vit",
  "inputs": {
    "image": {"size": (32, 32), "patch": (8, 8), "channels": 3, "table": (32, 32)},
    "volume": {"size": (8, 32, 32), "patch": (4, 8, 8), "channels": 1, "table": (8, 32, 32)},
  },
  **{"width": 64, "depth": 2, "heads": 4, "mlp_width": 128, "stem": (32, 64)},
}


class TowerEmbedder:
  """The mean of a tower's visual tokens, at unit length.

  Attributes:
    kinds: of media that the tower takes.

  Raises:
    UserError: if the folder holds no imported tower, or its weights do not fit its config.
  """

  def __init__(self, folder: str = ""):
    """`folder` is one that `medflax.tools.import_weights` wrote; "": the shipped tower."""
    section = _tower_section(pathlib.Path(folder)) if folder else PHANTOM_FIELDS
    weights = load_weights(pathlib.Path(folder) / WEIGHTS if folder else PHANTOM_TOWER)
    fields = {name: value for name, value in section.items() if name != "type"}
    tower = pick(VISION_TOWERS, section.get("type", ""), "tower")(**flax.core.freeze(fields))
    flat = {
      path.removeprefix("tower/"): jnp.asarray(np.asarray(leaf), jnp.float32)
      for path, leaf in weights.items()
      if path.startswith("tower/")
    }
    params = {"params": traverse_util.unflatten_dict(flat, sep="/")}
    self.kinds = tuple(section["inputs"])
    self._sizes = {kind: tuple(spec["size"]) for kind, spec in section["inputs"].items()}
    self._mean = jax.jit(
      lambda batch, kind: tower.apply(params, batch, kind).mean(axis=1), static_argnums=1
    )
    for kind, spec in section["inputs"].items():
      blank = jax.ShapeDtypeStruct((1, *spec["size"], spec["channels"]), jnp.uint8)
      try:
        jax.eval_shape(lambda batch, kind=kind: self._mean(batch, kind), blank)
      except flax.errors.FlaxError as error:
        reason = str(error).split("(https")[0].strip()
        raise UserError(f"the weights in {folder!r} do not fit its {CONFIG}: {reason}") from None

  def prepare(self, media: Media) -> UInt8[np.ndarray, "..."]:
    """The media fitted to the tower's size."""
    return fit(Scan(media.array, media.kind), self._sizes[media.kind]).array

  def __call__(self, kind: str, batch: UInt8[np.ndarray, "n ..."]) -> Float[np.ndarray, "n d"]:
    """Vectors of unit length; rows of zeros are added so that few shapes are compiled."""
    padded = np.zeros((1 << (len(batch) - 1).bit_length(), *batch.shape[1:]), batch.dtype)
    padded[: len(batch)] = batch
    vectors = np.asarray(self._mean(padded, kind), np.float32)[: len(batch)]
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def _tower_section(folder: pathlib.Path) -> Mapping[str, Any]:
  path = folder / CONFIG
  if not path.is_file():
    raise UserError(
      f"{str(folder)!r} has no {CONFIG}; give a folder that medflax.tools.import_weights made"
    )
  sections = json.loads(path.read_text())
  if "tower" not in sections:
    raise UserError(f"{path} describes {', '.join(sections) or 'nothing'}, but no vision tower")
  return sections["tower"]
