"""Checkpoints of every family of Hugging Face's and of CLIP's, there and back by the tools."""

import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from medflax import peft
from medflax.models.language.decoder import Decoder
from medflax.pretrained import load_weights
from medflax.pretrained.files import open_checkpoint
from medflax.tools import export_weights, import_weights
from tests.golden_cases import lora
from tests.golden_cases.base import Case
from tests.pretrained import torch_writer

FAMILIES = ("hf_decoders", "bert", "clip_vision", "siglip_vision", "vit_vision", "git", "t5")
GOLDEN = (*FAMILIES, "pix2struct")


def run(tool, *args):
  return tool.main([str(arg) for arg in args])


def there_and_back(source, path, to):
  """The tensors of a checkpoint that was imported and exported."""
  assert run(import_weights, source, path, "--to", to / "ours") == 0
  assert run(export_weights, to / "ours", "--to", to / "back") == 0
  back = open_checkpoint(to / "back")
  return {key: np.asarray(tensor) for key, tensor in back.items()}


def assert_equal(back, theirs):
  for key, array in back.items():
    np.testing.assert_array_equal(array, theirs[key], err_msg=key)


@pytest.mark.parametrize("module", GOLDEN)
def test_every_family_of_hugging_face(tmp_path, golden_folder, module):
  for config in sorted(golden_folder(module).glob("*.config.json")):
    variant = config.name.removesuffix(".config.json")
    theirs = config.with_name(f"{variant}.safetensors")
    folder = tmp_path / variant
    folder.mkdir()
    shutil.copy(config, folder / "config.json")
    shutil.copy(theirs, folder / "model.safetensors")
    back = there_and_back("hugging_face", folder, folder)
    assert back
    assert_equal(back, safetensors.numpy.load_file(theirs))


def saved(folder, hf, tensors):
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(hf))
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  return folder


@pytest.mark.parametrize(
  ("module", "variant", "rename"),
  [
    ("hf_decoders", "gpt2", lambda key: key.removeprefix("transformer.")),
    ("vit_vision", "vit", lambda key: f"vit.{key}"),
    ("vit_vision", "swin", lambda key: f"swin.{key}"),
    ("bert", "bert", lambda key: key.replace("LayerNorm.weight", "LayerNorm.gamma")),
  ],
)
def test_published_files_name_the_base_otherwise(tmp_path, golden_folder, module, variant, rename):
  theirs = safetensors.numpy.load_file(golden_folder(module) / f"{variant}.safetensors")
  config = json.loads((golden_folder(module) / f"{variant}.config.json").read_text())
  renamed = {rename(key): x for key, x in theirs.items() if key != "lm_head.weight"}
  renamed |= {"classifier.weight": np.ones(2, np.float32)} if module == "vit_vision" else {}
  back = there_and_back("hugging_face", saved(tmp_path / "hf", config, renamed), tmp_path)
  assert_equal(back, theirs)


def test_a_peft_adapter_on_its_base(tmp_path, golden_folder, capsys):
  case = Case(golden_folder("lora"), "llama_lora")
  folder = saved(tmp_path / "base", case.hf, lora.base_weights(case))
  adapter = tmp_path / "adapter"
  adapter.mkdir()
  lora.adapter_folder(case, adapter)
  to, flags = tmp_path / "ours", ("--adapter", adapter)
  assert run(import_weights, "hugging_face", folder, "--to", to, *flags) == 0
  assert "set config.peft as in it" in capsys.readouterr().out
  section = json.loads((to / "peft.json").read_text())["lora_0"]
  assert (section["rank"], section["alpha"], section["dropout"]) == (4, 32.0, 0.1)
  written = load_weights(to / "weights.safetensors")
  lm = json.loads((to / "config.json").read_text())["lm"]
  key = jax.random.key(0)
  init = lambda: peft.add(
    key, {"lm": Decoder(**_without_type(lm)).init(key, *DECODED)["params"]}, {"x": section}
  )
  shapes = {path: x.shape for path, x in written.items()}
  tree = nn.unbox(jax.eval_shape(init))
  assert {p: x.shape for p, x in traverse_util.flatten_dict(tree, sep="/").items()} == shapes
  assert run(import_weights, "hugging_face", adapter, "--to", tmp_path / "x") == 2


DECODED = (
  jnp.zeros((1, 2), jnp.int32),
  jnp.zeros((1, 2), jnp.int32),
  jnp.ones((1, 2, 2), bool),
  None,
  None,
)


def _without_type(section):
  return {name: value for name, value in section.items() if name != "type"}


def test_pmc_clip(tmp_path, golden, capsys):
  theirs, _, _ = golden("medvint", "pmc_clip_modified_resnet")
  weights = {f"module.visual.{key}": x for key, x in theirs.items()}
  weights["module.text_encoder.pooler.bias"] = np.ones(2, np.float32)
  path = torch_writer.save(tmp_path / "checkpoint.pt", weights)
  back = there_and_back("pmc_clip", path, tmp_path)
  assert len(back) > 50
  assert_equal(back, {f"visual.{key}": x for key, x in theirs.items()})
  section = json.loads((tmp_path / "ours" / "config.json").read_text())["tower"]
  assert section["type"] == "modified_resnet" and len(section["blocks"]) == 4
  assert run(import_weights, "open_clip", path, "--to", tmp_path / "strict") == 2
  assert "unexpected: text_encoder.pooler.bias" in capsys.readouterr().err


def test_an_open_clip_vit(tmp_path, golden, capsys):
  theirs, _, _ = golden("open_clip", "clip_quickgelu")
  safetensors.numpy.save_file(theirs, tmp_path / "clip.safetensors")
  assert run(import_weights, "pmc_clip", tmp_path / "clip.safetensors", "--to", tmp_path / "x") == 2
  assert "import this one as 'open_clip'" in capsys.readouterr().err
