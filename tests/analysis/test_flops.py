import functools

import jax
import jax.numpy as jnp
import pytest

from medflax import config as config_lib
from medflax.analysis import flops
from medflax.build import build
from medflax.train_step import train_step


def test_a_product_by_hand():
  """Of x [4, 8] · frozen [8, 16] · trainable [16, 2]; only the last has gradients, x none."""
  frozen, trainable = jnp.zeros((8, 16)), jnp.zeros((16, 2))
  fn = lambda trainable, frozen, x: x @ frozen @ trainable
  whole = flops.total(flops.count(fn, trainable, frozen, jnp.zeros((4, 8))))
  assert whole == flops.Flops(2 * 4 * 8 * 16 + 2 * 4 * 16 * 2, 0, 2 * 4 * 16 * 2)


def test_frozen_weights_behind_trainable_ones_cost_gradients_of_activations():
  trainable, frozen = jnp.zeros((8, 16)), jnp.zeros((16, 2))
  fn = lambda trainable, frozen, x: x @ trainable @ frozen
  whole = flops.total(flops.count(fn, trainable, frozen, jnp.zeros((4, 8))))
  first, second = 2 * 4 * 8 * 16, 2 * 4 * 16 * 2
  assert whole == flops.Flops(first + second, second, first)


def test_a_scan_counts_its_body_as_often_as_it_runs():
  def fn(weights, frozen, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ frozen, weights)[0]

  one = 2 * 4 * 8 * 8
  whole = flops.total(flops.count(fn, jnp.zeros((5, 8, 8)), jnp.zeros((8, 8)), jnp.zeros((4, 8))))
  # The carry is trainable from the second layer on, and so for the compiled loop throughout.
  assert whole == flops.Flops(6 * one, 5 * one, 5 * one)


def test_stopped_gradients_cost_nothing():
  fn = lambda w, frozen, x: jax.lax.stop_gradient(x @ w) @ frozen
  whole = flops.total(flops.count(fn, jnp.zeros((8, 8)), jnp.zeros((8, 8)), jnp.zeros((4, 8))))
  assert whole.activation_gradient == 0


def test_a_convolution_by_hand():
  def fn(kernel, frozen, x):
    return jax.lax.conv_general_dilated(
      x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  whole = flops.total(flops.count(fn, jnp.zeros((3, 3, 4, 8)), (), jnp.zeros((2, 9, 9, 4))))
  assert whole == flops.Flops(2 * (2 * 4 * 4 * 8) * (3 * 3 * 4), 0, whole.forward)


def test_a_choice_counts_its_dearest_branch():
  def fn(w, frozen, x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

  whole = flops.total(flops.count(fn, jnp.zeros((8, 8)), (), jnp.zeros((4, 8))))
  assert whole.forward == 2 * (2 * 4 * 8 * 8)


def test_the_compiler_counts_the_same_forward():
  def fn(w, x):
    return jax.nn.relu(x @ w[0]) @ w[1]

  w, x = (jnp.zeros((64, 256)), jnp.zeros((256, 32))), jnp.zeros((128, 64))
  compiled = jax.jit(fn).lower(w, x).compile().cost_analysis()["flops"]
  assert flops.executed(fn, w, x) == pytest.approx(compiled, rel=0.02)  # theirs has the relu


def parts_of(spec, **overrides):
  pairs = {"train.batch_size": "2", "init": ""} | {
    k.replace("__", "."): v for k, v in overrides.items()
  }
  config = config_lib.load_config(spec, list(pairs.items()))
  return build(config)


@pytest.mark.parametrize(
  ("spec", "trainable"),
  [
    ("configs/flamingo_med.py", "lm/.*"),
    ("configs/flamingo_med.py", "connector/.*|.*/xattn/.*"),
    ("configs/medvint.py:head=te", ".*"),
    ("configs/medvint.py:head=td", ".*/lora_[ab]"),
    ("configs/radfm.py", ".*"),
  ],
)
def test_a_training_step_executes_what_is_counted(spec, trainable):
  """Without anything recomputed, autodiff makes exactly the products that are foretold."""
  parts = parts_of(spec, trainable=trainable)
  step = functools.partial(train_step, model=parts.model, tx=parts.tx, seed=0)
  counts = flops.training(parts.model, parts.state, parts.batch)
  assert flops.total(counts).total == flops.executed(step, parts.state, parts.batch)


def test_parts_of_a_model():
  parts = parts_of("configs/flamingo_med.py", trainable="connector/.*|.*/xattn/.*")
  counts = flops.training(parts.model, parts.state, parts.batch)
  assert set(counts) == {"vision tower", "connector", "gated blocks", "attention", "mlp", "head"}
  lm, rows, length = parts.config.model.lm, 2, parts.config.data.max_tokens
  head = 2 * rows * length * lm.width * lm.vocab_size
  mlp = 3 * lm.depth * 2 * rows * length * lm.width * lm.mlp_width
  assert counts["head"] == flops.Flops(head, head, 0)
  assert counts["mlp"] == flops.Flops(mlp, mlp, 0)
  assert counts["vision tower"].total == counts["vision tower"].forward
