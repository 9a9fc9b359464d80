import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax import peft
from medflax.models.attention import causal_mask
from medflax.models.language.decoder import Decoder

FIELDS = dict(vocab_size=7, width=8, depth=2, heads=4, kv_heads=2, mlp_width=8)
KINDS = {"rotary": {}, "learned": dict(rope_theta=0.0, learned_positions=12)}
TOKENS = jnp.asarray([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])
LENGTH = 3


@functools.cache
def prompted(kind):
  decoder = Decoder(**FIELDS, **KINDS[kind])
  init = lambda key: decoder.init(key, TOKENS, TOKENS, jnp.ones((2, 5, 5), bool), None, None)
  params = {"lm": jax.jit(init)(jax.random.key(0))["params"]}
  section = dict(type="prompt", target="lm/embedding", length=LENGTH)
  added = peft.add(jax.random.key(1), params, {"p": section})
  return decoder, nn.unbox(added)["lm"]


def whole(kind, tokens=TOKENS, segments=None, params=None, **options):
  decoder, with_prompt = prompted(kind)
  segments = jnp.ones_like(tokens) if segments is None else segments
  slots = jnp.arange(tokens.shape[1])
  places = jnp.broadcast_to(slots, tokens.shape)
  mask = causal_mask(slots, segments, slots, segments)
  variables = {"params": with_prompt if params is None else params}
  return decoder.apply(variables, tokens, places, mask, None, None, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_tokens_with_those_embeddings(kind):
  _, params = prompted(kind)
  ids = jnp.asarray([[6, 0, 2]])
  base = {name: leaf for name, leaf in params.items() if name != "prompt"}
  row = jnp.concatenate([jnp.broadcast_to(ids, (2, LENGTH)), TOKENS], axis=1)
  expected = whole(kind, row, params=base)[0][:, LENGTH:]
  spelled = base | {"prompt": params["embedding"][ids[0]]}
  np.testing.assert_allclose(whole(kind, params=spelled)[0], expected, atol=1e-5)


def test_p_tuning_computes_the_prompt():
  """By the peft library's MLP: linear, ReLU, linear, ReLU, linear."""
  _, params = prompted("learned")
  boxed = {"lm": {"embedding": nn.LogicallyPartitioned(params["embedding"], ("vocab", "embed"))}}
  section = dict(type="p_tuning", target="lm/embedding", length=LENGTH)
  added = nn.unbox(peft.add(jax.random.key(1), boxed, {"p": section}))["lm"]
  assert len(added) == 8 and len(peft.adapters({f"lm/{k}": x for k, x in added.items()})) == 7
  assert added["prompt_kernel_2"].shape == (8, 8) and (jnp.abs(added["prompt_bias_1"]) < 0.36).all()
  x = added["prompt"]
  for i in range(3):
    x = np.maximum(x, 0) if i else x
    x = np.einsum("pe,ef->pf", x, added[f"prompt_kernel_{i}"]) + added[f"prompt_bias_{i}"]
  expected = whole("learned", params=params | {"prompt": jnp.asarray(x)})[0]
  np.testing.assert_allclose(whole("learned", params=params | added)[0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_sees_the_prompt(kind):
  decoder, params = prompted(kind)
  expected = whole(kind)[0][:, -1:]
  last, cache = whole(kind, TOKENS[:, :4], keep=True, last_only=True)
  np.testing.assert_allclose(last, whole(kind)[0][:, 3:4], atol=1e-5)
  index, slots, ones = jnp.asarray(4), jnp.arange(5), jnp.ones_like(TOKENS)
  mask = causal_mask(index[None], ones[:, :1], slots, ones)
  args = TOKENS[:, 4:], jnp.full((2, 1), 4), mask, None, None
  options = dict(cache=[cache], key_positions=jnp.broadcast_to(slots, TOKENS.shape))
  logits, _ = decoder.apply({"params": params}, *args, **options)
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_packed_documents_each_see_the_prompt():
  _, params = prompted("rotary")
  segments = jnp.asarray([[1, 1, 1, 1, 1], [1, 1, 2, 2, 0]])
  logits = whole("rotary", segments=segments)[0]
  other = whole("rotary", segments=segments, params=params | {"prompt": params["prompt"] + 1})[0]
  changed = jnp.abs(logits - other).max(-1) > 1e-5
  np.testing.assert_array_equal(changed, segments > 0)


def test_a_prompt_is_an_adapter():
  flat = {f"lm/{name}": leaf for name, leaf in prompted("rotary")[1].items()}
  assert set(peft.adapters(flat)) == {"lm/prompt"}
  assert flat["lm/prompt"].shape == (LENGTH, 8)
