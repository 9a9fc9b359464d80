"""LoRA adapters of the peft library on a causal language model."""

import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medflax import peft
from medflax.models.attention import causal_mask
from medflax.models.language.decoder import Decoder
from medflax.pretrained import hf_decoders, peft_files
from medflax.pretrained.mapping import to_ours
from tests.golden_cases.base import Case, Check, Result, abstract_leaves, compare


def adapter_folder(case: Case, to: pathlib.Path) -> pathlib.Path:
  """The case's adapter as peft lays it out."""
  shutil.copy(case.folder / "adapter_config" / peft_files.CONFIG, to / peft_files.CONFIG)
  shutil.copy(case.path(".adapter_model.safetensors"), to / peft_files.WEIGHTS)
  return to


def base_weights(case: Case) -> dict[str, np.ndarray]:
  """The base model's state dict out of the whole peft model's."""
  plain = lambda key: key.removeprefix("base_model.model.").replace(".base_layer.", ".")
  return {plain(key): x for key, x in case.weights.items() if ".lora_" not in key}


def lora(case: Case) -> Iterator[Result]:
  lm = hf_decoders.config_from_hf(case.hf)
  model = Decoder(**{name: value for name, value in lm.items() if name != "type"})
  table = hf_decoders.mapping(case.hf["model_type"], lm)

  @jax.jit
  def run(flat, ids, seen):
    slots, places = jnp.arange(ids.shape[1]), jnp.maximum(jnp.cumsum(seen, axis=1) - 1, 0)
    params = {"params": traverse_util.unflatten_dict(flat, sep="/")}
    return model.apply(params, ids, places, causal_mask(slots, seen, slots, seen), None, None)[0]

  ids = jnp.asarray(case.arrays["in.ids"], jnp.int32)
  left_ids, left = (jnp.asarray(case.arrays[f"in.left_{x}"], jnp.int32) for x in ("ids", "mask"))
  whole, seen = jnp.ones_like(ids), np.asarray(left) > 0
  token = jnp.zeros((1, 1), jnp.int32)
  abstract = abstract_leaves(model, token, token, jnp.ones((1, 1, 1), bool), None, None)
  ignore = hf_decoders.ignored(case.hf["model_type"], lm)
  base = to_ours(table, abstract, base_weights(case), ignore=ignore)
  with tempfile.TemporaryDirectory() as folder:
    adapter = peft_files.read_adapter(adapter_folder(case, pathlib.Path(folder)), table, abstract)
  adapted = base | adapter
  out = {name: case.arrays[f"out.{name}"] for name in ("logits", "left_logits", "base_logits")}
  yield compare("logits", run(adapted, ids, whole), out["logits"])
  yield compare("left-padded", run(adapted, left_ids, left), out["left_logits"], seen)
  yield compare("without the adapter", run(base, ids, whole), out["base_logits"])
  merged = peft.merge(adapted)
  yield compare("merged", run(merged, ids, whole), case.arrays["out.merged_logits"])
  kernel = merged["groups/layer_0/attn/query/kernel"][0].reshape(lm["width"], -1)
  yield compare("merged q_proj", kernel.T, case.arrays["out.merged_q_proj_layer0"])


CHECKS: dict[str, Check] = {"lora": lora}
