"""RadFM's flat state dict: sizes by shapes, what is left out, and the way back."""

import numpy as np
import pytest

from tests.pretrained.systems import official

DIM, PATCH, SIDE, DEEP = 24, 4, 3, 2  # of the tower; its tables have so many rows
DEAD = (
  "embedding_layer.weight",
  "embedding_layer.bert_model.",
  "embedding_layer.bert_projection_fc.",
  "embedding_layer.output_upscaling.",
  "embedding_layer.transformer_decoder.",
  "embedding_layer.transformer_decoder_mlp.",
  "embedding_layer.cls_head.",
)


def shapes():
  rest, tower = "embedding_layer.", "embedding_layer.vision_encoder."
  values = 3 * 4 * PATCH**2
  found = official.llama("lang_model.model.", "lang_model.")
  found |= {f"{rest}weight": (official.VOCAB, official.WIDTH)}
  found |= {f"{rest}figure_token_weight": (2, official.WIDTH)}
  found |= official.perceiver(f"{rest}perceiver.", DIM)
  found |= official.linear(f"{rest}fc", official.WIDTH, DIM)
  found |= official.norm(f"{tower}to_patch_embedding.1", values)
  found |= official.linear(f"{tower}to_patch_embedding.2", DIM, values)
  found |= official.norm(f"{tower}to_patch_embedding.3", DIM)
  for axis, rows in dict(row=SIDE, col=SIDE, dep=DEEP).items():
    found[f"{tower}pos_embedding.{axis}_embed.weight"] = (rows, DIM // 3)
  for i in range(2):
    layer = f"{tower}transformer.layers.{i}."
    found |= official.norm(f"{layer}0.norm", DIM) | official.norm(f"{layer}1.norm", DIM)
    found |= official.linear(f"{layer}0.fn.to_qkv", 3 * 64, DIM, bias=False)
    found |= official.linear(f"{layer}0.fn.to_out.0", DIM, 64)
    found |= official.linear(f"{layer}1.fn.net.0", 7, DIM)
    found |= official.linear(f"{layer}1.fn.net.3", DIM, 7)
  for name in DEAD[1:]:
    found |= official.linear(f"{name}0", 2, 2)
  return found


@pytest.fixture
def checkpoint(tmp_path):
  tensors = official.random(shapes())
  return official.save(tmp_path / "pytorch_model.bin", tensors), tensors


def test_there_and_back(run_import, checkpoint):
  path, tensors = checkpoint
  ours = run_import("radfm", path)
  sections = ours.sections
  volume = sections["tower"]["inputs"]["volume"]
  assert volume["table"] == volume["size"] == [DEEP * 4, SIDE * PATCH, SIDE * PATCH]
  assert volume["patch"] == [4, PATCH, PATCH]
  assert {name: sections["tower"][name] for name in ("width", "depth", "heads", "mlp_width")} == {
    "width": DIM,
    "depth": 2,
    "heads": 1,
    "mlp_width": 7,
  }
  assert sections["connector"]["num_latents"] == 3
  assert sections["connector"]["out_width"] == official.WIDTH
  assert sections["fusion"] == {"type": "inline"}
  assert sections["lm"]["heads"] == 2  # the buffers tell
  assert sections["lm"]["extra_tokens"] == 2
  figures = tensors["embedding_layer.figure_token_weight"]
  np.testing.assert_array_equal(ours.weights["lm/extra_embedding"], figures)
  buffers = [key for key in tensors if key.endswith("inv_freq")]
  ours.assert_goes_back(tensors, but=(*DEAD, *buffers))


def test_half_of_the_bytes(run_import, checkpoint):
  path, _ = checkpoint
  weights = run_import("radfm", path, "--dtype", "bfloat16").weights
  assert {x.dtype.name for x in weights.values()} == {"bfloat16"}


def test_another_checkpoint_is_refused(refused, tmp_path):
  tensors = official.random(official.llama("lang_model.model.", "lang_model."))
  line = refused("radfm", official.save(tmp_path / "other.bin", tensors))
  assert "a RadFM checkpoint has embedding_layer.vision_encoder.*" in line


def test_what_does_not_fit_is_named(refused, checkpoint, tmp_path):
  _, tensors = checkpoint
  tensors["embedding_layer.vision_encoder.cls_token"] = np.zeros(3, np.float32)
  del tensors["lang_model.model.layers.1.mlp.up_proj.weight"]
  line = refused("radfm", official.save(tmp_path / "wrong.bin", tensors))
  assert "missing: lang_model.model.layers.1.mlp.up_proj.weight" in line
  assert "unexpected: embedding_layer.vision_encoder.cls_token" in line
