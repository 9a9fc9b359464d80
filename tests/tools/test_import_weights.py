"""Published checkpoints become ours through the command line, and go back."""

import json

import numpy as np
import pytest
import safetensors.numpy

from medflax.pretrained import hf_decoders, load_weights, open_clip, open_flamingo
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.mapping import to_theirs
from medflax.tools import export_weights, import_weights
from tests.pretrained import torch_writer

LLAMA = dict(
  model_type="llama",
  vocab_size=11,
  hidden_size=8,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
  intermediate_size=12,
  rms_norm_eps=1e-6,
  hidden_act="silu",
)
NEW_TOKENS = 3


def random_like(leaves):
  rng = np.random.default_rng(0)
  return {path: rng.standard_normal(leaf.shape, np.float32) for path, leaf in leaves.items()}


def save_folder(folder, hf, tensors, shards=1):
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(hf))
  names = {key: f"model-{i % shards}.safetensors" for i, key in enumerate(sorted(tensors))}
  for file in set(names.values()):
    part = {key: np.ascontiguousarray(tensors[key]) for key in names if names[key] == file}
    safetensors.numpy.save_file(part, folder / file)
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": names}))
  return folder


def llama_folder(folder, xattn_every=1):
  """A tiny LLaMA, its weights under our names, and under theirs."""
  section = hf_decoders.config_from_hf(LLAMA)
  mapping = hf_decoders.mapping("llama", section, xattn_every)
  ours = random_like(import_weights.abstract_leaves({"lm": section}))
  theirs = to_theirs({f"lm/{p}": t for p, t in hf_decoders.mapping("llama", section).items()}, ours)
  return save_folder(folder, LLAMA, theirs, shards=3), mapping, theirs


def run(*args):
  return import_weights.main([str(arg) for arg in args])


@pytest.mark.parametrize("xattn_every", [1, 2])
def test_a_language_model_in_shards(tmp_path, xattn_every):
  folder, mapping, theirs = llama_folder(tmp_path / "llama", xattn_every)
  to = tmp_path / "ours"
  assert run("hugging_face", folder, "--to", to, "--xattn-every", xattn_every) == 0
  ours = {path.removeprefix("lm/"): np.asarray(x) for path, x in load_weights(to / WEIGHTS).items()}
  assert ours.keys() == mapping.keys()
  for key, array in to_theirs(mapping, ours).items():
    np.testing.assert_array_equal(array, theirs[key])
  assert json.loads((to / "config.json").read_text())["lm"]["kv_heads"] == 1
  assert export_weights.main([str(to), "--to", str(tmp_path / "back")]) == 0
  back = open_checkpoint(tmp_path / "back")
  assert back.keys() == theirs.keys()
  for key, array in theirs.items():
    np.testing.assert_array_equal(np.asarray(back[key]), array)
  assert json.loads((tmp_path / "back" / "config.json").read_text()) == LLAMA
  assert export_weights.main([str(to), "--to", str(tmp_path / "back")]) == 2


WEIGHTS = import_weights.WEIGHTS


def test_weights_may_be_cast(tmp_path):
  folder, _, _ = llama_folder(tmp_path / "llama")
  assert run("hugging_face", folder, "--to", tmp_path / "ours", "--dtype", "bfloat16") == 0
  assert {x.dtype.name for x in load_weights(tmp_path / "ours" / WEIGHTS).values()} == {"bfloat16"}


def flamingo_files(tmp_path):
  """A Med-Flamingo in its three files, and the leaves that they should become."""
  tower = open_clip.config_from_open_clip(
    dict(
      vision_cfg=dict(width=64, layers=1, patch_size=4, image_size=8, mlp_ratio=2),
      quick_gelu=True,
    )
  )
  lm = hf_decoders.config_from_hf(LLAMA) | dict(vocab_size=LLAMA["vocab_size"] + NEW_TOKENS)
  sections = dict(
    tower=tower,
    connector=dict(type="perceiver", num_latents=2, depth=1, heads=1, head_dim=64, mlp_ratio=2),
    fusion=dict(type="gated_xattn", xattn_every=2, heads=1, head_dim=64, mlp_ratio=2),
    lm=lm,
  )
  ours = random_like(import_weights.abstract_leaves(sections))
  ours["lm/head/kernel"][:, -NEW_TOKENS:] = 0  # saved nowhere
  mapping = open_flamingo.mapping("llama", sections)
  mapping |= {f"tower/{path}": t for path, t in open_clip.mapping(tower).items()}
  theirs = to_theirs(mapping, ours)
  trained = lambda key: "gated_cross" in key or "embed_tokens" in key or "perceiver" in key
  prefix = "lang_encoder."
  base = {
    key.removeprefix(prefix).replace("decoder_layer.", ""): x
    for key, x in theirs.items()
    if key.startswith(prefix) and "gated_cross" not in key
  }
  rows = LLAMA["vocab_size"]
  for key in ("model.embed_tokens.weight", "lm_head.weight"):
    base[key] = base[key][:rows]
  torch_writer.save(
    tmp_path / "model.pt",
    {key: np.ascontiguousarray(x) for key, x in theirs.items() if trained(key)},
  )
  save_folder(tmp_path / "llama", LLAMA, base)
  visual = {k: np.ascontiguousarray(x) for k, x in theirs.items() if k.startswith("visual.")}
  visual["ln_final.weight"] = np.ones(3, np.float32)
  safetensors.numpy.save_file(visual, tmp_path / "clip.safetensors")
  return sections, ours


def test_med_flamingo_of_its_three_files(tmp_path, capsys):
  sections, ours = flamingo_files(tmp_path)
  to, files = (
    tmp_path / "ours",
    ("--lm", tmp_path / "llama", "--vision", tmp_path / "clip.safetensors"),
  )
  assert run("med_flamingo", tmp_path / "model.pt", "--to", to, *files) == 0
  written = load_weights(to / WEIGHTS)
  assert written.keys() == ours.keys()
  for path, array in ours.items():
    np.testing.assert_array_equal(np.asarray(written[path]), array, err_msg=path)
  assert json.loads((to / "config.json").read_text()) == json.loads(json.dumps(sections))
  assert export_weights.main([str(to), "--to", str(tmp_path / "whole")]) == 0
  whole, again = tmp_path / "whole" / "model.safetensors", tmp_path / "again"
  assert any(key.startswith("vision_encoder.") for key in open_checkpoint(whole))
  assert run("med_flamingo", whole, "--to", again, "--lm", tmp_path / "llama") == 0
  for name in (WEIGHTS, import_weights.CONFIG):
    assert (again / name).read_bytes() == (to / name).read_bytes()
  assert run("med_flamingo", tmp_path / "model.pt", "--to", to, *files) == 2
  assert "exists; remove it" in capsys.readouterr().err
  assert run("med_flamingo", tmp_path / "model.pt", "--to", tmp_path / "new") == 2
  assert "give --lm and --vision" in capsys.readouterr().err


def test_what_does_not_fit_stops_the_import(tmp_path, capsys):
  folder, _, theirs = llama_folder(tmp_path / "llama")
  theirs = dict(theirs, more=np.ones(2, np.float32))
  theirs["lm_head.weight"] = theirs["lm_head.weight"][1:]
  del theirs["model.norm.weight"]
  folder = save_folder(tmp_path / "other", LLAMA, theirs)
  assert run("hugging_face", folder, "--to", tmp_path / "ours") == 2
  message = capsys.readouterr().err
  for part in (
    "missing: model.norm.weight",
    "unexpected: more",
    "misshapen: lm_head.weight (10, 8)",
  ):
    assert part in message
  assert message.count("\n") == 1
  assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
  ("source", "config", "message"),
  [
    ("hugging_fase", LLAMA, "did you mean 'hugging_face'"),
    ("hugging_face", dict(model_type="lama"), "did you mean 'llama'"),
    ("hugging_face", [], "holds no JSON object"),
  ],
)
def test_unknown_names(tmp_path, capsys, source, config, message):
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert run(source, tmp_path, "--to", tmp_path / "ours") == 2
  assert message in capsys.readouterr().err
