import math

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from medflax.models.vision.vit import ViT, fold_depth, patchify

INPUTS = {
  "image": {"size": (8, 12), "patch": (4, 4), "channels": 3},
  "volume": {"size": (4, 8, 8), "patch": (2, 4, 4), "channels": 1},
}


def vit(**fields):
  return ViT(**dict(width=8, depth=1, heads=2, mlp_width=16, inputs=INPUTS) | fields)


def init(model, kind="image"):
  spec = INPUTS[kind]
  media = jax.random.uniform(jax.random.key(1), (2, *spec["size"], spec["channels"]))
  return nn.unbox(jax.jit(model.init, static_argnums=2)(jax.random.key(0), media, kind)), media


def apply(model, params, media, kind):
  return jax.jit(model.apply, static_argnums=2)(params, media, kind)


@hypothesis.settings(max_examples=20)
@hypothesis.given(
  st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3),
  st.integers(1, 2),
)
def test_patches_are_the_blocks_of_the_grid_in_reading_order(sides, channels):
  grid, patch = zip(*sides, strict=True)
  size = [g * p for g, p in sides]
  x = jnp.arange(2.0 * math.prod(size) * channels).reshape(2, *size, channels)
  patches = patchify(x, patch)
  assert patches.shape == (2, math.prod(grid), math.prod(patch) * channels)
  for i, place in enumerate(np.ndindex(*grid)):
    block = tuple(slice(g * p, (g + 1) * p) for g, p in zip(place, patch, strict=True))
    np.testing.assert_array_equal(patches[:, i], x[:, *block].reshape(2, -1))


@pytest.mark.parametrize("patch", [(3, 4), (4, 5), (2, 2, 2)])
def test_sizes_that_do_not_divide_are_named(patch):
  with pytest.raises(ValueError, match=r"\(8, 12\) does not divide into patches of \("):
    patchify(jnp.zeros((1, 8, 12, 3)), patch)


@pytest.mark.parametrize(("kind", "patches"), [("image", 6), ("volume", 8)])
@pytest.mark.parametrize("class_token", [False, True])
def test_one_token_a_patch(kind, patches, class_token):
  model = vit(class_token=class_token, pre_norm=True)
  params, media = init(model, kind)
  assert apply(model, params, media, kind).shape == (2, patches, 8)
  positions = params["params"][f"position_{kind}"]
  assert positions.shape == (patches + class_token, 8)
  assert ("class_token" in params["params"]) == class_token


def test_the_class_token_takes_part():
  model = vit(class_token=True)
  params, media = init(model)
  other = jax.tree.map(lambda x: x, params)
  other["params"]["class_token"] = params["params"]["class_token"] + 1
  assert not jnp.allclose(apply(model, params, media, "image"), apply(model, other, media, "image"))


def test_both_kinds_share_the_blocks():
  spec = INPUTS["volume"]
  model = vit()
  image, _ = init(model, "image")
  volume, media = init(model, "volume")
  only = {"patch_volume", "position_volume"}
  mixed = image["params"] | {k: v for k, v in volume["params"].items() if k in only}
  assert apply(model, {"params": mixed}, media, "volume").shape == (2, 8, 8)
  assert set(image["params"]) - set(volume["params"]) == {"patch_image", "position_image"}
  assert volume["params"]["patch_volume"]["kernel"].shape[0] == math.prod(spec["patch"])


def test_bytes_are_taken_as_0_to_255():
  model = vit(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
  params, _ = init(model)
  media = np.random.default_rng(0).integers(0, 256, (1, 8, 12, 3), dtype=np.uint8)
  np.testing.assert_allclose(
    apply(model, params, jnp.asarray(media), "image"),
    apply(model, params, jnp.asarray(media / np.float32(255)), "image"),
    atol=1e-5,
  )


@pytest.mark.parametrize(("kind", "patches"), [("image", 6), ("volume", 8)])
def test_a_stem_keeps_the_patches_where_they_are(kind, patches):
  model = vit(stem=(4, 8))
  params, media = init(model, kind)
  assert apply(model, params, media, kind).shape == (2, patches, 8)
  params = params["params"]
  # A volume's third dimension stands among the channels; see `vit.fold_depth`.
  inputs = {"image": 4, "volume": 3 * 4}[kind]
  assert params[f"stem_{kind}_1"]["kernel"].shape == (3, 3, inputs, 8)
  # Of the volumes' patch, depth 2 is halved by the first convolution alone; the rest by both.
  assert params[f"patch_{kind}"]["kernel"].shape == (8, 8)


@pytest.mark.parametrize("depth", [4, 5, 8])
@pytest.mark.parametrize("strides", [(1, 2, 2), (2, 2, 2)])
def test_a_folded_convolution_is_a_3d_one(depth, strides):
  x = jax.random.normal(jax.random.key(0), (2, depth, 6, 4, 3))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 3, 5))
  layout = ("NDHWC", "DHWIO", "NDHWC")
  want = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=layout)
  lead, images = fold_depth(x, strides)
  flat = jnp.moveaxis(kernel, 0, 2).reshape(3, 3, 9, 5)
  layout = ("NHWC", "HWIO", "NHWC")
  got = jax.lax.conv_general_dilated(images, flat, strides[1:], "SAME", dimension_numbers=layout)
  np.testing.assert_allclose(got.reshape(*lead, *got.shape[1:]), want, atol=1e-4)


def test_remat_changes_nothing():
  params, media = init(vit())
  np.testing.assert_allclose(
    apply(vit(), params, media, "image"),
    apply(vit(remat="full"), params, media, "image"),
    atol=1e-6,
  )


def test_a_wrong_size_is_named():
  params, _ = init(vit())
  with pytest.raises(
    ValueError, match=r"image of shape \(8, 8, 3\); model.tower.inputs says \(8, 12"
  ):
    apply(vit(), params, jnp.zeros((1, 8, 8, 3)), "image")
