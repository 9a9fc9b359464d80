"""OpenFlamingo's checkpoints: names, sizes, and the models that they make."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from medflax.pretrained import open_flamingo
from medflax.pretrained.lazy import LazyTensor
from medflax.utils import UserError

LAYER = "model.layers.{}."


def lazy(array):
  return LazyTensor(array.shape, array.dtype, lambda: array)


@pytest.mark.parametrize(
  ("key", "wrapped"),
  [
    ("model.layers.3.mlp.up_proj.weight", "model.layers.3.decoder_layer.mlp.up_proj.weight"),
    ("model.layers.{}.mlp.up_proj.weight", "model.layers.{}.decoder_layer.mlp.up_proj.weight"),
    ("model.norm.weight", "model.norm.weight"),
    ("lm_head.weight", "lm_head.weight"),
  ],
)
def test_decoder_layers_are_wrapped(key, wrapped):
  assert open_flamingo.wrapped(key, LAYER) == f"lang_encoder.{wrapped}"


def test_sizes_are_read_off_the_shapes():
  block = "lang_encoder.model.layers.{}.gated_cross_attn_layer."
  shapes = {
    "perceiver.latents": (64, 1024),
    "perceiver.media_time_embs": (4, 1, 1024),
    **{f"perceiver.layers.{i}.0.to_q.weight": (512, 1024) for i in range(6)},
    "perceiver.layers.0.1.1.weight": (4096, 1024),
  }
  for i in (11, 3, 7):
    prefix = block.format(i)
    shapes |= {f"{prefix}attn_gate": (1,), f"{prefix}attn.to_q.weight": (512, 4096)}
    shapes |= {f"{prefix}ff.1.weight": (16_384, 4096)}
  sections = open_flamingo.config_from_tensors({k: np.empty(s) for k, s in shapes.items()})
  common = dict(heads=8, head_dim=64, mlp_ratio=4)
  assert sections == dict(
    connector=dict(type="perceiver", num_latents=64, depth=6, max_media=4, **common),
    fusion=dict(type="gated_xattn", xattn_every=4, **common),
  )
  with pytest.raises(UserError, match="an OpenFlamingo checkpoint has"):
    open_flamingo.config_from_tensors({"perceiver.latents": np.empty((1, 1))})


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_the_head_gets_the_rows_of_the_trained_embeddings(rows):
  trained = {"lang_encoder.model.embed_tokens.weight": lazy(np.ones((rows, 2), np.float32))}
  head = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
  base = {"model.embed_tokens.weight": lazy(np.zeros((3, 2))), "lm_head.weight": lazy(head)}
  tensors = open_flamingo.combined(trained, base, "llama")
  assert open_flamingo.vocabulary(tensors, "llama") == dict(vocab_size=rows)
  assert np.asarray(tensors["lang_encoder.model.embed_tokens.weight"]).all()
  got = tensors["lang_encoder.lm_head.weight"]
  assert got.shape == np.asarray(got).shape == (rows, 2)
  kept = min(rows, 3)
  np.testing.assert_array_equal(np.asarray(got)[:kept], head[:kept])
  assert not np.asarray(got)[kept:].any()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", ["llama", "llama_openclip", "llama_v002", "mpt"])
def test_parity_with_openflamingo(golden_folder, variant):
  script = pathlib.Path(__file__).parents[1] / "parity.py"
  folder = golden_folder("of_flamingo").parent
  done = subprocess.run(
    [sys.executable, script, folder, f"--only=of_flamingo/{variant}"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
