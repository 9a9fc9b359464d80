"""The encoder–decoder as a model of the trainer's: packed rows, prompts, steps."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models import build_model
from medflax.models.image_to_text import ImageToText
from medflax.utils import UserError

LAYERS = dict(depth=2, heads=2, kv_heads=2, head_dim=3, mlp_width=8)
CONFIG = dict(
  **dict(dtype="float32", remat="none", objective=dict(type="image_to_text")),
  tower=dict(type="patches", inputs=dict(image=dict(size=(4, 4), patch=(2, 2), channels=3))),
  lm=dict(
    **dict(type="encoder_decoder", vocab_size=7, width=6, places=4, encoder_layers=LAYERS),
    decoder_layers=LAYERS | dict(buckets=8, max_distance=16),
  ),
)
MEDIA = jax.random.uniform(jax.random.key(1), (1, 2, 4, 4, 3))
TOKENS = jnp.asarray([[0, 3, 1, 4, 0, 5, 2, 6]])
SEGMENTS = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 2]])  # each with the image of its number
ORDINAL = jnp.asarray([[1, 2]])


@functools.cache
def model():
  made = build_model(CONFIG)
  assert isinstance(made, ImageToText)
  inputs = ({"image": MEDIA}, TOKENS, SEGMENTS)
  init = functools.partial(made.init, media_ordinal={"image": ORDINAL})
  params = nn.unbox(jax.jit(init)(jax.random.key(0), *inputs))

  @functools.partial(jax.jit, static_argnames=("method", "length", "branches"))
  def apply(*args, **kwargs) -> Any:
    return made.apply(params, *args, **kwargs)

  return apply


def packed(media=MEDIA, tokens=TOKENS):
  options = dict(media_ordinal={"image": ORDINAL}, segment_ids=SEGMENTS)
  return model()({"image": media}, tokens, SEGMENTS, **options)


def alone(number):
  one = jnp.ones((1, 1), jnp.int32)
  tokens, media = TOKENS[:, 4 * number : 4 * number + 4], MEDIA[:, number : number + 1]
  index = jnp.ones_like(tokens)
  return model()({"image": media}, tokens, index, media_ordinal={"image": one})


def test_a_document_of_a_packed_row_is_as_if_alone():
  logits = packed()
  assert logits.shape == (1, 8, 7) and logits.dtype == jnp.float32
  np.testing.assert_allclose(logits[:, :4], alone(0), atol=1e-5)
  np.testing.assert_allclose(logits[:, 4:], alone(1), atol=1e-5)


def test_text_sees_its_own_image_and_what_is_before_it():
  logits = packed()
  other = packed(media=MEDIA.at[:, 1].set(0.5 * MEDIA[:, 1, ::-1]))
  np.testing.assert_allclose(other[:, :4], logits[:, :4], atol=1e-6)
  assert (jnp.abs(other - logits)[:, 4:].max(-1) > 1e-6).all()
  later = packed(tokens=TOKENS.at[:, 2].set(5))
  changed = jnp.abs(later - logits).max(-1)[0] > 1e-6
  assert changed.tolist() == [False, False, True, True] + [False] * 4


@pytest.mark.parametrize("pad", [0, 2])
def test_steps_make_the_logits_of_the_whole_row(pad):
  apply = model()
  features = apply({"image": MEDIA[:, :1]}, method="embed_media")
  assert features.shape == (1, 1, 4, 6)
  left = lambda x: jnp.pad(jnp.asarray(x)[None], ((0, 0), (pad, 0)))
  ones = left([1, 1])
  logits, read = apply(
    features, left([0, 3]), ones, method="prefill",
    **dict(media_ordinal={"media": jnp.ones((1, 1), jnp.int32)}, media_first=ones),
    **dict(positions=left([0, 1]), segment_ids=ones, length=2),
  )  # fmt: skip
  whole = alone(0)
  np.testing.assert_allclose(logits, whole[:, 1:2], atol=1e-5)
  for i, token in enumerate((1, 4)):
    seen = jnp.arange(2)[None, None] <= i
    logits, read = apply(jnp.asarray([[token]]), read, seen, method="extend")
    np.testing.assert_allclose(logits[:, 0], whole[:, 2 + i], atol=1e-5)


def test_continuations_stand_side_by_side():
  """Two beams in one row: each sees the prompt and its own tokens."""
  apply = model()
  features = apply({"image": MEDIA[:, :1]}, method="embed_media")
  ones, zeros = jnp.ones((1, 2), jnp.int32), jnp.asarray([[0, 1]])
  options = dict(media_ordinal={"media": ones[:, :1]}, media_first=ones, positions=zeros)
  options |= dict(segment_ids=ones, length=2, branches=2)
  _, read = apply(features, TOKENS[:, :2], ones, method="prefill", **options)
  own = jnp.eye(2, 2, dtype=bool)[None]
  _, read = apply(jnp.asarray([[5, 1]]), read, own, method="extend")
  both = jnp.concatenate([own, own], axis=2)
  logits, _ = apply(jnp.asarray([[2, 4]]), read, both, method="extend")
  np.testing.assert_allclose(logits[:, 1], alone(0)[:, 3], atol=1e-5)


def test_without_an_image_it_writes_from_the_text_alone():
  index = jnp.zeros((1, 2), jnp.int32)
  logits = model()({}, TOKENS[:, :2], index, media_ordinal={})
  assert np.isfinite(logits).all()


def test_prompts_share_nothing():
  ones = jnp.ones((1, 1), jnp.int32)
  options = dict(media_ordinal={}, media_first=ones, positions=ones, segment_ids=ones)
  _, read = model()(None, ones, ones, method="prefill", **options)
  with pytest.raises(UserError, match="reads every prompt by itself"):
    model()(None, ones, ones, prefix=read, method="prefill", **options)


@pytest.mark.parametrize("objective", ["next_token", "masked"])
def test_another_objective_is_refused(objective):
  with pytest.raises(UserError, match="need each other"):
    build_model(CONFIG | dict(objective=dict(type=objective)))
