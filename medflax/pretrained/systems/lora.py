"""LoRAs that a checkpoint holds beside the weights they adapt, in any spelling of peft's.

Old files have `q_proj.weight` and `q_proj.lora_A.weight`; later ones `q_proj.base_layer.weight`
and `q_proj.lora_A.default.weight`. Ours is the first.
"""

import re
from collections.abc import Mapping as AnyMapping
from typing import Any

import jax
import numpy as np

from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Mapping
from medflax.pretrained.peft_files import lora_tensors, read_lora
from medflax.pretrained.systems.parts import renamed

PREFIX = "base_model.model."  # of all names in peft's own files
FACTOR = re.compile(r"(.*\.)lora_([AB])\.weight")

Tensors = dict[str, LazyTensor]


def one_spelling(tensors: Tensors) -> Tensors:
  """The tensors with the names of the oldest files."""
  spelled = lambda key: re.sub(r"(\.lora_[AB])\.\w+\.weight$", r"\1.weight", key)
  return {spelled(key).replace(".base_layer.", "."): x for key, x in tensors.items()}


def ranks(mapping: Mapping, tensors: AnyMapping[str, Any]) -> dict[str, int]:
  """The ranks of the adapted kernels by our path."""
  found = {}
  for path, tensor in mapping.items():
    key = tensor.key.format(*tensor.layers[:1]).removesuffix("weight") + "lora_A.weight"
    if key in tensors:
      found[path] = tensors[key].shape[0]
  return found


def rows(mapping: Mapping, ranks: AnyMapping[str, int]) -> Mapping:
  """Where the leaves of `medflax.peft` stand."""
  found: Mapping = {}
  for path, rank in ranks.items():
    factors = lora_tensors(mapping[path], rank)
    found |= {path.removesuffix("kernel") + name: tensor for name, tensor in factors.items()}
  return renamed(found, lambda key: key.removeprefix(PREFIX))


def leaves(
  mapping: Mapping,
  kernels: AnyMapping[str, jax.ShapeDtypeStruct],
  tensors: Tensors,
  *,
  alpha: float,
  dropout: float,
) -> dict[str, np.ndarray]:
  """The leaves of `medflax.peft`, read."""
  factors = {PREFIX + key: x for key, x in tensors.items() if FACTOR.fullmatch(key)}
  return read_lora(dict(lora_alpha=alpha, lora_dropout=dropout), factors, mapping, kernels)


def merged(tensors: Tensors, alpha: float) -> Tensors:
  """The tensors without factors, `W + alpha / rank · B A` where there were some."""
  base = {key: x for key, x in tensors.items() if not FACTOR.fullmatch(key)}
  for module in {m[1] for m in map(FACTOR.fullmatch, tensors) if m}:
    base[f"{module}weight"] = _merged(tensors, module, alpha)
  return base


def _merged(tensors: Tensors, module: str, alpha: float) -> LazyTensor:
  weight = tensors[f"{module}weight"]
  factors = [tensors[f"{module}lora_{factor}.weight"] for factor in "BA"]

  def read() -> np.ndarray:
    b, a = (np.asarray(factor).astype(np.float32) for factor in factors)
    whole = np.asarray(weight).astype(np.float32) + alpha / len(a) * (b @ a)
    return whole.astype(weight.dtype)

  return LazyTensor(weight.shape, weight.dtype, read)
