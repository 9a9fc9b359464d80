"""Folders as `medflax.tools.import_weights` writes them, of random weights."""

import json
import pathlib
import shutil

import numpy as np
import safetensors.numpy

from medflax.data.tokenizer import SHIPPED
from medflax.pretrained.leaves import abstract_leaves

SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
GIT = dict(
  tower=dict(
    **dict(type="vit", width=6, depth=1, heads=2, mlp_width=8, class_token=True, output="tokens"),
    inputs=dict(image=dict(size=(4, 4), patch=(2, 2), channels=3)),
  ),
  text=dict(
    **dict(vocab_size=1024, width=8, depth=2, heads=2, mlp_width=8, max_positions=9),
    **dict(activation="gelu", norm_eps=1e-12),
  ),
  **dict(frames=0, norm_eps=1e-5),
)
LAYERS = dict(depth=2, heads=2, kv_heads=2, head_dim=3, mlp_width=8, query_scale=1.0)
PIX2STRUCT = dict(
  **dict(type="encoder_decoder", vocab_size=1024, width=6, places=9, tie_embeddings=False),
  encoder_layers=LAYERS,
  decoder_layers=LAYERS | dict(buckets=8, max_distance=16),
)


def write(folder: pathlib.Path, part: str, section: dict, patch_values: int = 12) -> pathlib.Path:
  rng = np.random.default_rng(0)
  leaves = abstract_leaves({part: section}, patch_values=patch_values)
  weights = {k: rng.normal(size=x.shape).astype(np.float32) for k, x in leaves.items()}
  tokenizer = folder / "tokenizer"
  tokenizer.mkdir(parents=True)
  shutil.copy(SHIPPED, tokenizer / "tokenizer.json")
  told = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}
  (tokenizer / "tokenizer_config.json").write_text(json.dumps(told))
  (folder / "config.json").write_text(json.dumps({part: section}))
  (folder / "origin.json").write_text(json.dumps({"source": "hugging_face", "config": IDS}))
  (folder / "weights.safetensors").write_bytes(safetensors.numpy.save(weights))
  return folder
