"""What can be imported, by name; each kind of checkpoint is a module of its own."""

import dataclasses
import pathlib
from collections.abc import Callable
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import clip_files, flamingo_files, hugging_face
from medflax.pretrained.checkpoint import Checkpoint, Options
from medflax.pretrained.mapping import Mapping
from medflax.utils import pick


@dataclasses.dataclass(frozen=True)
class Source:
  """A kind of checkpoint.

  Attributes:
    open: the checkpoint at a path; reads names and shapes alone.
    table: where the leaves of an import stood, by the `origin` that `open` gave it.
  """

  open: Callable[[pathlib.Path, Options], Checkpoint]
  table: Callable[[AnyMapping[str, Any]], Mapping]


SOURCES: dict[str, Source] = {
  "hugging_face": Source(hugging_face.open_folder, hugging_face.table),
  "gguf": Source(hugging_face.open_gguf, hugging_face.table),
  "open_clip": Source(clip_files.open_tower, clip_files.table),
  "pmc_clip": Source(clip_files.open_pmc_clip, clip_files.table),
  "open_flamingo": Source(flamingo_files.open_model, flamingo_files.table),
  "med_flamingo": Source(flamingo_files.open_model, flamingo_files.table),
}


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a checkpoint that was imported, by the `origin` it left."""
  return pick(SOURCES, origin.get("source", ""), "source in origin.json:").table(origin)
