"""Adapters in the files of Hugging Face's peft library.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. The latter has, of a LoRA,
for each adapted projection `base_model.model.<name>.lora_A.weight` [rank, in] and
`.lora_B.weight` [out, rank]; where the projection stands in the base model tells its family's
table. Of a prefix or a prompt it has `prompt_embeddings`: [length, depth · 2 · kv_heads ·
head_dim], each layer's keys before its values, or [length, width].
"""

import collections
import json
import math
import pathlib
import re
from collections.abc import Callable
from collections.abc import Mapping as AnyMapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from jaxtyping import Shaped

from medflax.models.language.prompt import learned_prompt
from medflax.pretrained.checkpoint import read_json
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Mapping, Tensor, to_ours, to_theirs
from medflax.utils import UserError, pick, write_atomic

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OLD_WEIGHTS = "adapter_model.bin"
LEARNED = "prompt_embeddings"
# Settings that change what an adapter computes, and the only value of each that we know.
PLAIN = {"use_dora": False, "lora_bias": False, "bias": "none", "num_transformer_submodules": 1}
ABSENT = ("modules_to_save", "alpha_pattern", "trainable_token_indices", "target_parameters")

Flat = dict[str, Shaped[np.ndarray, "..."]]
Source = AnyMapping[str, LazyTensor]


def read_adapter(folder: pathlib.Path, base: Mapping, kernels: AnyMapping[str, Any]) -> Flat:
  """The leaves of `medflax.peft` from a folder that peft has saved.

  Args:
    base: the table of the base model's family.
    kernels: our parameters by path, each with `.shape`.

  Raises:
    UserError: for an adapter of another kind, a file that cannot be read, or tensors that do not
      fit the model.
  """
  config = _read_config(folder / CONFIG)
  files = [folder / name for name in (WEIGHTS, OLD_WEIGHTS) if (folder / name).exists()]
  source = open_checkpoint(files[0] if files else folder / WEIGHTS)
  kind = pick(KINDS, config.get("peft_type", ""), f"peft_type of {folder / CONFIG}")
  return kind(config, source, base, kernels)


def read_lora(
  config: AnyMapping[str, Any], source: Source, base: Mapping, kernels: AnyMapping[str, Any]
) -> Flat:
  """The leaves of a LoRA; of `adapter_config.json` the scale and the dropout are read."""
  source = {key.replace(".default.weight", ".weight"): x for key, x in source.items()}
  mapping, shapes, settings = {}, {}, {}
  for path, tensor in base.items():
    key = _name(tensor, "A").format(*tensor.layers[:1])
    if path not in kernels or key not in source:
      continue
    rank, num_inputs = source[key].shape
    module, shape = path.removesuffix("kernel"), tuple(kernels[path].shape)
    stack = 1 if tensor.layers else 0
    split = _split(shape, stack, num_inputs, path)
    leaves = {"lora_a": (*shape[:split], rank), "lora_b": (*shape[:stack], rank, *shape[split:])}
    shapes |= {module + name: jax.ShapeDtypeStruct(s, np.float32) for name, s in leaves.items()}
    mapping |= {module + name: t for name, t in lora_tensors(tensor, rank).items()}
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    settings[f"{module}lora_scale"] = np.full(shape[:stack], scale, np.float32)
    if rate := config.get("lora_dropout"):
      settings[f"{module}lora_dropout"] = np.full(shape[:stack], rate, np.float32)
  return to_ours(mapping, shapes, source) | settings


def _read_prefix(
  _: AnyMapping[str, Any], source: Source, base: Mapping, kernels: AnyMapping[str, Any]
) -> Flat:
  """The prefix as it is used: peft saves what a projection of it has computed."""
  learned, keys = _learned(source), _keys(base, kernels)
  depth, heads = sum(len(base[path].layers) for path in keys), kernels[keys[0]].shape[-2:]
  if learned.shape[1] != depth * 2 * math.prod(heads):
    raise UserError(
      f"the adapter's {LEARNED} {learned.shape} are not keys and values of {depth} layers "
      f"of {heads[0]} heads of {heads[1]}"
    )
  table = learned.reshape(len(learned), depth, 2, *heads)
  leaves: Flat = {}
  for path in keys:
    layers = table[:, list(base[path].layers)].transpose(2, 1, 0, 3, 4)
    for name, leaf in zip(PREFIX, layers, strict=True):
      leaves[path.removesuffix(KEY) + name] = np.ascontiguousarray(leaf)
  return leaves


def _read_prompt(
  _: AnyMapping[str, Any], source: Source, base: Mapping, kernels: AnyMapping[str, Any]
) -> Flat:
  learned = _learned(source)
  [path] = (path for path in base if path.rpartition("/")[2] == "embedding" and path in kernels)
  if learned.shape[1] != kernels[path].shape[1]:
    raise UserError(
      f"the adapter's {LEARNED} {learned.shape} are not {kernels[path].shape[1]} wide"
    )
  return {path.removesuffix("embedding") + "prompt": learned}


KINDS: dict[str, Callable[..., Flat]] = {
  "LORA": read_lora,
  "PREFIX_TUNING": _read_prefix,
  "PROMPT_TUNING": _read_prompt,
  "P_TUNING": _read_prompt,  # what its encoder has computed
}
KEY, PREFIX = "key/kernel", ("prefix_key", "prefix_value")


def _learned(source: Source) -> Shaped[np.ndarray, "length _"]:
  if set(source) != {LEARNED} or len(source[LEARNED].shape) != 2:
    raise UserError(f"the adapter has {', '.join(sorted(source)[:3])} in place of {LEARNED} alone")
  return np.asarray(source[LEARNED])


def _keys(base: Mapping, kernels: AnyMapping[str, Any]) -> list[str]:
  """The paths of a decoder's key kernels.

  Raises:
    UserError: if there is none, of an encoder for example.
  """
  paths = [path for path in base if path.endswith(f"/attn/{KEY}") and path in kernels]
  if not paths:
    raise UserError("a prefix needs a causal language model")
  return paths


def sections(adapters: Flat) -> dict[str, dict[str, Any]]:
  """The sections of `config.peft` that make leaves of these paths and shapes."""
  lora = collections.defaultdict(list)
  for path, leaf in adapters.items():
    if path.endswith("/lora_a"):
      module = path.removesuffix("lora_a")
      scale = float(np.ravel(adapters[f"{module}lora_scale"])[0])
      rate = round(float(np.ravel(adapters.get(f"{module}lora_dropout", 0.0))[0]), 6)
      lora[leaf.shape[-1], scale * leaf.shape[-1], rate].append(f"{module}kernel")
  found = [
    dict(type="lora", target=_regex(paths), rank=rank, alpha=alpha, dropout=rate)
    for (rank, alpha, rate), paths in lora.items()
  ]
  for kind, suffix, target, axis in LEARNED_LEAVES:
    paths = [path for path in adapters if path.endswith(f"/{suffix}")]
    if paths:
      length = adapters[paths[0]].shape[axis]
      targets = [path.removesuffix(suffix) + target for path in paths]
      found.append(dict(type=kind, target=_regex(targets), length=length))
  return {f"{section['type']}_{i}": section for i, section in enumerate(found)}


# Of a prefix and a prompt: type in `config.peft`, leaf, what its target ends with, axis of tokens.
LEARNED_LEAVES = (("prefix", PREFIX[0], KEY, -3), ("prompt", "prompt", "embedding", -2))


def _regex(paths: list[str]) -> str:
  return "|".join(re.escape(path) for path in sorted(paths))


def write_adapter(
  folder: pathlib.Path, adapters: Flat, base: Mapping, *, base_model: str = ""
) -> None:
  """Saves the leaves of `medflax.peft` so that peft loads them.

  Args:
    adapters: from `medflax.peft.adapters`, as arrays of the host.
    base_model: name or folder of the base model, for peft to find it.

  Raises:
    UserError: for what the format cannot hold: several kinds, ranks or scales, projections that
      the base model fuses but that were trained apart.
  """
  ends = {"/lora_a": _lora, "/prefix_key": _prefix, "/prompt": _prompt}
  kinds = [make for end, make in ends.items() if any(path.endswith(end) for path in adapters)]
  if len(kinds) != 1:
    raise UserError(f"{folder}: peft's file holds one kind of adapter; here are {len(kinds)}")
  config, tensors = kinds[0](folder, adapters, base)
  common = {
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base_model or None,
    "inference_mode": True,
  }
  contiguous = {key: np.ascontiguousarray(x) for key, x in tensors.items()}
  write_atomic(folder / WEIGHTS, safetensors.numpy.save(contiguous, metadata={"format": "pt"}))
  write_atomic(folder / CONFIG, json.dumps(config | common, indent=2) + "\n")


Written = tuple[dict[str, Any], Flat]  # of adapter_config.json, and the tensors


def _prefix(folder: pathlib.Path, adapters: Flat, base: Mapping) -> Written:
  keys = _keys(base, base)
  modules = [path.removesuffix(KEY) for path in keys]
  if absent := [module for module in modules if f"{module}{PREFIX[0]}" not in adapters]:
    raise UserError(f"{folder}: peft's prefixes are in every layer, but {absent[0]} has none")
  _, length, *heads = adapters[f"{modules[0]}{PREFIX[0]}"].shape
  depth = sum(len(base[path].layers) for path in keys)
  table = np.zeros((length, depth, 2, *heads), adapters[f"{modules[0]}{PREFIX[0]}"].dtype)
  for path, module in zip(keys, modules, strict=True):
    for i, name in enumerate(PREFIX):
      table[:, list(base[path].layers), i] = adapters[module + name].swapaxes(0, 1)
  config = {
    "peft_type": "PREFIX_TUNING",
    "num_virtual_tokens": length,
    "num_transformer_submodules": 1,
    "num_layers": depth,
    "num_attention_heads": heads[0],
    "token_dim": math.prod(heads),
    "encoder_hidden_size": math.prod(heads),
    "prefix_projection": False,
  }
  return config, {LEARNED: table.reshape(length, -1)}


def _prompt(_: pathlib.Path, adapters: Flat, __: Mapping) -> Written:
  [path] = (path for path in adapters if path.endswith("/prompt"))
  module = path.removesuffix("prompt")
  beside = {name.removeprefix(module): leaf for name, leaf in adapters.items()}
  learned = np.asarray(learned_prompt(beside))  # of p-tuning, what its maps make of it
  config = {
    "peft_type": "PROMPT_TUNING",
    "num_virtual_tokens": learned.shape[0],
    "num_transformer_submodules": 1,
    "token_dim": learned.shape[1],
    "prompt_tuning_init": "RANDOM",
  }
  return config, {LEARNED: learned}


def _lora(folder: pathlib.Path, adapters: Flat, base: Mapping) -> Written:
  modules = [path.removesuffix("lora_a") for path in adapters if path.endswith("/lora_a")]
  if foreign := [module for module in modules if f"{module}kernel" not in base]:
    raise UserError(f"{folder}: the base model's checkpoint has no place for {foreign[0]}")
  ranks = {adapters[f"{module}lora_a"].shape[-1] for module in modules}
  scales = {float(s) for m in modules for s in np.unique(adapters[f"{m}lora_scale"])}
  rates = {float(s) for m in modules for s in np.unique(adapters.get(f"{m}lora_dropout", 0.0))}
  if not len(ranks) == len(scales) == len(rates) == 1:
    raise UserError(
      f"{folder}: peft's file holds one rank, scale and dropout; these are "
      f"{sorted(ranks)}, {sorted(scales)} and {sorted(rates)}"
    )
  [rank], [scale], [rate] = ranks, scales, rates
  mapping: Mapping = {}
  for module in modules:
    tensors = lora_tensors(base[f"{module}kernel"], rank)
    mapping |= {module + name: tensor for name, tensor in tensors.items()}
  _check_fused(mapping, adapters, folder)
  config = {
    "peft_type": "LORA",
    "r": rank,
    "lora_alpha": scale * rank,
    "lora_dropout": round(rate, 6),
    "target_modules": _targets(modules, base),
    "fan_in_fan_out": any(not base[f"{module}kernel"].axes for module in modules),
    "bias": "none",
  }
  return config, to_theirs(mapping, {path: adapters[path] for path in mapping})


def lora_tensors(kernel: Tensor, rank: int) -> dict[str, Tensor]:
  """Where `lora_a` and `lora_b` of a kernel stand; a fused projection shares its A.

  The base model may keep its kernel as [in, out] (GPT-2); adapters are always [out, in].
  """
  common = dict(layers=kernel.layers, axes=(1, 0))
  rows = dict(rows=kernel.rows, groups=kernel.groups)
  return {
    "lora_a": Tensor(_name(kernel, "A"), shape=(rank, -1), **common),
    "lora_b": Tensor(_name(kernel, "B"), shape=(-1, rank), **common, **rows),
  }


def _name(kernel: Tensor, factor: str) -> str:
  return f"base_model.model.{kernel.key.removesuffix('weight')}lora_{factor}.weight"


def _split(shape: tuple[int, ...], stack: int, num_inputs: int, path: str) -> int:
  """Where a kernel's outputs begin, given how many inputs there are in all."""
  for split in range(stack + 1, len(shape)):
    if math.prod(shape[stack:split]) == num_inputs:
      return split
  raise UserError(f"the adapter has {num_inputs} inputs for {path} of shape {shape}")


def _read_config(path: pathlib.Path) -> dict[str, Any]:
  config = read_json(path)
  for name, value in PLAIN.items():
    if config.get(name) not in (None, value):
      raise UserError(f"{path}: {name} = {config[name]!r} is not supported, only {value!r}")
  for name in ABSENT:
    if config.get(name):
      raise UserError(f"{path}: {name} = {config[name]!r} is not supported")
  return config


def _targets(modules: list[str], base: Mapping) -> list[str]:
  """Short names (`q_proj`) where every such projection is adapted, whole ones elsewhere."""
  short = lambda key: key.removesuffix(".weight").rsplit(".", 1)[-1]
  adapted = {key for module in modules for key in base[f"{module}kernel"].keys}
  everywhere = collections.defaultdict(set)
  for path, tensor in base.items():
    if path.endswith("/kernel"):
      for key in tensor.keys:
        everywhere[short(key)].add(key)
  return sorted(
    {short(k) if everywhere[short(k)] <= adapted else re.sub(r"\.weight$", "", k) for k in adapted}
  )


def _check_fused(mapping: Mapping, adapters: Flat, folder: pathlib.Path) -> None:
  first: dict[tuple[str, ...], str] = {}
  for path, tensor in mapping.items():
    other = first.setdefault(tensor.keys, path)
    if path.endswith("lora_a") and not np.array_equal(adapters[path], adapters[other]):
      raise UserError(
        f"{folder}: {other} and {path} share one tensor in peft's file but differ here; "
        "merge the adapter into the weights instead"
      )
