"""What a source makes of a foreign checkpoint: sections, a table and tensors."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Mapping
from medflax.utils import UserError


@dataclasses.dataclass(frozen=True)
class Options:
  """Where to find what a checkpoint lacks, and how our model arranges it.

  Attributes:
    lm, vision: language model and vision tower that a checkpoint was trained on.
    xattn_every: of the fusion that an imported language model will have; 1 for none.
    merge_lora: whether a LoRA in the checkpoint is added to the weights that it adapts.
  """

  lm: str = ""
  vision: str = ""
  xattn_every: int = 1
  merge_lora: bool = False


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A foreign checkpoint and where it belongs.

  Attributes:
    sections: of `config.model`, by part; all of them for a whole model.
    mapping: our paths, which start with the part.
    tensors: by foreign name.
    ignore: regex of the foreign names that have no place in the model.
    origin: what `tools.export_weights` needs to write it back; `source` is a name in `SOURCES`.
    beside: what the leaves depend on beside the sections, arguments of `leaves.abstract_leaves`.
    adapters: leaves of `medflax.peft` beside the others.
    tokenizer: a Hugging Face tokenizer folder's files by name; none if the checkpoint has none.
  """

  sections: dict[str, dict[str, Any]]
  mapping: Mapping
  tensors: dict[str, LazyTensor]
  ignore: str
  origin: dict[str, Any]
  beside: dict[str, int] = dataclasses.field(default_factory=dict)
  adapters: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  tokenizer: dict[str, bytes] = dataclasses.field(default_factory=dict)


def under(part: str, mapping: Mapping) -> Mapping:
  """The table of a part by itself as the whole model's rows."""
  return {f"{part}/{path}": tensor for path, tensor in mapping.items()}


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object.

  Raises:
    UserError: if there is none.
  """
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{path} cannot be read: {error}") from None
  if not isinstance(content, dict):
    raise UserError(f"{path} holds no JSON object")
  return content
