import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from medflax.data.encode import MEDIA_RULES
from medflax.models.attention import causal_mask, dot_product_attention, media_mask

# t: text, m: a media token. For each token of "ttmttmmtmt" (media 1 to 4), as a string, the
# media it sees.
RULES = {
  "prev_image": [""] * 2 + ["1"] * 3 + ["2", "3", "3", "4", "4"],
  "next_image": ["1", "1", "1", "2", "2", "2", "3", "4", "4", ""],
  "all_prev": [""] * 2 + ["1"] * 3 + ["12", "123", "123", "1234", "1234"],
}


@pytest.mark.parametrize("rule", MEDIA_RULES)
def test_the_rules_of_flamingo(rule):
  is_media = np.array([c == "m" for c in "ttmttmmtmt"])
  index, first = (jnp.asarray(x)[None] for x in MEDIA_RULES[rule](is_media))
  seen = media_mask(index, first, jnp.array([[1, 2, 3, 4]]))[0]
  assert ["".join(str(m + 1) for m in np.flatnonzero(row)) for row in seen] == RULES[rule]


@hypothesis.given(st_np.arrays(bool, st.integers(1, 12)), st.sampled_from(sorted(MEDIA_RULES)))
def test_empty_slots_and_tokens_without_media_see_nothing(is_media, rule):
  index, first = (jnp.asarray(x)[None] for x in MEDIA_RULES[rule](is_media))
  ordinals = jnp.array([[0, *range(1, 13), 0]])
  mask = np.asarray(media_mask(index, first, ordinals))[0]
  assert not mask[:, [0, -1]].any()
  assert not mask[index[0] == 0].any()
  assert not mask[:, is_media.sum() + 1 :].any()
  assert mask[index[0] > 0].any(-1).all()


@hypothesis.given(st.lists(st.integers(0, 3), min_size=1, max_size=10))
def test_tokens_see_their_own_document_up_to_themselves(segments):
  slots, ids = jnp.arange(len(segments)), jnp.array([segments])
  mask = np.asarray(causal_mask(slots, ids, slots, ids))[0]
  for q, own in enumerate(segments):
    for k, other in enumerate(segments):
      assert mask[q, k] == (k <= q and own == other and own > 0)


def test_a_query_of_a_cache_sees_what_is_written():
  segments = jnp.array([[0, 1, 1, 0, 0]])
  mask = causal_mask(jnp.array([2]), jnp.array([[1]]), jnp.arange(5), segments)
  assert mask.tolist() == [[[False, True, True, False, False]]]


def arrays(seed, heads=2, kv_heads=2, t=3, s=5):
  keys = jax.random.split(jax.random.key(seed), 3)
  shapes = ((1, t, heads, 4), (1, s, kv_heads, 4), (1, s, kv_heads, 4))
  return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@hypothesis.settings(max_examples=30)
@hypothesis.given(st_np.arrays(bool, (1, 3, 5)), st.integers(0, 99), st.sampled_from([1, 2, 4]))
def test_attention_is_the_softmax_over_what_the_mask_allows(mask, seed, kv_heads):
  query, key, value = arrays(seed, heads=4, kv_heads=kv_heads)
  out = np.asarray(dot_product_attention(query, key, value, jnp.asarray(mask)))
  for t, allowed in enumerate(mask[0]):
    if not allowed.any():
      assert (out[0, t] == 0).all()
      continue
    for head in range(4):
      kv = head // (4 // kv_heads)
      logits = np.asarray(key[0, allowed, kv] @ query[0, t, head]) / 2
      weights = np.exp(logits - logits.max())
      expected = weights / weights.sum() @ np.asarray(value[0, allowed, kv])
      np.testing.assert_allclose(out[0, t, head], expected, atol=1e-5)


def test_no_mask_allows_everything():
  query, key, value = arrays(0)
  everything = jnp.ones((1, 3, 5), bool)
  np.testing.assert_allclose(
    dot_product_attention(query, key, value),
    dot_product_attention(query, key, value, everything),
    atol=1e-6,
  )


def test_gradients_of_masked_rows_are_finite():
  query, key, value = arrays(0)
  mask = jnp.zeros((1, 3, 5), bool).at[0, 1].set(True)
  grads = jax.grad(lambda *qkv: dot_product_attention(*qkv, mask).sum(), (0, 1, 2))(
    query, key, value
  )
  assert all(jnp.isfinite(g).all() for g in grads)
  assert (grads[0][0, 0] == 0).all()
