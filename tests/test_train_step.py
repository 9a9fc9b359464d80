import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medflax.train_step import create_state, cross_entropy, target_weights, train_step

VOCAB = 7


class Toy(nn.Module):
  """A bigram model with the VLM's signature."""

  shift: ClassVar[int] = 1
  hide = staticmethod(lambda batch: batch)

  @nn.compact
  def __call__(self, media, tokens, media_index, **_):
    x = nn.Embed(VOCAB, 4, name="embed")(tokens)
    return nn.Dense(VOCAB, name="head")(x + media["image"].mean())


def make_batch(seed=0, rows=4, length=6):
  rng = np.random.default_rng(seed)
  whole = lambda: rng.integers(0, 3, (rows, length)).astype(np.int32)
  batch = {
    "tokens": rng.integers(0, VOCAB, (rows, length)).astype(np.int32),
    "loss_mask": rng.integers(0, 2, (rows, length)).astype(np.float32),
    "positions": whole(),
    "segment_ids": np.sort(whole(), axis=1),
    "media_index": whole(),
    "media_first": whole(),
    "media/image": np.zeros((rows, 1, 2, 2, 3), np.float32),
    "media_ordinal/image": np.ones((rows, 1), np.int32),
  }
  return {key: jnp.asarray(value) for key, value in batch.items()}


TX = optax.adam(0.1)


def make_state(trainable=".*", ema=False):
  batch = make_batch()
  args = {"image": batch["media/image"]}, batch["tokens"], batch["media_index"]
  params = Toy().init(jax.random.key(0), *args)["params"]
  return create_state(params, trainable, TX, ema=ema)


@functools.cache
def step_fn(**options):
  step = functools.partial(train_step, model=Toy(), tx=TX, seed=1, **options)
  return jax.jit(step)


def assert_trees_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_only_matching_leaves_are_trained():
  state = make_state("head/.*")
  assert set(state.trainable) == {"head/kernel", "head/bias"}
  assert set(state.frozen) == {"embed/embedding"}
  assert {x.shape for x in jax.tree.leaves(state.opt_state)} == {(), (4, VOCAB), (VOCAB,)}
  after, _ = step_fn()(state, make_batch())
  assert_trees_equal(after.frozen, state.frozen)
  assert (after.trainable["head/kernel"] != state.trainable["head/kernel"]).any()
  assert int(after.step) == 1
  assert set(after.params) == {"embed", "head"}


def test_targets_are_predicted_from_their_own_document():
  batch = {
    "loss_mask": jnp.asarray([[1.0, 1.0, 0.0, 1.0, 1.0]]),
    "segment_ids": jnp.asarray([[1, 1, 1, 2, 2]]),
  }
  # Token 0 has nothing before it; token 3 opens a document.
  np.testing.assert_array_equal(target_weights(batch, 1), [[1, 0, 0, 1]])


def test_cross_entropy_against_a_loop():
  batch, rng = make_batch(3), np.random.default_rng(0)
  logits = rng.normal(size=(4, 6, VOCAB)).astype(np.float32)
  nll = log_z = hits = 0.0
  for row in range(4):
    for i in range(5):
      same = batch["segment_ids"][row, i] == batch["segment_ids"][row, i + 1]
      if same and batch["loss_mask"][row, i + 1]:
        z = np.log(np.exp(logits[row, i]).sum())
        target = int(batch["tokens"][row, i + 1])
        nll += z - logits[row, i, target]
        log_z += z**2
        hits += logits[row, i].argmax() == target
  total, sums = cross_entropy(jnp.asarray(logits), batch, z_loss=0.01)
  np.testing.assert_allclose(sums["loss"], nll, rtol=1e-5)
  np.testing.assert_allclose(sums["accuracy"], hits)
  np.testing.assert_allclose(total, nll + 0.01 * log_z, rtol=1e-5)


def test_tokens_without_logits_cost_nothing():
  """Ids beyond the vocabulary that are never predicted, as RadFM's image tokens."""
  batch = make_batch(3)
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, VOCAB)), jnp.float32)
  beyond = batch | {"tokens": jnp.where(batch["loss_mask"] > 0, batch["tokens"], VOCAB + 2)}
  assert cross_entropy(logits, beyond, 0.0)[0] == cross_entropy(logits, batch, 0.0)[0]


def test_the_loss_falls():
  state, losses = make_state(), []
  for _ in range(20):
    state, metrics = step_fn()(state, make_batch())
    losses.append(float(metrics["loss"]))
  assert losses[0] == pytest.approx(np.log(VOCAB), abs=1.0)
  assert losses[-1] < 0.7 * losses[0]


def test_accumulation_is_the_whole_batch():
  """Though its micro-batches have different numbers of targets."""
  whole, metrics = step_fn()(make_state(), make_batch())
  parts, same = step_fn(accumulate=2)(make_state(), make_batch())
  np.testing.assert_allclose(metrics["loss"], same["loss"], rtol=1e-6)
  np.testing.assert_allclose(metrics["grad_norm"], same["grad_norm"], rtol=1e-5)
  for path, leaf in whole.trainable.items():
    np.testing.assert_allclose(leaf, parts.trainable[path], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_step_changes_nothing_but_the_counters(bad):
  before, _ = step_fn(ema=0.9)(make_state(ema=True), make_batch())
  poisoned = make_batch() | {"media/image": jnp.full((4, 1, 2, 2, 3), bad)}
  after, metrics = step_fn(ema=0.9)(before, poisoned)
  for field in ("trainable", "frozen", "opt_state", "ema"):
    assert_trees_equal(getattr(after, field), getattr(before, field))
  assert int(after.step) == 2
  assert (int(metrics["bad_total"]), int(metrics["bad_in_a_row"])) == (1, 1)
  again, _ = step_fn(ema=0.9)(after, poisoned)
  assert int(again.bad_steps["in_a_row"]) == 2
  good, metrics = step_fn(ema=0.9)(again, make_batch())
  assert (int(metrics["bad_total"]), int(metrics["bad_in_a_row"])) == (2, 0)
  assert (good.trainable["head/bias"] != after.trainable["head/bias"]).any()


def test_a_batch_without_targets_is_no_bad_step():
  empty = make_batch() | {"loss_mask": jnp.zeros((4, 6))}
  _, metrics = step_fn()(make_state(), empty)
  assert float(metrics["loss"]) == 0.0 and int(metrics["bad_total"]) == 0


def test_the_moving_average():
  state = make_state(ema=True)
  assert make_state().ema == {}
  after, _ = step_fn(ema=0.75)(state, make_batch())
  expected = 0.75 * state.ema["head/bias"] + 0.25 * after.trainable["head/bias"]
  np.testing.assert_allclose(after.ema["head/bias"], expected, rtol=1e-6)
  np.testing.assert_array_equal(after.eval_params["head"]["bias"], after.ema["head/bias"])
  np.testing.assert_array_equal(after.params["head"]["bias"], after.trainable["head/bias"])


def test_steps_are_reproducible():
  a, _ = step_fn()(make_state(), make_batch())
  b, _ = step_fn()(make_state(), make_batch())
  assert_trees_equal(a, b)
