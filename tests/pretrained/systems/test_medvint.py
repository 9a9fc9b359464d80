"""MedVInT's flat state dicts: both towers, both readers, the spellings of their LoRA."""

import functools

import numpy as np
import pytest

from medflax import peft
from tests.pretrained.systems import official

QUERIES, EMBED = 3, 6
SEQUENTIAL = (("0", "3", "6"), ("1", "4", "7"), ("10", "11", "12"))
CLIP = (("conv1", "conv2", "conv3"), ("bn1", "bn2", "bn3"), tuple(f"layer{i}" for i in range(1, 5)))
LANGUAGE = "llamacasual.base_model.model."
CLIP_WIDTH = 64


def decoder(name, width, mlp):
  layers = [official.decoder_layer(f"{name}.layers.{i}", width, mlp) for i in range(2)]
  found = functools.reduce(lambda a, b: a | b, layers)
  return found | official.norm(f"{name}.norm", width)


def td(tower, *, lora=True, queries=True):
  prefix = LANGUAGE if lora else "llamacasual."
  towers = {
    "pmc_clip": (16, official.resnet("vision_model.", SEQUENTIAL)),
    "clip": (CLIP_WIDTH, official.clip("vision_model.vision_model.")),
  }
  width, found = towers[tower]
  width = 4 * width if tower == "pmc_clip" else width
  if queries:
    found |= decoder("decoder", width, 9) | {"query_embed.weight": (QUERIES, width)}
  found |= official.linear("fc_l1", width, width)
  found |= official.linear("fc_l2", official.WIDTH, width)
  found |= official.llama(f"{prefix}model.", prefix)
  return found | (official.lora(f"{prefix}model.", "qv") if lora else {})


def te():
  found = official.resnet("image_encoder.visual.", CLIP)
  for at in ("llama_model.", "text_encoder.base_model.model."):
    found |= official.llama(at) | official.lora(at, "qv")
  found |= official.linear("text_embed.0", EMBED * 8, official.WIDTH)
  width = EMBED * 8
  found |= official.linear("image_embed.0", width, 128) | decoder("qformer_decoder", width, 9)
  found |= official.decoder_layer("qformer_decoder_layer", width, 9)
  found |= official.norm("qformer_decoder_norm", width) | {"qformer_query": (QUERIES, width)}
  block = "fusion_module.resblocks.0."
  found |= official.attention(f"{block}attn", width)
  found |= official.norm(f"{block}ln_1", width) | official.norm(f"{block}ln_2", width)
  found |= official.linear(f"{block}mlp.c_fc", 10, width)
  found |= official.linear(f"{block}mlp.c_proj", width, 10)
  found |= {"mlm_projection": (width, official.VOCAB), "img_special_token": (1, 1, width)}
  unused = dict(positional_embedding=(5, width), text_projection=(width, width), logit_scale=(1,))
  return found | unused


def buffers(tensors):
  return [key for key in tensors if key.endswith(("inv_freq", "num_batches_tracked"))]


@pytest.mark.parametrize("tower", ["pmc_clip", "clip"])
def test_td_there_and_back(run_import, tmp_path, tower):
  tensors = official.random(td(tower))
  ours = run_import("medvint_td", official.save(tmp_path / "td.bin", tensors))
  sections = ours.sections
  kinds = {part: section["type"] for part, section in sections.items()}
  tower_type = {"pmc_clip": "modified_resnet", "clip": "vit"}[tower]
  assert kinds == dict(tower=tower_type, connector="query_decoder", fusion="inline", lm="decoder")
  if tower == "pmc_clip":
    assert sections["tower"]["blocks"] == [1, 2, 1]
    assert sections["tower"]["width"] == 4
  assert sections["connector"]["num_latents"] == QUERIES
  assert sections["connector"]["out_width"] == official.WIDTH
  [section] = ours.peft.values()
  assert (section["rank"], section["alpha"], section["dropout"]) == (4, 32, 0.1)
  after = ["vision_model.vision_model.post_layernorm"]
  ours.assert_goes_back(tensors, but=(*after, *buffers(tensors)))


def test_td_without_queries(run_import, tmp_path):
  tensors = official.random(td("clip", lora=False, queries=False))
  ours = run_import("medvint_td", official.save(tmp_path / "td.bin", tensors))
  connector = ours.sections["connector"]
  assert (connector["type"], connector["mean"], connector["activation"]) == ("mlp", True, "relu")
  assert ours.sections["tower"]["output"] == "class"
  assert ours.peft == {}
  after = ["vision_model.vision_model.post_layernorm"]
  ours.assert_goes_back(tensors, but=(*after, *buffers(tensors)))


def newer(tensors, factor):
  """The names of a later version of peft."""
  adapted = {key.split(".lora_A")[0] for key in tensors if ".lora_A" in key}
  names = {f"{module}.weight": f"{module}.base_layer.weight" for module in adapted}
  if factor == "default":
    names = {}
  change = lambda key: names.get(key, key)
  named = lambda key: (
    change(key).replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.")
  )
  return {named(key): x for key, x in tensors.items()}


@pytest.mark.parametrize("spelling", ["default", "base_layer"])
def test_spellings_of_the_lora(run_import, tmp_path, spelling):
  tensors = official.random(td("clip"))
  oldest = run_import("medvint_td", official.save(tmp_path / "td.bin", tensors)).weights
  spelled = newer(tensors, spelling)
  assert spelled.keys() != tensors.keys()
  other = run_import("medvint_td", official.save(tmp_path / "newer.bin", spelled)).weights
  assert other.keys() == oldest.keys()
  for path, x in other.items():
    np.testing.assert_array_equal(x, oldest[path], err_msg=path)


def test_a_merged_lora_is_the_sum(run_import, tmp_path):
  path = official.save(tmp_path / "td.bin", official.random(td("clip")))
  beside, merged = run_import("medvint_td", path), run_import("medvint_td", path, "--merge-lora")
  assert merged.peft == {}
  want = peft.merge(beside.weights)
  assert merged.weights.keys() == want.keys()
  changed = [p for p, x in merged.weights.items() if not np.array_equal(x, beside.weights[p])]
  assert changed == [f"lm/groups/layer_0/attn/{name}/kernel" for name in ("query", "value")]
  for name in changed:
    np.testing.assert_allclose(merged.weights[name], want[name], rtol=1e-5, atol=1e-6)


def test_te_there_and_back(run_import, tmp_path):
  tensors = official.random(te())
  ours = run_import("medvint_te", official.save(tmp_path / "te.bin", tensors))
  sections = ours.sections
  assert sections["objective"] == dict(type="masked", mask_id=2)
  assert sections["tower"]["blocks"] == [1, 2, 1, 1]
  assert sections["connector"]["in_width"] == sections["fusion"]["width"] == EMBED * 8
  assert sections["connector"]["heads"] == 4
  assert sections["fusion"]["depth"] == 1
  assert "lm/head/kernel" not in ours.weights
  separator = tensors["img_special_token"][0, 0]
  np.testing.assert_array_equal(ours.weights["lm/fused/separator"], separator)
  dead = ("llama_model.", "qformer_decoder_", "positional_embedding", "text_proj", "logit_scale")
  ours.assert_goes_back(tensors, but=(*dead, *buffers(tensors)))


def test_a_checkpoint_without_a_tower_is_refused(refused, tmp_path):
  tensors = official.random({k: s for k, s in td("clip").items() if "vision_model" not in k})
  line = refused("medvint_td", official.save(tmp_path / "td.bin", tensors))
  assert "a MedVInT checkpoint has a tower" in line
