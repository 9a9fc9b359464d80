"""Layers shared by towers, connectors, fusions and language models.

Every weight dimension carries a logical axis name; `medflax.parallel.sharding` maps the names
to mesh axes. Weights are float32, computation happens in `dtype`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medflax.models.dense import Dense

Dtype = Any


def with_slope(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
  """An elementwise `f` that keeps its derivative for the backward pass, and nothing else.

  Of GELU and SiLU, differentiation by rule keeps several arrays, and on CPUs XLA computes erf and
  exp again, value by value, in the transposed copy that a weight's gradient is made from.
  """
  kept = jax.custom_jvp(f)

  @kept.defjvp
  def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    y, slope = jax.jvp(f, (x,), (jnp.ones_like(x),))
    return y, slope * dx

  return kept


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": with_slope(lambda x: jax.nn.gelu(x, approximate=False)),
  "gelu_tanh": with_slope(lambda x: jax.nn.gelu(x, approximate=True)),
  "quick_gelu": with_slope(lambda x: x * jax.nn.sigmoid(1.702 * x)),  # OpenAI's CLIP
  "relu": with_slope(jax.nn.relu),
  "silu": with_slope(jax.nn.silu),
}

REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  # As dots, but in the host's memory, from where they are fetched for the backward pass.
  "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


def remat(block: type[nn.Module], policy: str) -> type[nn.Module]:
  """Wraps a block so that its activations are recomputed by the named policy ("none": kept)."""
  if REMAT_POLICIES[policy] is None:
    return block
  return nn.remat(block, prevent_cse=False, policy=REMAT_POLICIES[policy])


def stack(
  block: type[nn.Module], length: int, remat_policy: str, in_axes: Any = nn.broadcast
) -> Callable[..., Any]:
  """`length` blocks one after the other, compiled as one: their weights gain a first axis.

  Args:
    remat_policy: a name in `REMAT_POLICIES`, applied to each block.
    in_axes: for the arguments after the first; the default gives all blocks the same.
  """
  return nn.scan(
    remat(block, remat_policy),
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=in_axes,
    length=length,
    metadata_params={nn.PARTITION_NAME: "layers"},
    check_constancy_invariants=False,  # for which blocks would be traced once more
  )


def param_init(init: jax.nn.initializers.Initializer, *axes: str | None) -> Callable[..., Any]:
  """`init` with logical axis names attached to the parameter it makes."""
  # No rules: linen would constrain the flat kernel that it reshapes, which has another rank.
  return nn.with_logical_partitioning(init, axes, rules=())


def dense(
  features: int | Sequence[int],
  axes: Sequence[str],
  *,
  name: str,
  num_inputs: int = 1,
  use_bias: bool = False,
  dtype: Dtype = jnp.float32,
) -> Dense:
  """A linear map over the last `num_inputs` axes with named weight axes.

  Args:
    features: output shape.
    axes: a logical name for each kernel dimension, inputs first.
  """
  init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
  return Dense(
    features,
    axis=tuple(range(-num_inputs, 0)),
    use_bias=use_bias,
    dtype=dtype,
    kernel_init=param_init(init, *axes),
    bias_init=param_init(nn.initializers.zeros, *axes[num_inputs:]),
    axes=tuple(axes),
    name=name,
  )


def layer_norm(
  *, name: str, epsilon: float = 1e-5, dtype: Dtype = jnp.float32, use_bias: bool = True
) -> nn.LayerNorm:
  """LayerNorm with scale and, if asked, bias; statistics in float32."""
  return nn.LayerNorm(
    epsilon=epsilon,
    dtype=dtype,
    use_bias=use_bias,
    scale_init=param_init(nn.initializers.ones, "norm"),
    bias_init=param_init(nn.initializers.zeros, "norm"),
    name=name,
  )


def rms_norm(*, name: str, epsilon: float, dtype: Dtype = jnp.float32) -> nn.RMSNorm:
  """RMSNorm (Zhang & Sennrich 2019) with scale; statistics in float32."""
  return nn.RMSNorm(
    epsilon=epsilon, dtype=dtype, scale_init=param_init(nn.initializers.ones, "norm"), name=name
  )


class ZeroRMSNorm(nn.Module):
  """RMSNorm whose weight is what the scale has more than one (Gemma); statistics in float32."""

  epsilon: float
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    scale = self.param("scale", param_init(nn.initializers.zeros, "norm"), x.shape[-1:])
    y = nn.RMSNorm(epsilon=self.epsilon, dtype=jnp.float32, use_scale=False, name="rms")(x)
    return (y * (1 + scale)).astype(self.dtype)


class MLP(nn.Module):
  """Linear → activation → linear."""

  hidden: int
  activation: str
  use_bias: bool
  dtype: Dtype = jnp.float32
  axis: str = "embed"

  @nn.compact
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    options = dict(use_bias=self.use_bias, dtype=self.dtype)
    y = dense(self.hidden, (self.axis, "mlp"), name="wi", **options)(x)
    y = ACTIVATIONS[self.activation](y)
    return dense(x.shape[-1], ("mlp", self.axis), name="wo", **options)(y)


class GatedMLP(nn.Module):
  """SwiGLU and its relatives: `down(activation(gate(x)) * up(x))` (Shazeer 2020)."""

  hidden: int
  activation: str = "silu"
  use_bias: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    options = dict(use_bias=self.use_bias, dtype=self.dtype)
    gate = dense(self.hidden, ("embed", "mlp"), name="gate", **options)(x)
    up = dense(self.hidden, ("embed", "mlp"), name="up", **options)(x)
    y = ACTIVATIONS[self.activation](gate) * up
    return dense(x.shape[-1], ("mlp", "embed"), name="down", **options)(y)
