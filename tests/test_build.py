import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.build import build, jit_train_step, loss_chunk
from medflax.parallel.mesh import AXES
from medflax.train_step import create_state
from tests import nano


def one_device(config):
  return build(config, devices=jax.devices()[:1])


def test_frozen_weights_may_be_small_while_trained_ones_are_not(tmp_path):
  config = nano.config(tmp_path, trainable="connector/.*", train__frozen_dtype="bfloat16")
  state = one_device(config).state
  assert {x.dtype for x in state.frozen.values()} == {jnp.dtype(jnp.bfloat16)}
  assert {x.dtype for x in state.trainable.values()} == {jnp.dtype(jnp.float32)}


def test_initial_weights_are_traced_once(tmp_path, monkeypatch):
  """For their shapes and for the program that makes them: tracing is most of a warm start."""
  traced = []
  note = lambda *args, **kwargs: traced.append(1) or create_state(*args, **kwargs)
  monkeypatch.setattr("medflax.build.create_state", note)
  one_device(nano.config(tmp_path)).create(0)
  assert len(traced) == 1


def test_adafactor_has_a_sharded_state(tmp_path):
  state = one_device(nano.config(tmp_path, optimizer__type="adafactor")).state
  assert all(leaf.sharding is not None for leaf in jax.tree.leaves(state.opt_state))


@pytest.mark.parametrize(
  ("asked", "vocab", "chunk"),
  [("-1", 2**10, 0), ("-1", 2**21, 16), ("-1", 2**28, 1), ("5", 2**10, 5), ("0", 2**28, 0)],
)
def test_chunks_of_the_loss_fit_a_share_of_memory(asked, vocab, chunk, tmp_path):
  """Of two rows: 2 · 2^21 · 4 bytes are 2^24 for the logits of one token, and 16 of them fit."""
  config = nano.config(tmp_path, train__loss_chunk=asked, model__lm__vocab_size=str(vocab))
  mesh = jax.sharding.AbstractMesh((1,) * len(AXES), AXES)
  assert loss_chunk(config, mesh) == chunk


@pytest.mark.slow
def test_a_step_in_chunks_is_the_step(tmp_path):
  def step(**overrides):
    parts = one_device(nano.config(tmp_path, **overrides))
    rng, state = np.random.default_rng(0), parts.create(0)
    batch = {k: np.zeros(x.shape, x.dtype) for k, x in parts.batch.items()}
    batch["tokens"] = rng.integers(0, 1024, batch["tokens"].shape).astype(np.int32)
    batch["loss_mask"][:], batch["segment_ids"][:] = 1, 1
    with jax.set_mesh(parts.mesh):
      state, metrics = jit_train_step(parts)(state, parts.put(batch))
    return metrics, state.trainable

  (whole, weights), (chunked, same) = step(), step(train__loss_chunk="7")
  np.testing.assert_allclose(chunked["loss"], whole["loss"], rtol=1e-6)
  np.testing.assert_allclose(chunked["grad_norm"], whole["grad_norm"], rtol=1e-5)
  for path, leaf in weights.items():
    np.testing.assert_allclose(same[path], leaf, rtol=1e-3, atol=1e-5, err_msg=path)
