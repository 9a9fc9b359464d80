"""Media between the tokens, and models that fill masks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.data.documents import IMAGE, VOLUME, Media
from medflax.data.encode import RowShape, collate
from medflax.inference.decode import generate
from medflax.models import build_model, model_inputs
from medflax.models.fusion.inline import soft_tokens

SHAPE = {IMAGE: (4, 4, 3), VOLUME: (2, 4, 4, 1)}
LATENTS, MASK_ID = 2, 10
CONFIG = dict(
  tower=dict(
    type="vit",
    inputs={
      IMAGE: dict(size=(4, 4), patch=(4, 2), channels=3),
      VOLUME: dict(size=(2, 4, 4), patch=(2, 4, 2), channels=1),
    },
    **dict(width=8, depth=1, heads=2, mlp_width=8),
  ),
  connector=dict(type="perceiver", num_latents=LATENTS, depth=1, heads=2, head_dim=4),
  lm=dict(
    type="decoder",
    vocab_size=11,
    width=8,
    depth=2,
    heads=4,
    kv_heads=2,
    mlp_width=8,
    windows=(3, 0),
  ),
  dtype="float32",
  remat="none",
)
FORMS = {
  "inline": dict(fusion=dict(type="inline")),
  "both ways": dict(fusion=dict(type="inline", bidirectional=True)),
  "masked": dict(
    fusion=dict(type="fused_head", width=8, depth=2, heads=2, mlp_width=8),
    objective=dict(type="masked", mask_id=MASK_ID),
  ),
}
SLOTS = {IMAGE: 3, VOLUME: 2}


@functools.cache
def make(form):
  """The model and weights none of which is zero."""
  model = build_model(CONFIG | FORMS[form])
  args, kwargs = model_inputs(batch([]))
  flat, tree = jax.tree.flatten(
    nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *args, **kwargs))
  )
  rng = np.random.default_rng(0)
  leaves = [jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32) for x in flat]
  return model, tree.unflatten(leaves)


@functools.cache
def applied(form, method="__call__"):
  """A method of the model on its weights, compiled once and in a hurry."""
  model, params = make(form)
  apply = lambda args, kwargs: model.apply(params, *args, **kwargs, method=method)
  return jax.jit(apply, compiler_options={"xla_backend_optimization_level": 0})


def document(seed, kinds, *, texts=3):
  """Text, and after it each media item with `texts` tokens; every token sees all media."""
  rng = np.random.default_rng(seed)
  soft = np.concatenate([[0], *([*range(1, LATENTS + 1), *[0] * texts] for _ in kinds)])
  ordinal = np.cumsum(soft == 1)
  n = len(soft)
  media = [Media(rng.integers(0, 256, SHAPE[k], dtype=np.uint8), k) for k in kinds]
  whole = (soft == 0) * len(kinds)
  return dict(
    tokens=rng.integers(1, 10, n).astype(np.int32),
    loss_mask=np.zeros(n, np.float32),
    media_index=np.where(soft > 0, ordinal, whole).astype(np.int32),
    media_first=np.where(soft > 0, ordinal, np.minimum(whole, 1)).astype(np.int32),
    soft_index=soft.astype(np.int32),
    **dict(media=media, dropped_chunks=0, cut_tokens=0),
  )


def batch(*rows, length=18, left_pad=False):
  shape = RowShape(length, {k: (n, *SHAPE[k]) for k, n in SLOTS.items()}, inline=True)
  out = collate(list(rows), shape, 0, left_pad=left_pad)
  return {key: jnp.asarray(x) for key, x in out.items()}


def logits(form, inputs):
  return np.asarray(applied(form)(*model_inputs(inputs)))


def test_features_stand_at_their_tokens():
  features = jnp.arange(2 * 3 * LATENTS).reshape(1, 6, LATENTS, 1).astype(jnp.float32)
  ordinal = {IMAGE: jnp.array([[1, 3, 0, 0]]), VOLUME: jnp.array([[2, 0]])}
  index = jnp.array([[1, 1, 1, 2, 2, 3, 3, 4]])
  soft = soft_tokens(features, index, jnp.array([[0, 1, 2, 1, 2, 1, 2, 1]]), ordinal)
  assert soft.ordinal.tolist() == [[0, 1, 1, 2, 2, 3, 3, 0]]  # no media is the fourth
  assert soft.features[0, 1:7, 0].tolist() == [0, 1, 8, 9, 2, 3]
  same = np.asarray(soft.same_media()[0])
  assert same.sum() == 3 * LATENTS**2
  assert same[1, 2] and same[2, 1] and not same[2, 3] and not same[0].any()


@pytest.mark.parametrize("form", FORMS)
def test_documents_of_a_row_do_not_see_each_other(form):
  one, other = document(0, [IMAGE, VOLUME], texts=2), document(1, [IMAGE], texts=4)
  packed = logits(form, batch([one, other]))[0]
  alone = logits(form, batch([one], [other]))
  ends = len(one["tokens"]), len(one["tokens"]) + len(other["tokens"])
  np.testing.assert_allclose(packed[: ends[0]], alone[0, : ends[0]], atol=2e-5)
  np.testing.assert_allclose(packed[ends[0] : ends[1]], alone[1, : ends[1] - ends[0]], atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_text_depends_on_the_media_and_not_on_what_their_tokens_are(form):
  row = document(0, [IMAGE, VOLUME], texts=2)
  inputs, before = batch([row]), logits(form, batch([row]))
  blank = inputs | {f"media/{IMAGE}": jnp.zeros_like(inputs[f"media/{IMAGE}"])}
  assert np.abs(logits(form, blank) - before)[0, len(row["tokens"]) - 1].max() > 1e-4
  if form != "masked":  # there is no place for media in its text
    others = jnp.where(inputs["soft_index"] > 0, 5, inputs["tokens"])
    np.testing.assert_array_equal(logits(form, inputs | {"tokens": others}), before)


def test_only_the_tokens_of_one_media_see_forward():
  row = document(0, [IMAGE, IMAGE], texts=2)
  args, kwargs = model_inputs(batch([row]))

  def first_places(slot, form):
    """By how much the media's last latent changes what its first one becomes."""
    features = applied(form, "embed_media")(args[:1], {})
    run = lambda f: applied(form, "_predict")((f, *args[1:]), kwargs)
    changed = features.at[:, slot, -1].add(1.0)
    return np.abs(run(changed) - run(features))[0].max(-1) > 1e-6

  assert first_places(0, "inline").argmax() == 2  # BOS, first latent, last latent
  assert first_places(0, "both ways").argmax() == 1
  assert first_places(1, "both ways").argmax() == 1 + LATENTS + 2


@pytest.mark.parametrize("form", ["inline", "both ways"])
def test_generation_continues_as_the_whole_rows_do(form):
  rows = [document(0, [IMAGE, VOLUME], texts=2), document(1, [IMAGE], texts=1)]
  inputs = batch(*([row] for row in rows), left_pad=True)
  generated = _generate(form, inputs, 4)
  for row, tokens in zip(rows, generated, strict=True):
    for token in tokens:
      out = logits(form, batch([row]))[0, len(row["tokens"]) - 1]
      assert out.argmax() == token
      keys = ("tokens", "media_index", "media_first", "soft_index", "loss_mask")
      row = row | {key: np.append(row[key], row[key][-1:]) for key in keys}
      row["tokens"][-1] = token


def _generate(form, inputs, num):
  model, params = make(form)
  features = applied(form, "embed_media")(model_inputs(inputs)[0][:1], {})
  ordinal = [inputs[f"media_ordinal/{kind}"] for kind in sorted(SLOTS)]
  prompts = {key: x for key, x in inputs.items() if "/" not in key}
  prompts |= {"features": features, "media_ordinal": jnp.concatenate(ordinal, axis=1)}
  stop = jnp.zeros(0, jnp.int32)
  out = generate(model, params["params"], prompts, max_new_tokens=num, stop_ids=stop, pad_id=0)
  return np.asarray(out.tokens)


def test_a_masked_model_fills_all_places_at_once_and_hides_its_targets():
  row = document(0, [IMAGE])
  filled = _generate("masked", batch([row], left_pad=True), 3)[0]
  keys = ("media_index", "media_first", "soft_index", "loss_mask")
  longer = row | {key: np.append(row[key], row[key][-1:].repeat(3)) for key in keys}
  longer["tokens"] = np.append(row["tokens"], [MASK_ID] * 3).astype(np.int32)
  assert logits("masked", batch([longer]))[0, len(row["tokens"]) :][:3].argmax(-1).tolist() == (
    filled.tolist()
  )

  longer["loss_mask"][-3:] = 1
  answered = longer | {"tokens": np.append(row["tokens"], [3, 1, 4]).astype(np.int32)}
  hidden = make("masked")[0].hide(batch([answered]))
  np.testing.assert_array_equal(hidden["tokens"], batch([longer])["tokens"])


def test_text_alone_needs_neither_tower_nor_fusion():
  model = build_model({key: CONFIG[key] for key in ("lm", "dtype", "remat")})
  tokens = jnp.ones((1, 4), jnp.int32)
  init = functools.partial(model.init, media_ordinal={})
  params = jax.eval_shape(init, jax.random.key(0), {}, tokens, 0 * tokens)
  assert set(params["params"]) == {"lm"}
  with pytest.raises(ValueError, match="image media for a model without a tower"):
    model.apply({}, {IMAGE: jnp.zeros((1, 1, 4, 4, 3))}, method="embed_media")
