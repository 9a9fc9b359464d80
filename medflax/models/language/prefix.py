"""Learned keys and values before those of the tokens."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Bool, Float


def prefix_length(params: Mapping[str, Any]) -> int:
  """How many positions a decoder's prefixes take before its tokens, as in peft; 0: it has none."""
  flat: dict[Any, Any] = traverse_util.flatten_dict(params)
  return next((x.shape[-3] for path, x in flat.items() if path[-1] == "prefix_key"), 0)


def with_prefix(
  attention: nn.Module,
  key: Float[Array, "b s kv_heads head_dim"],
  value: Float[Array, "b s kv_heads head_dim"],
  mask: Bool[Array, "b t s"],
  bias: Float[Array, "_ heads t s"] | None,
) -> tuple[
  Float[Array, "b n kv_heads head_dim"],
  Float[Array, "b n kv_heads head_dim"],
  Bool[Array, "b t n"],
  Float[Array, "_ heads t n"] | None,
]:
  """What attention sees where its parameters hold a prefix (Li & Liang 2021); else its arguments.

  `medflax.peft` adds `prefix_key` and `prefix_value` [length, kv_heads, head_dim]. Every query
  that sees anything sees them; a cache holds no prefix.
  """
  if not attention.has_variable("params", "prefix_key"):
    return key, value, mask, bias
  learned = (attention.get_variable("params", f"prefix_{name}") for name in ("key", "value"))
  key, value = (
    jnp.concatenate([jnp.broadcast_to(p, (x.shape[0], *p.shape)).astype(x.dtype), x], axis=1)
    for p, x in zip(learned, (key, value), strict=True)
  )
  length = key.shape[1] - mask.shape[-1]
  seen = jnp.broadcast_to(mask.any(-1, keepdims=True), (*mask.shape[:2], length))
  mask = jnp.concatenate([seen, mask], axis=-1)
  bias = None if bias is None else jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (length, 0)))
  return key, value, mask, bias
