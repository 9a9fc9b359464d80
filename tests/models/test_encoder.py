import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medflax.models.attention import causal_mask
from medflax.models.language.encoder import Encoder

SMALL = dict(vocab_size=11, width=8, depth=2, heads=2, mlp_width=12, max_positions=9)


def inputs():
  tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 11)
  return tokens, jnp.broadcast_to(jnp.arange(6), (2, 6)), jnp.ones((2, 1, 6), bool)


def run(params, args, **fields):
  return jax.jit(Encoder(**SMALL | fields).apply)(params, *args)


def init(**fields):
  return nn.unbox(jax.jit(Encoder(**SMALL | fields).init)(jax.random.key(0), *inputs()))


def test_shapes_and_heads():
  params = init(pooler=True)
  out = run(params, inputs(), pooler=True)
  assert out["hidden"].shape == (3, 2, 6, 8)
  assert out["logits"].shape == (2, 6, 11) and out["logits"].dtype == jnp.float32
  assert out["pooled"].shape == (2, 8)
  bare = init(lm_head=False)
  assert not {"head", "head_norm", "head_bias", "pool"} & set(bare["params"])
  assert set(run(bare, inputs(), lm_head=False)) == {"hidden"}


def test_every_token_sees_every_other():
  params, (tokens, positions, mask) = init(), inputs()
  for place in (0, 5):
    other = tokens.at[:, place].set((tokens[:, place] + 1) % 11)
    change = run(params, (tokens, positions, mask))["hidden"][-1]
    change -= run(params, (other, positions, mask))["hidden"][-1]
    assert (jnp.abs(change).max(-1) > 1e-6).all()


def test_padding_changes_nothing():
  params, (tokens, positions, mask) = init(), inputs()
  short = run(params, (tokens[:, :4], positions[:, :4], mask[:, :, :4]))["logits"]
  padded = run(params, (tokens, positions, mask.at[:, :, 4:].set(False)))["logits"]
  np.testing.assert_allclose(padded[:, :4], short, atol=1e-5)


def test_packed_documents_do_not_meet():
  params, (tokens, positions, mask) = init(), inputs()
  segments = jnp.asarray([[1, 1, 1, 2, 2, 2]] * 2)
  latest = jnp.full(6, 5)  # no token is later than a query that stands last: both ways
  packed = causal_mask(latest, segments, latest, segments)
  alone = run(params, (tokens[:, 3:], positions[:, :3], mask[:, :, :3]))["logits"]
  together = run(params, (tokens, positions % 3, packed))["logits"]
  np.testing.assert_allclose(together[:, 3:], alone, atol=1e-5)


def test_positions_begin_at_the_offset():
  """RoBERTa's padding, at position -1, has the row before the first."""
  params, (tokens, positions, mask) = init(), inputs()
  embeddings = run(params, (tokens, positions + 2, mask))["hidden"][0]
  shifted = run(params, (tokens, positions, mask), position_offset=2)["hidden"][0]
  np.testing.assert_array_equal(embeddings, shifted)
