"""Where tokens stand: rotary frequencies and rotation, ALiBi's biases."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rope_frequencies(
  dim: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> Float[Array, " half"]:
  """Angles per position, in radians, for `dim` rotated channels (Su et al. 2021).

  Args:
    scaling: `type`, a name in `ROPE_SCALINGS`, and that function's further arguments.
  """
  half = dim // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if not scaling:
    return frequency
  options = dict(scaling)
  return ROPE_SCALINGS[options.pop("type")](frequency, **options)


def _linear(frequency: Float[Array, " half"], factor: float) -> Float[Array, " half"]:
  """Position interpolation (Chen et al. 2023): positions count as 1 / factor."""
  return frequency / factor


def _llama3(
  frequency: Float[Array, " half"],
  factor: float,
  low_freq_factor: float,
  high_freq_factor: float,
  original_length: int,
) -> Float[Array, " half"]:
  """LLaMA 3.1: slow channels are interpolated, fast ones kept, those between blended.

  A channel is slow if it turns fewer than `low_freq_factor` times in `original_length` tokens,
  fast if more than `high_freq_factor` times.
  """
  turns = original_length * frequency / (2 * math.pi)
  kept = jnp.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
  return (1 - kept) * frequency / factor + kept * frequency


ROPE_SCALINGS: dict[str, Callable[..., Float[Array, " half"]]] = {
  "linear": _linear,
  "llama3": _llama3,
}


def rotary(
  x: Float[Array, "b t heads head_dim"],
  positions: Int[Array, "b t"],
  frequency: Float[Array, " half"],
  interleaved: bool = False,
) -> Float[Array, "b t heads head_dim"]:
  """Rotates the first 2 × half channels of each head; those behind them pass.

  Channel i is paired with i + half (GPT-NeoX, LLaMA), or 2i with 2i + 1 if `interleaved` (GPT-J).
  Angles are float32 whatever the compute dtype: bfloat16 positions are wrong beyond 256.
  """
  dim = 2 * frequency.shape[0]
  angle = positions[..., None].astype(jnp.float32) * frequency
  sin, cos = jnp.sin(angle)[:, :, None], jnp.cos(angle)[:, :, None]
  turned = x[..., :dim].astype(jnp.float32)
  if interleaved:
    first, second = turned[..., ::2], turned[..., 1::2]
  else:
    first, second = jnp.split(turned, 2, axis=-1)
  pair = [first * cos - second * sin, second * cos + first * sin]
  if interleaved:
    out = jnp.stack(pair, axis=-1).reshape(turned.shape)
  else:
    out = jnp.concatenate(pair, axis=-1)
  out = out.astype(x.dtype)
  return out if dim == x.shape[-1] else jnp.concatenate([out, x[..., dim:]], axis=-1)


def alibi_slopes(heads: int, bias_max: float) -> Float[np.ndarray, " heads"]:
  """What each head takes off a logit per token of distance (Press et al. 2022; MPT).

  Heads that are no power of two take every second slope of the next power, then the others.
  """
  power = 2 ** math.ceil(math.log2(heads))
  slopes = 2.0 ** (-bias_max / power * np.arange(1, power + 1))
  if power != heads:
    slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
  return slopes.astype(np.float32)


def alibi(
  distance: Int[Array, "b t s"], heads: int, bias_max: float
) -> Float[Array, "b heads t s"]:
  """Attention biases for keys `distance` tokens before their queries."""
  slopes = jnp.asarray(alibi_slopes(heads, bias_max))
  return -slopes[:, None, None] * distance.astype(jnp.float32)[:, None]
