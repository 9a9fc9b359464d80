import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from medflax import optim
from medflax.utils import UserError

BASE = dict(
  type="adamw",
  lr=0.1,
  schedule="constant",
  warmup_steps=0,
  final_lr_fraction=0.1,
  weight_decay=0.0,
  decay=".*/kernel",
  b1=0.9,
  b2=0.99,
  eps=1e-8,
  clip_norm=0.0,
  accumulate=1,
  lr_multipliers=(),
)
PARAMS = {"a/kernel": jnp.ones(2), "a/bias": jnp.ones(2)}


def config(**changes):
  return ml_collections.ConfigDict(BASE | changes)


def update(grads, **changes):
  tx = optim.make_optimizer(config(**changes), 10)
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  return updates


@pytest.mark.parametrize(
  ("schedule", "expected"),
  [
    ("constant", {0: 0.0, 2: 0.5, 4: 1.0, 7: 1.0, 10: 1.0, 12: 1.0}),
    ("linear", {0: 0.0, 2: 0.5, 4: 1.0, 7: 0.6, 10: 0.2, 12: 0.2}),
    ("cosine", {0: 0.0, 2: 0.5, 4: 1.0, 7: 0.6, 10: 0.2, 12: 0.2}),
  ],
)
def test_schedules(schedule, expected):
  made = optim.make_schedule(
    config(lr=1.0, schedule=schedule, warmup_steps=4, final_lr_fraction=0.2), 10
  )
  for step, value in expected.items():
    np.testing.assert_allclose(made(step), value, atol=1e-6)


def test_cosine_is_not_linear():
  made = optim.make_schedule(config(lr=1.0, schedule="cosine", final_lr_fraction=0.0), 8)
  np.testing.assert_allclose(made(2), 0.5 * (1 + np.cos(np.pi / 4)), atol=1e-6)


def test_only_matching_weights_decay():
  zeros = {path: jnp.zeros(2) for path in PARAMS}
  updates = update(zeros, weight_decay=0.5)
  np.testing.assert_allclose(updates["a/kernel"], -0.1 * 0.5)
  np.testing.assert_allclose(updates["a/bias"], 0.0)


def test_a_whole_path_must_match():
  assert optim.matching("a/ker")(PARAMS) == {"a/kernel": False, "a/bias": False}
  assert optim.matching("a/.*")(PARAMS) == {"a/kernel": True, "a/bias": True}


def test_lr_multipliers():
  grads = {path: jnp.ones(2) for path in PARAMS}
  updates = update(grads, lr_multipliers=((".*/bias", 0.0), ("a/.*", 3.0)))
  np.testing.assert_allclose(updates["a/kernel"], -0.3, rtol=1e-5)
  np.testing.assert_allclose(updates["a/bias"], 0.0)


def test_gradients_are_clipped_by_their_common_norm():
  tx = optim.make_optimizer(config(clip_norm=1.0), 10)
  _, state = tx.update({p: jnp.full(2, 1e3) for p in PARAMS}, tx.init(PARAMS), PARAMS)
  first_moments = [x for x in jax.tree.leaves(state) if x.shape == (2,)][:2]
  np.testing.assert_allclose(jnp.concatenate(first_moments), 0.1 * 0.5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"decay": "("}, {"lr_multipliers": (("[", 1.0),)}])
def test_a_bad_regex_is_named(changes):
  with pytest.raises(UserError, match="is not a regular expression"):
    optim.make_optimizer(config(**changes), 10)


def test_adafactor_keeps_a_row_and_a_column_of_a_matrix():
  params = {"a/kernel": jnp.ones((256, 512)), "a/bias": jnp.ones(2)}
  tx = optim.make_optimizer(config(type="adafactor", weight_decay=0.5), 10)
  state = tx.init(params)
  assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 1000
  grads = {"a/kernel": jnp.full((256, 512), 3.0), "a/bias": jnp.zeros(2)}
  updates, _ = tx.update(grads, state, params)
  np.testing.assert_allclose(updates["a/kernel"], -0.1 * (1 + 0.5), rtol=1e-3)  # steps of one
  np.testing.assert_allclose(updates["a/bias"], 0.0, atol=1e-6)


def test_only_numbers_with_a_fraction_are_cast():
  cast = optim.cast({"w": jnp.ones(2), "n": jnp.ones(2, jnp.int32)}, "bfloat16")
  assert (cast["w"].dtype, cast["n"].dtype) == (jnp.bfloat16, jnp.int32)
