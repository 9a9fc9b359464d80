"""open_clip's and PMC-CLIP's checkpoint files, of which the image side is taken."""

import math
import pathlib
import re
from collections.abc import Callable
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import open_clip
from medflax.pretrained.checkpoint import Checkpoint, Options, under
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.hf_vision import CLIP_MEAN, CLIP_STD
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Mapping
from medflax.utils import UserError

RESNET_SIZE = 224  # of images, where a checkpoint has no attention pool to tell it
BLOCK = re.compile(r"visual\.layer(\d)\.(\d+)\.conv1\.weight")


def open_tower(path: pathlib.Path, _: Options) -> Checkpoint:
  """The tower of an open_clip file: patch tokens without the final norm, or the last stage's."""
  return tower(_image_side(path), path)


def tower(tensors: dict[str, LazyTensor], path: pathlib.Path) -> Checkpoint:
  """The tower of tensors by open_clip's names, `visual.conv1.weight` and the like."""
  section = _section(tensors, path)
  if section["type"] == "modified_resnet":
    section |= dict(mean=CLIP_MEAN, std=CLIP_STD)
  return _checkpoint(section, tensors, rf"{open_clip.TEXT}|{UNUSED}")


def open_pmc_clip(path: pathlib.Path, _: Options) -> Checkpoint:
  """The ResNet of PMC-CLIP's `checkpoint.pt`, whose text side has names of its own."""
  tensors = _image_side(path)
  section = _section(tensors, path)
  if section["type"] != "modified_resnet":
    raise UserError(f"{path}: PMC-CLIP's tower is a ResNet; import this one as 'open_clip'")
  return _checkpoint(section, tensors, rf"(?!visual\.).*|{UNUSED}")


UNUSED = r"visual\.(ln_post\..*|proj|attnpool\..*)|.*num_batches_tracked"


def _image_side(path: pathlib.Path) -> dict[str, LazyTensor]:
  """Tensors without the prefix of data-parallel training."""
  return {key.removeprefix("module."): x for key, x in open_checkpoint(path).items()}


def _checkpoint(section: dict[str, Any], tensors: dict[str, LazyTensor], ignore: str) -> Checkpoint:
  origin = dict(source="open_clip", section=section)
  return Checkpoint({"tower": section}, table(origin), tensors, ignore, origin)


def _section(tensors: AnyMapping[str, LazyTensor], path: pathlib.Path) -> dict[str, Any]:
  """Sizes from shapes; what no shape tells is as in OpenAI's models: 64 channels a head, QuickGELU.

  Raises:
    UserError: if there is no such tower.
  """
  if {"visual.conv1.weight", "visual.class_embedding"} <= tensors.keys():
    return _vit(tensors)
  if {"visual.conv3.weight", "visual.layer1.0.conv1.weight"} <= tensors.keys():
    return _resnet(tensors)
  raise UserError(f"{path}: has no tower of open_clip's (visual.conv1.weight and the like)")


def _vit(tensors: AnyMapping[str, LazyTensor]) -> dict[str, Any]:
  shape = lambda key: tensors[f"visual.{key}"].shape
  width, _, patch, _ = shape("conv1.weight")
  vision = dict(
    width=width,
    patch_size=patch,
    image_size=patch * math.isqrt(shape("positional_embedding")[0] - 1),
    layers=sum(key.startswith("visual.") and key.endswith(".ln_1.weight") for key in tensors),
    mlp_ratio=shape("transformer.resblocks.0.mlp.c_fc.weight")[0] / width,
  )
  return open_clip.config_from_open_clip(dict(vision_cfg=vision, quick_gelu=True))


def _resnet(tensors: AnyMapping[str, LazyTensor]) -> dict[str, Any]:
  places = [tuple(map(int, m.groups())) for m in map(BLOCK.fullmatch, tensors) if m]
  stages = max(stage for stage, _ in places)
  blocks = [sum(s == stage for s, _ in places) for stage in range(1, stages + 1)]
  pool, size = tensors.get("visual.attnpool.positional_embedding"), RESNET_SIZE
  if pool is not None:
    size = 2 ** (stages + 1) * math.isqrt(pool.shape[0] - 1)
  width = tensors["visual.layer1.0.conv1.weight"].shape[0]
  return open_clip.resnet_config(blocks, width=width, image_size=size)


TABLES: dict[str, Callable[[AnyMapping[str, Any]], Mapping]] = {
  "vit": open_clip.mapping,
  "modified_resnet": open_clip.resnet_mapping,
}


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a tower that was imported."""
  section = origin["section"]
  return under("tower", TABLES[section["type"]](section))
