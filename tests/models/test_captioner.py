import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.models.captioner import build_captioner

SECTION = dict(
  tower=dict(
    **dict(type="vit", width=6, depth=1, heads=2, mlp_width=8, class_token=True),
    **dict(output="tokens", inputs=dict(image=dict(size=(4, 4), patch=(2, 2), channels=3))),
  ),
  text=dict(
    **dict(vocab_size=7, width=8, depth=2, heads=2, mlp_width=8, max_positions=9),
    **dict(activation="gelu", norm_eps=1e-12),
  ),
)
TOKENS = jnp.asarray([[1, 3, 2, 5], [1, 6, 4, 2]])
VISUAL = 5  # four patches and the class


@functools.cache
def model(frames):
  made = build_captioner(SECTION | dict(frames=frames))
  media = jax.random.uniform(jax.random.key(1), (2, max(frames, 1), 4, 4, 3))
  return made, nn.unbox(jax.jit(made.init)(jax.random.key(0), media, TOKENS)), media


@pytest.mark.parametrize("frames", [0, 2])
def test_text_sees_the_image_and_what_is_before_it(frames):
  made, params, media = model(frames)
  visual = max(frames, 1) * VISUAL
  logits, cache = made.apply(params, media, TOKENS)
  assert logits.shape == (2, visual + 4, 7) and cache is None
  later, _ = made.apply(params, media, TOKENS.at[:, 2].set(0))
  np.testing.assert_allclose(later[:, : visual + 2], logits[:, : visual + 2], atol=1e-6)
  assert (jnp.abs(later - logits)[:, visual + 2 :].max(-1) > 1e-5).all()
  other, _ = made.apply(params, media.at[:, -1, 0, 0].set(0), TOKENS)
  assert (jnp.abs(other - logits).max(-1) > 1e-6).all()


def test_padding_is_not_seen():
  made, params, media = model(0)
  seen = jnp.asarray([[True] * 4, [True, True, False, False]])
  short, _ = made.apply(params, media, TOKENS[:, :2])
  padded, _ = made.apply(params, media, TOKENS, seen)
  np.testing.assert_allclose(padded[1, : VISUAL + 2], short[1], atol=1e-5)


def test_frames_are_told_apart():
  made, params, media = model(2)
  table = params["params"]["frame_embedding"]
  assert table.shape == (2, 6)
  moved = {"params": params["params"] | {"frame_embedding": table.at[1].set(1)}}
  plain, swapped = (made.apply(moved, x, TOKENS)[0] for x in (media, media[:, ::-1]))
  assert not np.allclose(plain[:, -1], swapped[:, -1], atol=1e-5)


@pytest.mark.parametrize("frames", [0, 2])
def test_decoding_is_the_whole_row(frames):
  made, params, media = model(frames)
  whole, _ = made.apply(params, media, TOKENS)
  first, cache = made.apply(params, media, TOKENS[:, :2], cache_size=4)
  np.testing.assert_allclose(first, whole[:, :-2], atol=1e-5)
  for i in (2, 3):
    token = TOKENS[:, i : i + 1]
    one, cache = made.apply(params, token, cache, method="decode_step")
    np.testing.assert_allclose(one[:, 0], whole[:, i - 4], atol=1e-5)
