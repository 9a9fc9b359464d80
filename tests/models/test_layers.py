"""Activations keep one array for the backward pass, and it is their derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
