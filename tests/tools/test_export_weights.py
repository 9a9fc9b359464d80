"""What was trained goes back to the layout of the checkpoint that it started from."""

import json

import ml_collections
import numpy as np
import pytest
import safetensors.numpy

from medflax import config as config_lib
from medflax import peft, report, trainer
from medflax.checkpoint import read_state
from medflax.data.tokenizer import load_tokenizer
from medflax.pretrained import hf_decoders, load_weights
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.mapping import to_theirs
from medflax.tools import export_weights, import_weights
from tests import nano

HF = dict(
  model_type="llama",
  vocab_size=load_tokenizer().vocab_size,
  hidden_size=8,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=2,
  intermediate_size=8,
  rms_norm_eps=1e-6,
  hidden_act="silu",
  _name_or_path="someone/llama",
)
LORA = (
  "{'a': {'type': 'lora', 'target': 'lm/.*/attn/(query|value)/kernel', 'rank': 2, 'alpha': 4.0}}"
)
STEPS = 2


def run(tool, *args):
  return tool.main([str(arg) for arg in args])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A base model, its import, and a run that started from it with a LoRA."""
  base, ours = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("imports") / "ours"
  section = hf_decoders.config_from_hf(HF)
  leaves = import_weights.abstract_leaves({"lm": section})
  rng = np.random.default_rng(0)
  random = {path: rng.normal(0, 0.1, x.shape).astype(np.float32) for path, x in leaves.items()}
  mapping = {f"lm/{path}": x for path, x in hf_decoders.mapping("llama", section).items()}
  theirs = {k: np.ascontiguousarray(x) for k, x in to_theirs(mapping, random).items()}
  safetensors.numpy.save_file(theirs, base / "model.safetensors")
  (base / "config.json").write_text(json.dumps(HF))
  assert run(import_weights, "hugging_face", base, "--to", ours) == 0
  workdir = tmp_path_factory.mktemp("runs") / "a"
  images = nano.write_images(tmp_path_factory.mktemp("images"))
  options = dict(init=str(ours / import_weights.WEIGHTS), train__num_steps=str(STEPS), peft=LORA)
  config = nano.config(images, **options, trainable="lm/.*/lora_.*|connector/.*")
  with config.unlocked():
    config.model.lm = ml_collections.ConfigDict(section)
  config_lib.validate(config)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, "write_report", lambda workdir: workdir / "report.html")
    trainer.train(config, workdir, command="")
  return base, ours, workdir


def trained(workdir):
  state = read_state(workdir / "checkpoints", STEPS)
  parts = ("frozen/", "trainable/")
  return {k.removeprefix(p): x for p in parts for k, x in state.items() if k.startswith(p)}


def test_a_run_becomes_what_it_started_from(tmp_path, folders, capsys):
  base, _, workdir = folders
  assert run(export_weights, workdir, "--to", tmp_path) == 0
  told = capsys.readouterr().out
  assert "no place for" in told and "connector/latents" in told and "lora" not in told
  flat = trained(workdir)
  merged = {path: np.asarray(x) for path, x in peft.merge(flat).items()}
  table = {
    f"lm/{p}": x for p, x in hf_decoders.mapping("llama", hf_decoders.config_from_hf(HF)).items()
  }
  theirs = to_theirs(table, {path: merged[path] for path in table})
  back = open_checkpoint(tmp_path)
  assert back.keys() == theirs.keys() == open_checkpoint(base).keys()
  for key, x in theirs.items():
    np.testing.assert_allclose(np.asarray(back[key]), x, rtol=1e-6, atol=1e-7, err_msg=key)
  query = "model.layers.0.self_attn.q_proj.weight"
  assert not np.array_equal(np.asarray(back[query]), np.asarray(open_checkpoint(base)[query]))
  assert json.loads((tmp_path / "config.json").read_text()) == HF
  assert run(export_weights, workdir, "--to", tmp_path, "--step", 1) == 2
  assert run(export_weights, workdir, "--to", tmp_path / "new", "--step", 1) == 2
  assert "no complete checkpoint of step 1" in capsys.readouterr().err


def test_the_adapter_alone_goes_to_peft_and_back(tmp_path, folders, capsys):
  base, ours, workdir = folders
  assert run(export_weights, workdir, "--adapter", "--to", tmp_path / "lora") == 0
  config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
  assert config["target_modules"] == ["q_proj", "v_proj"]
  assert config["base_model_name_or_path"] == "someone/llama"
  flags = ("--to", tmp_path / "again", "--adapter", tmp_path / "lora")
  assert run(import_weights, "hugging_face", base, *flags) == 0
  again, flat = load_weights(tmp_path / "again" / import_weights.WEIGHTS), trained(workdir)
  assert {path for path in flat if path.startswith("lm/groups/layer_0/")} < again.keys()
  for path, x in peft.adapters(flat).items():
    np.testing.assert_array_equal(np.asarray(again[path]), x, err_msg=path)
  sections = json.loads((tmp_path / "again" / import_weights.PEFT).read_text())
  [section] = sections.values()
  assert (section["rank"], section["alpha"]) == (2, 4.0)
  assert run(export_weights, ours, "--adapter", "--to", tmp_path / "none") == 2
  assert "no adapter among the weights" in capsys.readouterr().err


def test_a_run_from_elsewhere_is_named(tmp_path, folders, capsys):
  _, _, workdir = folders
  (tmp_path / "run").mkdir()
  config = json.loads((workdir / "config.json").read_text())
  (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"init": ""}))
  assert run(export_weights, tmp_path / "run", "--to", tmp_path / "out") == 2
  assert "config.init = '' is no import" in capsys.readouterr().err
  assert run(export_weights, tmp_path, "--to", tmp_path / "out") == 2
  assert "is not a run" in capsys.readouterr().err


def test_what_is_large_goes_in_shards(tmp_path, folders):
  base, ours, _ = folders
  weights, imported = export_weights.read_weights(ours)
  export_weights.export_weights(weights, imported, tmp_path, shard_bytes=2000, progress=False)
  files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
  count = len(files)
  assert count > 2 and files[0] == f"model-00001-of-{count:05}.safetensors"
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  theirs = open_checkpoint(base)
  assert index["metadata"]["total_size"] == sum(x.nbytes for x in theirs.values())
  assert set(index["weight_map"].values()) == set(files)
  sizes = [sum(x.nbytes for x in open_checkpoint(tmp_path / name).values()) for name in files]
  assert all(
    n <= 2000 or len(open_checkpoint(tmp_path / name)) == 1
    for n, name in zip(sizes, files, strict=True)
  )
  back = open_checkpoint(tmp_path)
  for key, x in theirs.items():
    np.testing.assert_array_equal(np.asarray(back[key]), np.asarray(x), err_msg=key)
