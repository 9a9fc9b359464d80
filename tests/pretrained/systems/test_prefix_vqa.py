"""Mappers of open-ended-medical-vqa on their language model and CLIP's embedding."""

import functools

import numpy as np
import pytest

from tests.pretrained.systems import official

WIDTH, EMBED, LATENTS = 8, 6, 3
GPT2 = dict(
  model_type="gpt2",
  vocab_size=official.VOCAB,
  n_embd=WIDTH,
  n_layer=2,
  n_head=2,
  n_positions=16,
  layer_norm_epsilon=1e-5,
)


def gpt2(prefix=""):
  at = f"{prefix}transformer."
  found = {f"{at}wte.weight": (official.VOCAB, WIDTH), f"{at}wpe.weight": (16, WIDTH)}
  found |= official.norm(f"{at}ln_f", WIDTH)
  for i in range(2):
    layer = f"{at}h.{i}."
    found |= official.norm(f"{layer}ln_1", WIDTH) | official.norm(f"{layer}ln_2", WIDTH)
    maps = {"attn.c_attn": (1, 3), "attn.c_proj": (1, 1), "mlp.c_fc": (1, 4), "mlp.c_proj": (4, 1)}
    for name, (inner, out) in maps.items():
      found[f"{layer}{name}.weight"] = (inner * WIDTH, out * WIDTH)
      found[f"{layer}{name}.bias"] = (out * WIDTH,)
  return found


def mlp_mapper(hidden):
  widths = (EMBED, *hidden, LATENTS * WIDTH)
  names = [f"clip_project.model.{3 * i}" for i in range(len(widths) - 1)]
  maps = [official.linear(name, widths[i + 1], widths[i]) for i, name in enumerate(names)]
  return functools.reduce(lambda a, b: a | b, maps)


def transformer_mapper():
  at = "clip_project."
  found = official.linear(f"{at}linear", 2 * WIDTH, EMBED) | {f"{at}prefix_const": (LATENTS, WIDTH)}
  for i in range(2):
    layer = f"{at}transformer.layers.{i}."
    found |= official.norm(f"{layer}norm1", WIDTH) | official.norm(f"{layer}norm2", WIDTH)
    found |= official.linear(f"{layer}attn.to_queries", WIDTH, WIDTH, bias=False)
    found |= official.linear(f"{layer}attn.to_keys_values", 2 * WIDTH, WIDTH, bias=False)
    found |= official.linear(f"{layer}attn.project", WIDTH, WIDTH)
    found |= official.linear(f"{layer}mlp.fc1", 2 * WIDTH, WIDTH)
    found |= official.linear(f"{layer}mlp.fc2", WIDTH, 2 * WIDTH)
  return found


MAPPERS = {
  "code's": mlp_mapper((10, 12)),
  "paper's": mlp_mapper((12,)),
  "transformer": transformer_mapper(),
}


def clip_file(path):
  """open_clip's image side, with its projection."""
  width, block = 64, "visual.transformer.resblocks.0."
  found = {
    "visual.conv1.weight": (width, 3, 4, 4),
    "visual.class_embedding": (width,),
    "visual.positional_embedding": (5, width),
    "visual.proj": (width, EMBED),
    **official.norm("visual.ln_pre", width),
    **official.norm("visual.ln_post", width),
    **official.norm(f"{block}ln_1", width),
    **official.norm(f"{block}ln_2", width),
    **official.attention(f"{block}attn", width),
    **official.linear(f"{block}mlp.c_fc", 128, width),
    **official.linear(f"{block}mlp.c_proj", width, 128),
  }
  return official.save(path, official.random(found))


@pytest.fixture
def flags(tmp_path):
  language = official.save(tmp_path / "gpt2", official.random(gpt2()), GPT2)
  return ["--lm", language, "--vision", clip_file(tmp_path / "clip.pt")]


@pytest.mark.parametrize("mapper", MAPPERS)
@pytest.mark.parametrize("with_lm", [True, False])
def test_there_and_back(run_import, tmp_path, flags, mapper, with_lm):
  tensors = official.random(MAPPERS[mapper] | (gpt2("gpt.") if with_lm else {}))
  ours = run_import("prefix_vqa", official.save(tmp_path / "mapper.pt", tensors), *flags)
  sections = ours.sections
  tower, connector = sections["tower"], sections["connector"]
  assert (tower["output"], tower["projection"], tower["final_norm"]) == ("class", EMBED, True)
  assert (connector["num_latents"], connector["out_width"]) == (LATENTS, WIDTH)
  hidden = {"code's": [10, 12], "paper's": [12]}
  assert connector.get("hidden") == hidden.get(mapper)
  if mapper == "transformer":
    assert (connector["num_inputs"], connector["depth"], connector["mlp_ratio"]) == (2, 2, 2)
  assert ours.weights["tower/projection/kernel"].shape == (64, EMBED)
  base = {f"gpt.{key}": x for key, x in official.random(gpt2()).items()}
  ours.assert_goes_back(base | tensors)


def test_weights_of_its_own_go_before(run_import, tmp_path, flags):
  tensors = official.random(MAPPERS["paper's"] | gpt2("gpt."))
  tensors["gpt.transformer.wte.weight"] = np.ones((official.VOCAB, WIDTH), np.float32)
  ours = run_import("prefix_vqa", official.save(tmp_path / "mapper.pt", tensors), *flags)
  assert (ours.weights["lm/embedding"] == 1).all()


def test_what_is_needed_is_told(refused, tmp_path, flags):
  path = official.save(tmp_path / "mapper.pt", official.random(MAPPERS["paper's"]))
  assert "give --lm and --vision" in refused("prefix_vqa", path)
  other = official.save(tmp_path / "other.pt", official.random(gpt2("gpt.")))
  assert "the checkpoint has no mapper" in refused("prefix_vqa", other, *flags)
