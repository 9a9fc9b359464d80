"""LLaVA's folders: Hugging Face's names of several versions, the original's, CLIP apart."""

import numpy as np
import pytest

from tests.pretrained.systems import official

VISION = dict(
  model_type="clip_vision_model",
  hidden_size=64,
  intermediate_size=5,
  num_hidden_layers=2,
  num_attention_heads=1,
  image_size=8,
  patch_size=4,
  projection_dim=6,
)
TEXT = dict(
  model_type="mistral",
  vocab_size=official.VOCAB,
  hidden_size=official.WIDTH,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
  intermediate_size=official.MLP,
  rms_norm_eps=1e-5,
  rope_theta=1e6,
  sliding_window=None,
)
HF = dict(model_type="llava", text_config=TEXT, vision_config=VISION, vision_feature_layer=-2)
ORIGINAL = TEXT | dict(
  model_type="llava_mistral",
  mm_projector_type="mlp2x_gelu",
  mm_vision_select_layer=-2,
  mm_vision_tower="openai/clip-vit-large-patch14-336",
)
# Of each form: config.json, the tower's prefix, the projector's maps, prefixes of model and head.
HF_MAPS = ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2")
MAPS = ("model.mm_projector.0", "model.mm_projector.2")
FORMS = {
  "transformers 5": (
    *(HF, "model.vision_tower.", [f"model.{name}" for name in HF_MAPS]),
    *("model.language_model.", ""),
  ),
  "transformers 4": (
    *(HF, "vision_tower.vision_model.", HF_MAPS),
    *("language_model.model.", "language_model."),
  ),
  "original": (ORIGINAL, "model.vision_tower.vision_tower.vision_model.", MAPS, "model.", ""),
  "tower apart": (ORIGINAL, None, MAPS, "model.", ""),
}


def shapes(form):
  _, tower, maps, model, head = FORMS[form]
  found = official.llama(model, head, kv=4, buffers=False)
  found |= official.linear(maps[0], 7, 64) | official.linear(maps[1], official.WIDTH, 7)
  return found | (official.clip(tower) if tower else {})


def clip_folder(path):
  hf = VISION | dict(hidden_act="quick_gelu", layer_norm_eps=1e-5)
  return official.save(path, official.random(official.clip("vision_model.")), hf)


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back(run_import, tmp_path, form):
  tensors, hf = official.random(shapes(form)), FORMS[form][0]
  flags = ["--vision", clip_folder(tmp_path / "clip")] if form == "tower apart" else []
  ours = run_import("llava_med", official.save(tmp_path / "model", tensors, hf), *flags)
  sections = ours.sections
  assert sections["tower"]["depth"] == 1  # the last layer but one
  assert sections["tower"]["final_norm"] is False
  assert sections["tower"]["output"] == "patches"
  assert sections["tower"]["activation"] == "quick_gelu"
  connector = sections["connector"]
  assert (connector["hidden"], connector["out_width"]) == (7, official.WIDTH)
  assert (sections["lm"]["kv_heads"], sections["lm"]["rope_theta"]) == (1, 1e6)
  assert ours.weights["tower/blocks/query/kernel"].shape == (1, 64, 1, 64)
  tower = FORMS[form][1]
  unused = [f"{tower}{name}" for name in ("encoder.layers.1.", "post_layernorm")] if tower else []
  ours.assert_goes_back(tensors, but=unused)


def test_all_forms_hold_the_same_model(run_import, tmp_path):
  rng = np.random.default_rng(1)
  models = []
  values = {}
  for form in ("transformers 5", "transformers 4", "original"):
    _, tower, maps, model, head = FORMS[form]
    names = {"tower.": tower, "map0.": f"{maps[0]}.", "map1.": f"{maps[1]}.", "lm.": model}
    tensors = {}
    for key, shape in shapes(form).items():
      common = next((a + key.removeprefix(b) for a, b in names.items() if key.startswith(b)), key)
      common = common.removeprefix(head) if key.endswith("lm_head.weight") else common
      if common not in values:
        values[common] = rng.normal(size=shape).astype(np.float32)
      tensors[key] = values[common]
    path = official.save(tmp_path / form.replace(" ", "_"), tensors, FORMS[form][0])
    models.append(run_import("llava", path).weights)
  first, *others = models
  for other in others:
    assert other.keys() == first.keys()
    for path, x in other.items():
      np.testing.assert_array_equal(x, first[path], err_msg=path)


def test_a_tower_must_come_from_somewhere(refused, tmp_path):
  folder = official.save(tmp_path / "model", official.random(shapes("tower apart")), ORIGINAL)
  assert "the checkpoint has no tower: give --vision as well" in refused("llava", folder)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    (dict(mm_projector_type="linear"), "mm_projector_type = 'linear' is not supported"),
    (dict(mm_vision_select_layer=[-2, -5]), "vision_feature_layer = [-2, -5] is not supported"),
    (dict(mm_vision_select_feature="cls"), "feature of config.json"),
  ],
)
def test_other_kinds_are_refused(refused, tmp_path, changes, told):
  tensors = official.random(shapes("original"))
  folder = official.save(tmp_path / "model", tensors, ORIGINAL | changes)
  assert told in refused("llava", folder)
