"""OpenFlamingo's and Med-Flamingo's checkpoint files with those of what they were trained on."""

import pathlib
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import clip_files, hugging_face, open_clip, open_flamingo
from medflax.pretrained.checkpoint import Checkpoint, Options, under
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Mapping
from medflax.utils import UserError


def open_model(path: pathlib.Path, options: Options) -> Checkpoint:
  """A published `.pt` on its language model and its CLIP tower, or a whole model's state dict."""
  trained = open_checkpoint(path)
  inside = {key: x for key, x in trained.items() if key.startswith(TOWER)}
  if not options.lm or not (options.vision or inside):
    raise UserError(f"{path} holds what was trained alone: give --lm and --vision as well")
  language = hugging_face.open_folder(pathlib.Path(options.lm), Options())
  tower = _tower(pathlib.Path(options.vision)) if options.vision else _own_tower(inside, path)
  kind = language.origin["config"]["model_type"]
  trained = {key: x for key, x in trained.items() if key not in inside}
  tensors = open_flamingo.combined(trained, language.tensors, kind)
  sections = tower.sections | open_flamingo.config_from_tensors(tensors)
  sections["lm"] = language.sections["lm"] | open_flamingo.vocabulary(tensors, kind)
  mapping = open_flamingo.mapping(kind, sections) | tower.mapping
  ignore = f"{open_flamingo.ignored(kind, sections)}|{tower.ignore}"
  origin = dict(source="open_flamingo", sections=sections, model_type=kind)
  tensors |= tower.tensors
  return Checkpoint(sections, mapping, tensors, ignore, origin, tokenizer=language.tokenizer)


TOWER = "vision_encoder."  # before the tower's names in a whole model's state dict


def _tower(path: pathlib.Path) -> Checkpoint:
  if path.is_dir():
    return hugging_face.open_clip_tower(path)
  return clip_files.open_tower(path, Options())


def _own_tower(tensors: AnyMapping[str, LazyTensor], path: pathlib.Path) -> Checkpoint:
  renamed = {f"visual.{key.removeprefix(TOWER)}": x for key, x in tensors.items()}
  return clip_files.tower(renamed, path)


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a whole model's state dict."""
  sections = origin["sections"]
  tower = under("tower", open_clip.mapping(sections["tower"], TOWER))
  return open_flamingo.mapping(origin["model_type"], sections) | tower
