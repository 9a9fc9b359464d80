import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medflax import peft
from medflax.models.attention import causal_mask
from medflax.models.language.decoder import Decoder

DECODER = Decoder(vocab_size=7, width=8, depth=2, heads=4, kv_heads=2, mlp_width=8)
TOKENS = jnp.asarray([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])
SEGMENTS = jnp.asarray([[1, 1, 1, 1, 1], [0, 1, 1, 2, 2]])
TARGET = ".*/attn/key/kernel"


def whole(params, tokens=TOKENS, segments=SEGMENTS, **options):
  slots = jnp.arange(tokens.shape[1])
  mask = causal_mask(slots, segments, slots, segments)
  places = jnp.broadcast_to(slots, tokens.shape)
  return DECODER.apply({"params": params}, tokens, places, mask, None, None, **options)


@functools.cache
def prefixed(length=3):
  boxed = jax.jit(
    lambda key: DECODER.init(key, TOKENS, TOKENS, jnp.ones((2, 5, 5), bool), None, None)
  )
  params = boxed(jax.random.key(0))["params"]
  section = dict(type="prefix", target=TARGET, length=length)
  return nn.unbox(params), nn.unbox(peft.add(jax.random.key(1), params, {"p": section}))


def test_a_prefix_is_keys_and_values_for_all():
  base, params = prefixed()
  flat = traverse_util.flatten_dict(params, sep="/")
  name = "groups/layer_0/attn/prefix_key"
  assert flat[name].shape == (2, 3, 2, 2)
  assert set(peft.adapters(flat)) == {name, name.replace("key", "value")}
  logits, plain = whole(params)[0], whole(base)[0]
  seen = SEGMENTS > 0
  assert (jnp.abs(logits - plain).max(-1) > 1e-4)[seen].all()
  np.testing.assert_array_equal(logits[~seen], plain[~seen])


def test_a_prefix_is_a_cached_token():
  """The same keys and values stand in the cache of a row that begins with one token."""
  base, params = prefixed(length=1)
  segments = jnp.ones_like(TOKENS)
  _, cache = whole(base, segments=segments, keep=True)
  cached = cache["groups"]["layer_0"]
  attention = dict(params["groups"]["layer_0"]["attn"])
  for name in ("key", "value"):  # of the second row's first token, for all rows
    attention[f"prefix_{name}"] = getattr(cached, name)[:, 1, :, :1].swapaxes(1, 2)
  layer = params["groups"]["layer_0"] | {"attn": attention}
  row = TOKENS[1:, 1:]
  slots = jnp.arange(1, 5)
  mask = causal_mask(slots, jnp.ones_like(row), slots, jnp.ones_like(row))
  places = jnp.broadcast_to(slots - 1, row.shape)  # the prefix takes the first
  given = {"params": params | {"groups": {"layer_0": layer}}}
  logits, _ = DECODER.apply(given, row, places, mask, None, None)
  np.testing.assert_allclose(logits, whole(base, segments=segments)[0][1:, 1:], atol=1e-5)


def test_decoding_sees_the_prefix():
  _, params = prefixed()
  segments = jnp.ones_like(TOKENS)
  expected = whole(params, segments=segments)[0][:, -1:]
  _, cache = whole(params, TOKENS[:, :4], segments[:, :4], keep=True)
  assert cache["groups"]["layer_0"].key.shape[3] == 4
  index, slots = jnp.asarray(4), jnp.arange(5)
  mask = causal_mask(index[None], segments[:, :1], slots, segments)
  args = TOKENS[:, 4:], jnp.full((2, 1), 4), mask, None, None
  options = dict(cache=[cache], key_positions=jnp.broadcast_to(slots, TOKENS.shape))
  logits, _ = DECODER.apply({"params": params}, *args, **options)
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_merging_keeps_a_prefix():
  flat = traverse_util.flatten_dict(prefixed()[1], sep="/")
  assert peft.merge(flat).keys() == flat.keys()
