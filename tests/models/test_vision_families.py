import json

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from medflax.models.vision import positions
from medflax.models.vision.vit import ViT
from medflax.pretrained import hf_vision, open_clip, radfm_vision
from medflax.utils import UserError
from tests.foreign import agrees, apply, imported, random_params

AS_IS = dict(mean=(0.0,), std=(1.0,))  # golden inputs are normalised


def tower(section):
  return ViT(**{name: value for name, value in section.items() if name != "type"})


def media(nchw):
  """PyTorch's layout to ours."""
  return jnp.moveaxis(jnp.asarray(nchw), 1, -1)


def encode(model, params, x, kind="image"):
  return apply(model, params, x, kind)


def features(section, mapping, theirs, x, ignore, kind="image"):
  model = tower(section)
  return apply(model, imported(mapping, model, theirs, x, kind, ignore=ignore), x, kind)


# For each family: what its golden outputs are, as changes of the section.
LAST = dict(output="tokens")
RAW = dict(output="tokens", final_norm=False)
HF = {
  "clip_vision/clip_vit_gelu": dict(last_hidden_state=RAW, pooled=dict(output="class")),
  "clip_vision/clip_vit_quickgelu": dict(last_hidden_state=RAW, pooled=dict(output="class")),
  "clip_vision/clip_vit_with_projection": dict(
    last_hidden_state=RAW, image_embeds=dict(output="class", projection="projection_dim")
  ),
  "clip_vision/clip_full": dict(image_embeds=dict(output="class", projection="projection_dim")),
  "siglip_vision/siglip": dict(last_hidden_state=LAST, pooled=dict(attention_pool=True)),
  "vit_vision/vit": dict(
    last_hidden_state=LAST,
    pooled=dict(output="class", projection="hidden_size", projection_tanh=True),
  ),
  "vit_vision/dinov2": dict(last_hidden_state=LAST, pooled=dict(output="class")),
}


@pytest.mark.parametrize("variant", HF)
def test_parity_with_hugging_face(golden, golden_folder, variant):
  module, name = variant.split("/")
  theirs, arrays, _ = golden(module, name)
  hf = json.loads((golden_folder(module) / f"{name}.config.json").read_text())
  section = hf_vision.config_from_hf(hf) | AS_IS
  x = media(arrays["in.pixel_values"])
  wanted = dict(HF[variant])
  if "out.penultimate" in arrays:
    wanted["penultimate"] = RAW | dict(depth=section["depth"] - 1)
  for output, changes in wanted.items():
    changed = section | changes
    if isinstance(changed.get("projection"), str):
      changed["projection"] = hf.get("vision_config", hf)[changed["projection"]]
    ignore = hf_vision.unused(changed)
    got = features(changed, hf_vision.mapping(changed), theirs, x, ignore)
    if name == "clip_full":  # our retrieval normalises where it compares
      got = got / jnp.linalg.norm(got, axis=-1, keepdims=True)
    want = arrays[f"out.{output}"]
    agrees(got if want.ndim == 3 else got[:, 0], want)


@pytest.mark.parametrize("variant", ["clip_gelu", "clip_quickgelu"])
def test_parity_with_open_clip(golden, variant):
  theirs, arrays, config = golden("open_clip", variant)
  vision = dict(config, image_size=config["image"], patch_size=config["patch"])
  section = open_clip.config_from_open_clip(
    dict(vision_cfg=vision, quick_gelu=config["quick_gelu"])
  )
  x = media(arrays["in.pixels"])
  pooled = dict(output="class", final_norm=True, projection=config["embed_dim"])
  for output, changes in {
    "out.tokens": {},
    "alt.tokens_open_clip330": dict(final_norm=True),
    "out.pooled": pooled,
  }.items():
    changed = section | AS_IS | changes
    left_out = r"visual\.(proj|ln_post\..*)|" + open_clip.TEXT
    got = features(changed, open_clip.mapping(changed), theirs, x, left_out)
    agrees(got[:, 0] if output == "out.pooled" else got, arrays[output])


@pytest.mark.parametrize("case", ["full", "half_depth", "small", "aniso"])
def test_parity_with_radfm(golden, case):
  theirs, arrays, config = golden("radfm", "vit3d")
  x = jnp.asarray(arrays[f"in.{case}"]).transpose(0, 4, 2, 3, 1)  # [b, c, h, w, d]
  section = radfm_vision.config_from_radfm(config, volume_size=x.shape[1:4])
  mapping = radfm_vision.mapping(section, prefix="")
  got = features(section, mapping, theirs, x, "", kind="volume")
  depth, height, width = (s // p for s, p in zip(x.shape[1:4], (4, 8, 8), strict=True))
  got = got.reshape(-1, depth, height, width, got.shape[-1]).transpose(0, 2, 3, 1, 4)
  agrees(got.reshape(len(x), -1, got.shape[-1]), arrays[f"out.y_{case}"])


SMALL = dict(
  image_size=16,
  image_patch_size=8,
  frames=8,
  frame_patch_size=4,
  **dict(dim=12, depth=1, heads=2, mlp_dim=16, dim_head=5),
)


def test_an_image_is_a_thin_volume():
  """Whatever kind it comes as; the weights, and grey, are the same."""
  section = radfm_vision.config_from_radfm(SMALL, volume_size=(4, 16, 16), image_size=(16, 16))
  model = tower(section)
  image = jax.random.uniform(jax.random.key(0), (2, 16, 16, 1))
  params = random_params(model, image, "image")
  volume = jnp.repeat(jnp.repeat(image[:, None], 4, axis=1), 3, axis=-1)
  np.testing.assert_allclose(
    encode(model, params, image), encode(model, params, volume, "volume"), atol=1e-5
  )
  assert set(params["params"]["blocks"]["query"]) == {"kernel"}
  assert params["params"]["blocks"]["out"]["kernel"].shape == (1, 2, 5, 12)


def test_a_signal_is_one_dimension():
  model = ViT(8, 1, 2, 16, {"signal": dict(size=(12,), patch=(4,), channels=2)})
  x = jax.random.uniform(jax.random.key(0), (2, 12, 2))
  params = random_params(model, x, "signal")
  y = encode(model, params, x, "signal")
  assert y.shape == (2, 3, 8)
  other = encode(model, params, x.at[:, :4].set(0), "signal")
  assert not jnp.allclose(y[:, 2], other[:, 2], atol=1e-4)  # by attention


def test_a_table_serves_another_size():
  spec = dict(size=(8, 8), patch=(4, 4), channels=1)
  common = dict(width=8, depth=1, heads=2, mlp_width=16, class_token=True)
  learned = ViT(inputs={"image": spec}, **common)
  wider = ViT(inputs={"image": spec | dict(size=(8, 16), table=(8, 8))}, **common)
  x = jnp.zeros((1, 8, 8, 1))
  params = random_params(learned, x, "image")
  assert encode(wider, params, jnp.zeros((1, 8, 16, 1))).shape == (1, 8, 8)
  same = ViT(inputs={"image": spec | dict(table=(8, 8))}, **common)
  np.testing.assert_array_equal(encode(same, params, x), encode(learned, params, x))


@hypothesis.given(st.integers(1, 9), st.integers(1, 20))
def test_interpolation_weighs_rows_evenly(old, new):
  weights = positions.cubic_weights(old, new)
  np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
  np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-5)
  if old == new:
    np.testing.assert_array_equal(weights, np.eye(old))


def test_interpolation_is_pytorchs():
  """Half way between two places, the kernel with a = -0.75; what lies outside is the border."""
  far, near = -3 / 32, 19 / 32
  np.testing.assert_array_equal(
    positions.cubic_weights(8, 4)[1], [0, far, near, near, far, 0, 0, 0]
  )
  np.testing.assert_array_equal(positions.cubic_weights(4, 2)[0], [far + near, near, far, 0])


def test_tables_of_axes_take_strided_rows():
  np.testing.assert_array_equal(positions.strided_rows(128, 3), [41, 83, 125])
  np.testing.assert_array_equal(positions.strided_rows(16, 16), np.arange(16))
  with pytest.raises(ValueError, match="5 patches along an axis, but its position table has 4"):
    positions.strided_rows(4, 5)


def test_configs_are_read_and_unknown_ones_named():
  hf = dict(
    model_type="clip_vision_model",
    image_size=30,
    patch_size=8,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
  )
  section = hf_vision.config_from_hf(dict(model_type="clip", vision_config=hf))
  assert section["inputs"]["image"]["size"] == (24, 24)
  assert hf_vision.mapping(section, "a.")["class_token"].key == "a.embeddings.class_embedding"
  for wrong, message in (
    (dict(model_type="clop_vision_model"), "did you mean 'clip_vision_model'"),
    (dict(hidden_act="gelo"), "did you mean 'gelu'"),
    (dict(use_swiglu_ffn=True), "gated MLP"),
  ):
    with pytest.raises(UserError, match=message):
      hf_vision.config_from_hf(hf | wrong)
