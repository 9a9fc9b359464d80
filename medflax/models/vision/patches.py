"""Images as a row of patches, for an encoder that embeds them itself (Pix2Struct)."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from medflax.models.vision.pixels import prepare


class Patches(nn.Module):
  """Row and column of each patch, from 1, then its pixels (Lee et al. 2023, section 2.2).

  Pixels are standardised over the whole image, whose deviation counts as 1/√n at least.

  Attributes:
    inputs: by kind `size`, `channels` and `patch`, each a number for every axis but the last.
    remat: nothing here is worth it; for the same fields in all towers.
  """

  inputs: Mapping[str, Any]
  remat: str = "none"
  dtype: Any = jnp.float32

  def __call__(self, media: Shaped[Array, "b h w c"], kind: str) -> Float[Array, "b patches p"]:
    spec = self.inputs[kind]
    x = prepare(media, kind, spec, (0.0,), (1.0,), jnp.float32)
    axes, least = (1, 2, 3), 1 / math.sqrt(math.prod(x.shape[1:])) / 255
    deviation = jnp.maximum(x.std(axes, keepdims=True), least)
    x = (x - x.mean(axes, keepdims=True)) / deviation
    ph, pw = spec["patch"]
    b, rows, columns = len(x), x.shape[1] // ph, x.shape[2] // pw
    x = x[:, : rows * ph, : columns * pw].reshape(b, rows, ph, columns, pw, -1)
    x = x.swapaxes(2, 3).reshape(b, rows * columns, -1)
    place = jnp.indices((rows, columns)).reshape(2, -1).T + 1
    place = jnp.broadcast_to(place.astype(x.dtype), (b, *place.shape))
    return jnp.concatenate([place, x], axis=-1).astype(self.dtype)
