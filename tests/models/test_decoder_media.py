"""Inline media inside the decoder: what their tokens see, and tokens that are never predicted."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models.attention import causal_mask
from medflax.models.fusion.inline import Inline, SoftTokens
from medflax.models.language.decoder import Decoder

VOCAB, WIDTH, LENGTH, WINDOW = 5, 8, 8, 3
IMAGE = np.array([0, 1, 1, 1, 1, 1, 0, 0])  # which tokens are the image's
QUICK = {"xla_backend_optimization_level": 0}


def decoder(**fields):
  sizes = dict(vocab_size=VOCAB, width=WIDTH, depth=1, heads=2, kv_heads=2, mlp_width=4)
  return Decoder(**sizes, **fields)


def weights(model, *inputs):
  leaves, tree = jax.tree.flatten(
    nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs, None, None))
  )
  rng = np.random.default_rng(0)
  return tree.unflatten([jnp.asarray(rng.normal(0, 0.7, x.shape), jnp.float32) for x in leaves])


def text(tokens):
  slots, one = jnp.arange(tokens.shape[1]), jnp.ones_like(tokens)
  return tokens, jnp.broadcast_to(slots, tokens.shape), causal_mask(slots, one, slots, one)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("window", [0, WINDOW])
def test_an_image_sees_all_of_itself_but_what_its_window_leaves_behind(bidirectional, window):
  model = decoder(fusion=Inline(bidirectional), windows=(window,))
  inputs = text(jnp.ones((1, LENGTH), jnp.int32))
  params = weights(model, *inputs)
  base = np.random.default_rng(1).normal(size=(LENGTH, WIDTH)).astype(np.float32)

  @jax.jit(compiler_options=QUICK)
  def logits(features):
    soft = SoftTokens(features[None], jnp.asarray(IMAGE)[None])
    return model.apply(params, *inputs, None, None, soft=soft)[0][0]

  seen = np.zeros((LENGTH, LENGTH), bool)
  for j in np.flatnonzero(IMAGE):
    other = base.copy()
    other[j] += 1
    seen[:, j] = np.abs(logits(base) - logits(other)).max(-1) > 1e-6
  i, j = np.indices((LENGTH, LENGTH))
  want = (j <= i) | (bidirectional & (IMAGE[i] == 1))
  want &= (i - j < window) if window else True
  np.testing.assert_array_equal(seen, want & (IMAGE[j] == 1))


def test_extra_tokens_have_embeddings_and_are_never_predicted():
  model = decoder(extra_tokens=2)
  tokens = jnp.asarray([[1, VOCAB, VOCAB + 1, 2, 0, 3, 4, 1]], jnp.int32)
  inputs = text(tokens)
  params = weights(model, *inputs)
  run = jax.jit(lambda p: model.apply(p, *inputs, None, None)[0], compiler_options=QUICK)
  table = params["params"]["extra_embedding"]
  assert table.shape == (2, WIDTH)
  assert run(params).shape == (1, LENGTH, VOCAB)
  for row, place in ((0, 1), (1, 2)):
    changed = params["params"] | {"extra_embedding": table.at[row].add(1.0)}
    difference = np.abs(run({"params": changed}) - run(params))[0].max(-1)
    assert (difference > 1e-6).argmax() == place
