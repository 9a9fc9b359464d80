import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.data.documents import IMAGE, VOLUME, Media
from medflax.data.encode import MEDIA_RULES, RowShape, collate
from medflax.models import build_model, model_inputs

SHAPE = {IMAGE: (4, 4, 3), VOLUME: (2, 4, 4, 1)}
LM = dict(vocab_size=11, width=8, depth=2, heads=4, kv_heads=2, mlp_width=8)
CONFIG = dict(
  tower=dict(
    type="vit",
    inputs={
      IMAGE: dict(size=(4, 4), patch=(4, 2), channels=3),
      VOLUME: dict(size=(2, 4, 4), patch=(2, 4, 2), channels=1),
    },
    **dict(width=8, depth=1, heads=2, mlp_width=8),
  ),
  connector=dict(type="perceiver", num_latents=2, depth=1, heads=2, head_dim=4),
  fusion=dict(type="gated_xattn", xattn_every=1, heads=2, head_dim=4),
  lm=dict(type="decoder", **LM),
  dtype="float32",
  remat="none",
)
MODEL = build_model(CONFIG)


def document(seed, kinds, *, rule="prev_image", texts=2):
  """An encoded document: one token of text, then each media item with `texts` tokens after."""
  rng = np.random.default_rng(seed)
  is_media = np.array([False, *([True] + [False] * texts) * len(kinds)])
  index, first = MEDIA_RULES[rule](is_media)
  media = [Media(rng.integers(0, 256, SHAPE[k], dtype=np.uint8), k) for k in kinds]
  tokens = rng.integers(1, 11, len(is_media)).astype(np.int32)
  return dict(
    tokens=tokens, loss_mask=np.ones(len(tokens), np.float32), media=media,
    media_index=index, media_first=first, dropped_chunks=0, cut_tokens=0,
  )  # fmt: skip


def batch(*rows, length=12, slots=None, left_pad=False):
  slots = {IMAGE: 3, VOLUME: 2} if slots is None else slots
  shape = RowShape(length, {kind: (n, *SHAPE[kind]) for kind, n in slots.items()})
  out = collate(list(rows), shape, 0, left_pad=left_pad)
  return {key: jnp.asarray(x) for key, x in out.items()}


@pytest.fixture(scope="module")
def params():
  """Weights with open gates, and everything that starts at zero moved off it."""
  args, kwargs = model_inputs(batch([]))
  params = jax.jit(MODEL.init)(jax.random.key(0), *args, **kwargs)
  leaves, tree = jax.tree.flatten(nn.unbox(params))
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [w + 0.3 * jax.random.normal(k, w.shape) for w, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(tree, leaves)


@jax.jit
def _logits(params, args, kwargs):
  return MODEL.apply(params, *args, **kwargs)


def logits(params, inputs):
  return np.asarray(_logits(params, *model_inputs(inputs)))


def close(one, other, atol=1e-5):
  np.testing.assert_allclose(one, other, atol=atol)


def test_closed_gates_leave_the_language_model_alone(params):
  closed = jax.tree_util.tree_map_with_path(
    lambda path, w: jnp.zeros_like(w) if path[-1].key.endswith("_gate") else w, params
  )
  one = batch([document(0, [IMAGE, VOLUME])])
  other = one | {f"media/{k}": 255 - one[f"media/{k}"] for k in SHAPE}
  np.testing.assert_array_equal(logits(closed, one), logits(closed, other))
  assert not np.allclose(logits(params, one), logits(params, other), atol=1e-2)


@pytest.mark.parametrize("rule", MEDIA_RULES)
def test_a_document_is_the_same_when_packed(params, rule):
  first, second = document(0, [IMAGE], rule=rule), document(1, [IMAGE, VOLUME], rule=rule)
  packed = logits(params, batch([first, second]))[0]
  close(packed[:4], logits(params, batch([first]))[0, :4])
  close(packed[4:11], logits(params, batch([second]))[0, :7])


def test_each_token_sees_the_media_before_it(params):
  """Kinds interleave in reading order, whatever arrays they come in."""
  row = document(0, [VOLUME, IMAGE, IMAGE])
  inputs = batch([row])
  before = logits(params, inputs)[0]
  for kind, slot, start, stop in ((VOLUME, 0, 1, 10), (IMAGE, 0, 4, 10), (IMAGE, 1, 7, 10)):
    media = inputs[f"media/{kind}"]
    changed = inputs | {f"media/{kind}": media.at[0, slot].set(255 - media[0, slot])}
    same = np.isclose(before, logits(params, changed)[0], atol=1e-6).all(-1)
    assert same[:start].all()
    assert not same[start : start + 3].any()
    assert stop == len(row["tokens"])


def test_swapped_slots_with_their_ordinals_are_the_same(params):
  one = batch([document(0, [IMAGE, IMAGE, VOLUME])])
  swap = jnp.array([1, 0, 2])
  other = one | {key: one[key][:, swap] for key in ("media/image", "media_ordinal/image")}
  close(logits(params, one), logits(params, other))
  mixed = one | {"media/image": one["media/image"][:, swap]}
  assert not np.allclose(logits(params, one), logits(params, mixed), atol=1e-2)


def test_blank_slots_are_never_seen(params):
  row = document(0, [IMAGE, VOLUME])
  one = batch([row])
  filled = one | {
    f"media/{k}": jnp.where(
      one[f"media_ordinal/{k}"].reshape(1, -1, *(1,) * len(SHAPE[k])) > 0, one[f"media/{k}"], 200
    )
    for k in SHAPE
  }
  close(logits(params, one), logits(params, filled))
  tokens = len(row["tokens"])
  fewer = logits(params, batch([row], slots={IMAGE: 1, VOLUME: 1}))
  close(logits(params, one)[:, :tokens], fewer[:, :tokens])


def test_text_alone(params):
  row = document(0, [])
  assert len(row["tokens"]) == 1
  with_slots = logits(params, batch([row]))
  without = logits(params, batch([row], slots={}))
  assert np.isfinite(without).all()
  close(with_slots[:, :1], without[:, :1])


def test_defaults_are_one_document_and_the_one_image_rules(params):
  inputs = batch([document(0, [IMAGE, VOLUME, IMAGE])], length=10)
  args, kwargs = model_inputs(inputs)
  plain = _logits(params, args, {"media_ordinal": kwargs["media_ordinal"]})
  close(np.asarray(plain), logits(params, inputs))


@pytest.mark.parametrize("slots", [{IMAGE: 3, VOLUME: 2}, {}])
@pytest.mark.parametrize("rule", ["prev_image", "all_prev"])
def test_prefill_and_decoding_give_the_logits_of_the_whole(params, rule, slots):
  kinds = ([IMAGE, VOLUME], [IMAGE]) if slots else ([], [])
  rows = [document(seed, k, rule=rule, texts=3) for seed, k in enumerate(kinds)]
  if not slots:
    for row in rows:  # longer than its one token
      row["tokens"], row["loss_mask"] = np.arange(1, 6, dtype=np.int32), np.ones(5, np.float32)
      row["media_index"] = row["media_first"] = np.zeros(5, np.int32)
  whole = [logits(params, batch([row], slots=slots))[0, : len(row["tokens"])] for row in rows]

  keys = ("tokens", "loss_mask", "media_index", "media_first")
  prompts = [[row | {key: row[key][:-2] for key in keys}] for row in rows]
  args, kwargs = model_inputs(batch(*prompts, length=8, slots=slots, left_pad=True))
  media, tokens, media_index = args

  @jax.jit
  def prefill(params):
    features = MODEL.apply(params, media, method="embed_media")
    return MODEL.apply(params, features, tokens, media_index, **kwargs, length=2, method="prefill")

  extend = jax.jit(lambda p, *args: MODEL.apply(p, *args, method="extend"))
  out, read = prefill(params)
  assert out.shape == (2, 1, 11)
  for step in (-3, -2, -1):
    for logit, row in zip(np.asarray(out)[:, 0], whole, strict=True):
      close(logit, row[step], atol=2e-5)
    if step < -1:
      token = jnp.array([row["tokens"][step + 1 : step + 2 or None] for row in rows])
      out, read = extend(params, token, read, jnp.arange(2)[None, None] <= step + 3)


def test_gradients_are_finite_and_reach_every_part(params):
  inputs = batch([document(0, [IMAGE, VOLUME])], [])
  args, kwargs = model_inputs(inputs)
  loss = lambda p: (MODEL.apply(p, *args, **kwargs) ** 2).mean()
  grads = jax.jit(jax.grad(loss))(params)
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    assert jnp.isfinite(g).all(), path
    assert (g != 0).any(), path
