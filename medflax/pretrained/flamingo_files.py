"""OpenFlamingo's and Med-Flamingo's checkpoint files with those of what they were trained on."""

import pathlib
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import clip_files, hugging_face, open_flamingo
from medflax.pretrained.checkpoint import Checkpoint, Options
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.mapping import Mapping
from medflax.utils import UserError


def open_model(path: pathlib.Path, options: Options) -> Checkpoint:
  """A published `.pt` on its language model and its CLIP tower."""
  if not options.lm or not options.vision:
    raise UserError(f"{path} holds what was trained alone: give --lm and --vision as well")
  language = hugging_face.open_folder(pathlib.Path(options.lm), Options())
  clip = pathlib.Path(options.vision)
  tower = (
    hugging_face.open_clip_tower(clip) if clip.is_dir() else clip_files.open_tower(clip, Options())
  )
  kind = language.origin["config"]["model_type"]
  tensors = open_flamingo.combined(open_checkpoint(path), language.tensors, kind)
  sections = tower.sections | open_flamingo.config_from_tensors(tensors)
  sections["lm"] = language.sections["lm"] | open_flamingo.vocabulary(tensors, kind)
  mapping = open_flamingo.mapping(kind, sections) | tower.mapping
  ignore = f"{open_flamingo.ignored(kind, sections)}|{tower.ignore}"
  origin = dict(source="open_flamingo", sections=sections, model_type=kind)
  tensors |= tower.tensors
  return Checkpoint(sections, mapping, tensors, ignore, origin, tokenizer=language.tokenizer)


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a model that was imported, but for its tower, a checkpoint of its own."""
  return open_flamingo.mapping(origin["model_type"], origin["sections"])
