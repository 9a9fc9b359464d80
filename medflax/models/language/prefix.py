"""Learned keys and values before those of the tokens."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Bool, Float

from medflax.models.attention import KeysValues, keys_values


def prefix_length(params: Mapping[str, Any]) -> int:
  """How many positions a decoder's prefixes take before its tokens, as in peft; 0: it has none."""
  flat: dict[Any, Any] = traverse_util.flatten_dict(params)
  return next((x.shape[-3] for path, x in flat.items() if path[-1] == "prefix_key"), 0)


def learned_prefix(attention: nn.Module) -> KeysValues | None:
  """The prefix that an attention's parameters hold (Li & Liang 2021), as one row; else None.

  `medflax.peft` adds `prefix_key` and `prefix_value` [length, kv_heads, head_dim].
  """
  if not attention.has_variable("params", "prefix_key"):
    return None
  learned = (attention.get_variable("params", f"prefix_{name}") for name in ("key", "value"))
  return keys_values(*(x[None] for x in learned))


def with_prefix(
  length: int, mask: Bool[Array, "b t s"], bias: Float[Array, "_ heads t s"] | None
) -> tuple[Bool[Array, "b t n"], Float[Array, "_ heads t n"] | None]:
  """Attention's arguments with `length` keys in front; every query that sees anything sees them."""
  seen = jnp.broadcast_to(mask.any(-1, keepdims=True), (*mask.shape[:2], length))
  bias = None if bias is None else jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (length, 0)))
  return jnp.concatenate([seen, mask], axis=-1), bias
