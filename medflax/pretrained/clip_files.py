"""open_clip's checkpoint files, of which the image side is taken."""

import math
import pathlib
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import open_clip
from medflax.pretrained.checkpoint import Checkpoint, Options, under
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Mapping
from medflax.utils import UserError


def open_tower(path: pathlib.Path, _: Options) -> Checkpoint:
  """The ViT of a file, which gives patch tokens without the final norm."""
  tensors = open_checkpoint(path)
  section = _section(tensors, path)
  ignore = rf"{open_clip.TEXT}|visual\.(ln_post\..*|proj)"
  origin = dict(source="open_clip", section=section)
  mapping = under("tower", open_clip.mapping(section))
  return Checkpoint({"tower": section}, mapping, tensors, ignore, origin)


def _section(tensors: AnyMapping[str, LazyTensor], path: pathlib.Path) -> dict[str, Any]:
  """Sizes from shapes; what no shape tells is as in OpenAI's models: 64 channels a head, QuickGELU.

  Raises:
    UserError: if there is no such tower.
  """
  shape = lambda key: tensors[f"visual.{key}"].shape
  if not {"visual.conv1.weight", "visual.class_embedding"} <= tensors.keys():
    raise UserError(f"{path}: has no ViT of open_clip's (visual.conv1.weight and the like)")
  width, _, patch, _ = shape("conv1.weight")
  vision = dict(
    width=width,
    patch_size=patch,
    image_size=patch * math.isqrt(shape("positional_embedding")[0] - 1),
    layers=sum(key.startswith("visual.") and key.endswith(".ln_1.weight") for key in tensors),
    mlp_ratio=shape("transformer.resblocks.0.mlp.c_fc.weight")[0] / width,
  )
  return open_clip.config_from_open_clip(dict(vision_cfg=vision, quick_gelu=True))


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a tower that was imported."""
  return under("tower", open_clip.mapping(origin["section"]))
