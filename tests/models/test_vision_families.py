import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from hypothesis import given
from hypothesis import strategies as st

from medflax.models import VISION_TOWERS
from medflax.models.vision import positions, swin
from medflax.models.vision.vit import ViT
from medflax.pretrained import hf_swin, hf_vision, open_clip, radfm_vision
from medflax.pretrained.mapping import to_ours, to_theirs
from medflax.utils import UserError
from tests.golden_cases import vision
from tests.golden_cases.base import Case
from tests.golden_cases.vision import apply, build, random_params


@pytest.mark.parametrize(
  "case",
  [
    *(f"clip_vision/clip_{name}" for name in ("full", "vit_gelu", "vit_quickgelu")),
    "clip_vision/clip_vit_with_projection",
    *("siglip_vision/siglip", "vit_vision/dinov2", "vit_vision/vit", "vit_vision/swin"),
    *("open_clip/clip_gelu", "open_clip/clip_quickgelu"),
  ],
)
def test_parity(golden_folder, case):
  folder, variant = case.split("/")
  results = list(vision.CHECKS[folder](Case(golden_folder(folder), variant)))
  assert results
  assert not [result for result in results if not result.passed]


def test_parity_with_radfm(golden_folder):
  results = list(vision.radfm_tower(Case(golden_folder("radfm"), "vit3d")))
  assert len(results) == 8
  assert not [result for result in results if not result.passed]


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
  model = build(ViT, section)
  image = jax.random.uniform(jax.random.key(0), (2, 16, 16, 1))
  params = random_params(model, image, "image")
  volume = jnp.repeat(jnp.repeat(image[:, None], 4, axis=1), 3, axis=-1)
  np.testing.assert_allclose(
    apply(model, params, image, "image"), apply(model, params, volume, "volume"), atol=1e-4
  )
  assert set(params["params"]["blocks"]["query"]) == {"kernel"}
  assert params["params"]["blocks"]["out"]["kernel"].shape == (1, 2, 5, 12)


def test_a_signal_is_one_dimension():
  model = ViT(8, 1, 2, 16, {"signal": dict(size=(12,), patch=(4,), channels=2)})
  x = jax.random.uniform(jax.random.key(0), (2, 12, 2))
  params = random_params(model, x, "signal")
  y = apply(model, params, x, "signal")
  assert y.shape == (2, 3, 8)
  other = apply(model, params, x.at[:, :4].set(0), "signal")
  assert not jnp.allclose(y[:, 2], other[:, 2], atol=1e-4)  # by attention


def test_a_table_serves_another_size():
  spec = dict(size=(8, 8), patch=(4, 4), channels=1)
  common = dict(width=8, depth=1, heads=2, mlp_width=16, class_token=True)
  learned = ViT(inputs={"image": spec}, **common)
  wider = ViT(inputs={"image": spec | dict(size=(8, 16), table=(8, 8))}, **common)
  x = jnp.zeros((1, 8, 8, 1))
  params = random_params(learned, x, "image")
  assert apply(wider, params, jnp.zeros((1, 8, 16, 1)), "image").shape == (1, 8, 8)
  same = ViT(inputs={"image": spec | dict(table=(8, 8))}, **common)
  np.testing.assert_array_equal(apply(same, params, x, "image"), apply(learned, params, x, "image"))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_windows_are_put_back(rows, columns, size):
  x = np.random.default_rng(0).normal(size=(2, rows * size, columns * size, 2)).astype(np.float32)
  windows = swin.to_windows(jnp.asarray(x), size)
  assert windows.shape == (2 * rows * columns, size**2, 2)
  np.testing.assert_array_equal(windows[0], x[0, :size, :size].reshape(-1, 2))
  back = swin.from_windows(windows, size, rows * size, columns * size)
  np.testing.assert_array_equal(back, x)


def test_shifted_windows_do_not_see_around_the_border():
  """Of a grid of 4 rolled by 1, the last window's rows come from the two ends."""
  seen = swin.neighbours(4, 4, 2, 1)
  assert seen.shape == (4, 4, 4)
  assert seen[0].all()
  np.testing.assert_array_equal(seen[3], np.eye(4, dtype=bool))
  np.testing.assert_array_equal(seen[1][0], [True, False, True, False])


def test_swin_takes_grids_that_windows_do_not_divide():
  spec = dict(size=(20, 12), patch=(2, 2), channels=3)  # 10 × 6, then 5 × 3
  model = swin.Swin({"image": spec}, 4, (2, 2), (1, 2), 3)
  x = jax.random.uniform(jax.random.key(0), (1, 20, 12, 3))
  y = apply(model, random_params(model, x, "image"), x, "image")
  assert y.shape == (1, 15, 8)
  assert jnp.isfinite(y).all()
  with pytest.raises(ValueError, match=r"grid of \(5, 3\), less than model.tower.window, 4"):
    random_params(swin.Swin({"image": spec}, 4, (2, 2), (1, 2), 4), x, "image")


@given(st.integers(1, 9), st.integers(1, 20))
def test_interpolation_weighs_rows_evenly(old, new):
  weights = positions.cubic_weights(old, new)
  np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
  np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-5)
  if old == new:
    np.testing.assert_array_equal(weights, np.eye(old))


def test_interpolation_is_pytorchs():
  """Half way between two places, the kernel with a = -0.75; what lies outside is the border."""
  far, near = -3 / 32, 19 / 32
  inside, border = positions.cubic_weights(8, 4)[1], positions.cubic_weights(4, 2)[0]
  np.testing.assert_array_equal(inside, [0, far, near, near, far, 0, 0, 0])
  np.testing.assert_array_equal(border, [far + near, near, far, 0])


def test_tables_of_axes_take_strided_rows():
  np.testing.assert_array_equal(positions.strided_rows(128, 3), [41, 83, 125])
  np.testing.assert_array_equal(positions.strided_rows(16, 16), np.arange(16))
  with pytest.raises(ValueError, match="5 patches along an axis, but its position table has 4"):
    positions.strided_rows(4, 5)


HF = dict(
  model_type="clip_vision_model",
  image_size=30,
  patch_size=8,
  hidden_size=8,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=12,
  hidden_act="quick_gelu",
  layer_norm_eps=1e-5,
)
SWIN = dict(HF, embed_dim=4, depths=(1, 2), num_heads=(1, 2), window_size=2, mlp_ratio=2)
RESNET = open_clip.resnet_config((1, 2), width=4, image_size=32) | dict(projection=6, heads=2)
CLIP = hf_vision.config_from_hf(HF)
SIGLIP = hf_vision.config_from_hf(HF | dict(model_type="siglip_vision_model"))
VIT = hf_vision.config_from_hf(HF | dict(model_type="vit"))
OPEN_CLIP = dict(width=8, layers=2, head_width=4, mlp_ratio=2.0, patch_size=8, image_size=24)
TABLES = {
  "clip": (CLIP | dict(output="class", projection=6), hf_vision.mapping),
  "siglip": (SIGLIP | dict(attention_pool=True), hf_vision.mapping),
  "vit": (VIT | dict(output="class", projection=8, projection_tanh=True), hf_vision.mapping),
  "dinov2": (hf_vision.config_from_hf(HF | dict(model_type="dinov2")), hf_vision.mapping),
  "swin": (hf_swin.config_from_hf(SWIN | dict(image_size=32)), hf_swin.mapping),
  "open_clip": (
    open_clip.config_from_open_clip(dict(vision_cfg=OPEN_CLIP)) | dict(final_norm=True),
    open_clip.mapping,
  ),
  "modified_resnet": (RESNET, open_clip.resnet_mapping),
  "radfm": (
    radfm_vision.config_from_radfm(SMALL, volume_size=(4, 16, 16), image_size=(16, 16)),
    radfm_vision.mapping,
  ),
}


@pytest.mark.parametrize("family", TABLES)
def test_every_leaf_goes_there_and_back(family):
  section, table = TABLES[family]
  spec = section["inputs"]["image"]
  image = jnp.zeros((1, *spec["size"], spec["channels"]))
  params = random_params(build(VISION_TOWERS, section), image, "image")["params"]
  ours = traverse_util.flatten_dict(params, sep="/")
  theirs = to_theirs(table(section), ours)
  back = to_ours(table(section), ours, theirs)
  assert set(back) == set(ours)
  for path, x in back.items():
    np.testing.assert_array_equal(x, ours[path], err_msg=path)


def test_configs_are_read_and_unknown_ones_named():
  section = hf_vision.config_from_hf(dict(model_type="clip", vision_config=HF))
  assert section["inputs"]["image"]["size"] == (24, 24)
  assert hf_vision.mapping(section, "a.")["class_token"].key == "a.embeddings.class_embedding"
  for wrong, message in (
    (dict(model_type="clop_vision_model"), "did you mean 'clip_vision_model'"),
    (dict(hidden_act="gelo"), "did you mean 'gelu'"),
    (dict(use_swiglu_ffn=True), "gated MLP"),
  ):
    with pytest.raises(UserError, match=message):
      hf_vision.config_from_hf(HF | wrong)
