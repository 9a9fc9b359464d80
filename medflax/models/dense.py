"""Linear maps that compute with what they find beside their kernels."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import dtypes
from jaxtyping import Array, Float

from medflax.parallel.sharding import gathered

STACKED = "layers"  # the logical name of axes that nn.scan adds


def split_axes(names: Sequence[str]) -> tuple[int, int]:
  """Where, in a kernel's logical names, inputs and outputs begin: `[*stack, *in, *out]`."""
  stack = names.count(STACKED)
  return stack, stack + (2 if names[stack + 1] == "head_dim" else 1)


class Dense(nn.DenseGeneral):
  """`nn.DenseGeneral`, plus `lora_scale · x A B` where there is a LoRA (Hu et al. 2021).

  The parameters decide: `medflax.peft` adds `lora_a`, `lora_b`, `lora_scale` and, with dropout,
  `lora_dropout` to them. The update is computed from x, never from a full-sized product of A
  and B, so that a frozen kernel needs no gradient and may have any dtype. That of
  `medflax.quantize` has a `kernel_scale` beside it, of its outputs' shape.

  Attributes:
    axes: logical names of the kernel's dimensions, inputs first.
  """

  axes: tuple[str, ...] = ()
  promote_dtype: Any = dtypes.promote_dtype  # typed anew: flax's type cannot be checked

  def __call__(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    y = super().__call__(inputs)
    return y + self._update(inputs).astype(y.dtype) if self.has_variable("params", "lora_a") else y

  def param(self, name: str, *args: Any, **kwargs: Any) -> Any:
    """Linen's, the kernel as the product wants it."""
    value = super().param(name, *args, **kwargs)
    if name != "kernel" or self.is_initializing():
      return value
    if not self.has_variable("params", "kernel_scale"):
      return gathered(value.astype(self.dtype), *self.axes)
    scale = self.get_variable("params", "kernel_scale")
    return (gathered(value, *self.axes) * scale).astype(self.dtype)

  def _update(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    weights = (self.get_variable("params", f"lora_{name}") for name in ("a", "b", "scale"))
    if self.has_variable("params", "lora_dropout") and self.has_rng("dropout"):
      rate = self.get_variable("params", "lora_dropout")
      keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, x.shape)
      x = jnp.where(keep, x / (1 - rate).astype(x.dtype), 0)
    x, a, b, scale = self.promote_dtype(x, *weights, dtype=self.dtype)
    num_inputs = a.ndim - 1
    low = jnp.tensordot(x, a, axes=(tuple(range(-num_inputs, 0)), tuple(range(num_inputs))))
    return scale * jnp.tensordot(low, b, axes=1)
