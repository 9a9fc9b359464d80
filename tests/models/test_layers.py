"""Activations keep one array for the backward pass, and it is their derivative; remat by name."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models import layers
from medflax.models.layers import ACTIVATIONS, with_slope


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_backward_pass_is_a_product_with_the_derivative(name):
  x = jnp.linspace(-6, 6, 100) + 0.01  # not where relu has its corner
  y, pull = jax.vjp(ACTIVATIONS[name], x)
  assert [leaf.shape for leaf in jax.tree.leaves(pull)] == [x.shape]
  step = 1e-2
  slope = (ACTIVATIONS[name](x + step) - ACTIVATIONS[name](x - step)) / (2 * step)
  np.testing.assert_allclose(pull(jnp.full_like(x, 3.0))[0], 3 * slope, atol=1e-3)
  np.testing.assert_array_equal(y, ACTIVATIONS[name](x))


def test_derivative_has_the_inputs_dtype():
  x = jnp.ones(3, jnp.bfloat16)
  assert jax.grad(lambda x: with_slope(jax.nn.silu)(x).sum())(x).dtype == jnp.bfloat16


class Residual(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x + layers.MLP(8, "gelu", use_bias=False, name="mlp")(x), None


@pytest.mark.parametrize("policy", sorted(set(layers.REMAT_POLICIES) - {"none"}))
def test_what_is_computed_again_is_what_it_was(policy):
  x = jnp.arange(12.0).reshape(1, 3, 4)
  params = nn.unbox(layers.stack(Residual, 2, "none")().init(jax.random.key(0), x))
  loss = lambda p, policy: layers.stack(Residual, 2, policy)().apply(p, x)[0].sum()
  ours, theirs = (jax.jit(jax.grad(loss), static_argnums=1)(params, p) for p in (policy, "none"))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), ours, theirs)
