import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models.language.encoder_decoder import EncoderDecoder, relative_buckets

LAYERS = dict(depth=2, heads=2, kv_heads=2, head_dim=3, mlp_width=8, query_scale=1.0)
SMALL = dict(
  **dict(vocab_size=7, width=6, encoder_layers=LAYERS),
  decoder_layers=LAYERS | dict(buckets=8, max_distance=16),
)
TOKENS = jnp.asarray([[0, 3, 1, 4], [0, 5, 2, 6]])
SEEN = jnp.asarray([[True] * 5, [True] * 3 + [False] * 2])


def inputs(places):
  patches = jax.random.uniform(jax.random.key(1), (2, 5, 6), maxval=3)
  return patches if places else jnp.asarray([[1, 2, 3, 4, 5], [6, 5, 4, 3, 2]])


@functools.cache
def model(places):
  made = EncoderDecoder(**SMALL, places=places, tie_embeddings=not places)
  params = jax.jit(made.init)(jax.random.key(0), inputs(places), SEEN, TOKENS)
  return made, nn.unbox(params)


@pytest.mark.parametrize("places", [0, 4])
def test_padding_is_not_seen(places):
  made, params = model(places)
  x = inputs(places)
  logits = made.apply(params, x, SEEN, TOKENS)
  assert logits.shape == (2, 4, 7) and logits.dtype == jnp.float32
  other = made.apply(params, x.at[1, 3:].set(x[0, 3:]), SEEN, TOKENS)
  np.testing.assert_allclose(logits, other, atol=1e-6)
  seen = made.apply(params, x.at[1, 2].set(x[0, 2]), SEEN, TOKENS)
  assert not np.allclose(logits[1], seen[1], atol=1e-5)


def test_text_sees_nothing_behind_it():
  made, params = model(4)
  x = inputs(4)
  logits = made.apply(params, x, SEEN, TOKENS)
  other = made.apply(params, x, SEEN, TOKENS.at[:, 2].set(1))
  np.testing.assert_allclose(logits[:, :2], other[:, :2], atol=1e-6)
  assert not np.allclose(logits[:, 2:], other[:, 2:], atol=1e-5)


@pytest.mark.parametrize("places", [0, 4])
def test_decoding_is_the_whole_row(places):
  made, params = model(places)
  memory = made.apply(params, inputs(places), SEEN, method="encode")
  run = functools.partial(made.apply, params, method="decode")
  whole, none = run(TOKENS, memory, SEEN)
  assert none is None
  first, cache = run(TOKENS[:, :2], memory, SEEN, cache_size=4)
  np.testing.assert_allclose(first, whole[:, :2], atol=1e-5)
  for i in (2, 3):
    one, cache = run(TOKENS[:, i : i + 1], memory, SEEN, cache=cache, index=jnp.asarray(i))
    np.testing.assert_allclose(one, whole[:, i : i + 1], atol=1e-5)


def test_near_distances_have_a_class_each():
  distance = jnp.asarray([[-200, -4, -1, 0, 1, 2, 3, 4, 8, 15, 16, 200]])
  causal = relative_buckets(distance, 8, 16, bidirectional=False)
  np.testing.assert_array_equal(causal, [[0, 0, 0, 0, 1, 2, 3, 4, 6, 7, 7, 7]])
  both = relative_buckets(distance, 8, 16, bidirectional=True)
  np.testing.assert_array_equal(both, [[7, 6, 5, 0, 1, 2, 2, 2, 3, 3, 3, 3]])
