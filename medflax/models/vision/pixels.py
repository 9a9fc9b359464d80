"""Media as the towers want them: of the configured shape, in float, normalised."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def prepare(
  media: Float[Array, "b *size c"] | UInt8[Array, "b *size c"],
  kind: str,
  spec: Mapping[str, Any],
  mean: Sequence[float],
  std: Sequence[float],
  dtype: Any,
) -> Float[Array, "b *size channels"]:
  """Normalises media of one kind; uint8 is taken as [0, 255], float as [0, 1].

  Args:
    spec: the kind's entry of a tower's `inputs`, with `size` and `channels`. Media of one
      channel (grey) are repeated to as many.
    mean, std: per-channel statistics of inputs in [0, 1].

  Raises:
    ValueError: if the media's shape is not the one configured for its kind.
  """
  expected = (*spec["size"], spec["channels"])
  if media.shape[1:] not in (expected, (*spec["size"], 1)):
    raise ValueError(f"{kind} of shape {media.shape[1:]}; model.tower.inputs says {expected}")
  media = jnp.broadcast_to(media, (media.shape[0], *expected))
  x = media.astype(jnp.float32) / (255.0 if media.dtype == jnp.uint8 else 1.0)
  return ((x - jnp.asarray(mean)) / jnp.asarray(std)).astype(dtype)
