"""LoRA adapters in the files of Hugging Face's peft library.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. The latter has for each
adapted projection `base_model.model.<name>.lora_A.weight` [rank, in] and `.lora_B.weight`
[out, rank]; where the projection stands in the base model tells its family's table.
"""

import collections
import json
import math
import pathlib
import re
from collections.abc import Mapping as AnyMapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from jaxtyping import Shaped

from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.mapping import Mapping, Tensor, to_ours, to_theirs
from medflax.utils import UserError, write_atomic

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OLD_WEIGHTS = "adapter_model.bin"
# Settings that change what an adapter computes, and the only value of each that we know.
PLAIN = {"peft_type": "LORA", "use_dora": False, "lora_bias": False, "bias": "none"}
ABSENT = ("modules_to_save", "alpha_pattern", "trainable_token_indices", "target_parameters")

Flat = dict[str, Shaped[np.ndarray, "..."]]


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


def write_adapter(
  folder: pathlib.Path, adapters: Flat, base: Mapping, *, base_model: str = ""
) -> None:
  """Saves the leaves of `medflax.peft` so that peft loads them.

  Args:
    adapters: from `medflax.peft.adapters`, as arrays of the host.
    base_model: name or folder of the base model, for peft to find it.

  Raises:
    UserError: for what the format cannot hold: several ranks or scales, projections that the
      base model fuses but that were trained apart.
  """
  modules = [path.removesuffix("lora_a") for path in adapters if path.endswith("/lora_a")]
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
  tensors = to_theirs(mapping, {path: adapters[path] for path in mapping})
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": base_model or None,
    "r": rank,
    "lora_alpha": scale * rank,
    "lora_dropout": round(rate, 6),
    "target_modules": _targets(modules, base),
    "fan_in_fan_out": any(not base[f"{module}kernel"].axes for module in modules),
    "bias": "none",
    "inference_mode": True,
  }
  contiguous = {key: np.ascontiguousarray(x) for key, x in tensors.items()}
  write_atomic(folder / WEIGHTS, safetensors.numpy.save(contiguous, metadata={"format": "pt"}))
  write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")


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
  try:
    config = json.loads(path.read_text())
  except (OSError, json.JSONDecodeError) as error:
    raise UserError(f"{path} cannot be read: {error}") from None
  for name, value in PLAIN.items():
    if config.get(name, value) != value:
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
