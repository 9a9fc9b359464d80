"""What can be imported, by name; each kind of checkpoint is a module of its own."""

import dataclasses
import pathlib
from collections.abc import Callable
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import clip_files, flamingo_files, hugging_face
from medflax.pretrained.checkpoint import Checkpoint, Options
from medflax.pretrained.mapping import Mapping
from medflax.pretrained.systems import gemma3_vlm, llava, medvint, prefix_vqa, radfm
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
  "radfm": Source(radfm.open_model, radfm.table),
  "medvint_td": Source(medvint.open_td, medvint.table),
  "medvint_te": Source(medvint.open_te, medvint.table),
  "prefix_vqa": Source(prefix_vqa.open_model, prefix_vqa.table),
  "llava": Source(llava.open_folder, llava.table),
  "llava_med": Source(llava.open_folder, llava.table),
  "gemma3_vlm": Source(gemma3_vlm.open_folder, gemma3_vlm.table),
  "medgemma": Source(gemma3_vlm.open_folder, gemma3_vlm.table),
}


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a checkpoint that was imported, by the `origin` it left."""
  return pick(SOURCES, origin.get("source", ""), "source in origin.json:").table(origin)
