"""Gemma 3 with images: names of several versions of transformers, published defaults."""

import pytest

from medflax.pretrained.systems import gemma3_vlm
from medflax.utils import UserError
from tests.pretrained.systems import official

# What the published files say, and no more.
MEDGEMMA = dict(
  model_type="gemma3",
  mm_tokens_per_image=256,
  text_config=dict(
    model_type="gemma3_text",
    hidden_size=2560,
    intermediate_size=10_240,
    num_hidden_layers=34,
    rope_scaling=dict(factor=8.0, rope_type="linear"),
    sliding_window=1024,
  ),
  vision_config=dict(
    model_type="siglip_vision_model",
    hidden_size=1152,
    image_size=896,
    intermediate_size=4304,
    num_attention_heads=16,
    num_hidden_layers=27,
    patch_size=14,
    vision_use_head=False,
  ),
)
DIM = 6
TINY = dict(
  model_type="gemma3",
  mm_tokens_per_image=4,
  text_config=dict(
    model_type="gemma3_text",
    vocab_size=official.VOCAB,
    hidden_size=official.WIDTH,
    intermediate_size=official.MLP,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    sliding_window=3,
  ),
  vision_config=dict(
    model_type="siglip_vision_model",
    hidden_size=DIM,
    image_size=16,
    intermediate_size=5,
    num_attention_heads=2,
    num_hidden_layers=1,
    patch_size=4,
  ),
)
# Of each version: before the tower, the projector, the model and the head.
FORMS = {
  "5": ("model.vision_tower.", "model.multi_modal_projector.", "model.language_model.", ""),
  "4.52": (
    "model.vision_tower.vision_model.",
    "model.multi_modal_projector.",
    "model.language_model.",
    "",
  ),
  "4.50": (
    "vision_tower.vision_model.",
    "multi_modal_projector.",
    "language_model.model.",
    "language_model.",
  ),
}


def shapes(form):
  tower, projector, model, head = FORMS[form]
  found = official.llama(model, head, kv=4, buffers=False)
  for i in range(2):
    layer = f"{model}layers.{i}."
    found |= {f"{layer}self_attn.{x}_norm.weight": (4,) for x in "qk"}
    found |= {
      f"{layer}{x}_feedforward_layernorm.weight": (official.WIDTH,) for x in ("pre", "post")
    }
  found |= {
    f"{projector}mm_soft_emb_norm.weight": (DIM,),
    f"{projector}mm_input_projection_weight": (DIM, official.WIDTH),
    f"{tower}embeddings.patch_embedding.weight": (DIM, 3, 4, 4),
    f"{tower}embeddings.patch_embedding.bias": (DIM,),
    f"{tower}embeddings.position_embedding.weight": (16, DIM),
  }
  layer = f"{tower}encoder.layers.0."
  for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
    found |= official.linear(f"{layer}self_attn.{name}", DIM, DIM)
  found |= official.linear(f"{layer}mlp.fc1", 5, DIM) | official.linear(f"{layer}mlp.fc2", DIM, 5)
  for name in (f"{layer}layer_norm1", f"{layer}layer_norm2", f"{tower}post_layernorm"):
    found |= official.norm(name, DIM)
  return found


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back(run_import, tmp_path, form):
  tensors = official.random(shapes(form))
  folder = official.save(tmp_path / "model", tensors, TINY)
  (folder / "tokenizer.json").write_text("{}")
  ours = run_import("medgemma", folder)
  assert ours.sections["fusion"] == dict(type="inline", bidirectional=True)
  assert ours.sections["connector"]["num_latents"] == 4
  assert (ours.folder / "tokenizer" / "tokenizer.json").read_text() == "{}"
  ours.assert_goes_back(tensors, but=[f"{FORMS[form][3]}lm_head."])  # tied


def test_published_defaults():
  sections = gemma3_vlm.config_from_hf(MEDGEMMA)
  tower, lm = sections["tower"], sections["lm"]
  assert (tower["activation"], tower["norm_eps"]) == ("gelu_tanh", 1e-6)
  assert tower.get("final_norm", True)
  assert tower["inputs"]["image"]["size"] == (896, 896)
  assert sections["connector"] == dict(
    type="pooled", num_latents=256, out_width=2560, norm_eps=1e-6
  )
  assert (lm["vocab_size"], lm["heads"], lm["kv_heads"], lm["head_dim"]) == (262_208, 8, 4, 256)
  assert lm["windows"] == (*(1024,) * 5, 0)
  assert lm["rope_scaling"] == dict(type="linear", factor=8.0)


def test_text_alone_is_refused():
  with pytest.raises(UserError, match="text_config and a vision_config"):
    gemma3_vlm.config_from_hf(MEDGEMMA["text_config"])
