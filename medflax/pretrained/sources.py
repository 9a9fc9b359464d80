"""What can be imported: foreign checkpoints by kind, each as sections, a table and tensors."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import hf_decoders, hf_encoders, hf_vision, open_clip, open_flamingo
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.gguf_files import read_gguf
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Mapping
from medflax.utils import UserError, pick


@dataclasses.dataclass(frozen=True)
class Options:
  """Where to find what a checkpoint lacks, and how our model arranges it.

  Attributes:
    lm, vision: language model and vision tower that a checkpoint was trained on.
    xattn_every: of the fusion that an imported language model will have; 1 for none.
  """

  lm: str = ""
  vision: str = ""
  xattn_every: int = 1


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A foreign checkpoint and where it belongs.

  Attributes:
    sections: of `config.model`, by part; all of them for a whole model.
    mapping: our paths, which start with the part.
    tensors: by foreign name.
    ignore: regex of the foreign names that have no place in the model.
    origin: what `tools.export_weights` needs to write it back.
  """

  sections: dict[str, dict[str, Any]]
  mapping: Mapping
  tensors: dict[str, LazyTensor]
  ignore: str
  origin: dict[str, Any]


def hugging_face(path: pathlib.Path, options: Options) -> Checkpoint:
  """A folder with a config.json: a causal language model, an encoder or a vision tower."""
  hf = read_json(path / "config.json")
  model_type = hf.get("vision_config", hf).get("model_type", "")
  family = pick(HUGGING_FACE, model_type, f"model_type of {path / 'config.json'}:")
  part, section, mapping, ignore = family(hf, options)
  tensors = open_checkpoint(path)
  origin = dict(source="hugging_face", config=hf, xattn_every=options.xattn_every)
  return Checkpoint({part: section}, _under(part, mapping), tensors, ignore, origin)


Family = tuple[str, dict[str, Any], Mapping, str]


def _decoder(hf: dict[str, Any], options: Options) -> Family:
  section, kind = hf_decoders.config_from_hf(hf), hf["model_type"]
  mapping = hf_decoders.mapping(kind, section, options.xattn_every)
  return "lm", section, mapping, hf_decoders.ignored(kind, section)


def _encoder(hf: dict[str, Any], _: Options) -> Family:
  section = hf_encoders.config_from_hf(hf)
  return "lm", section, hf_encoders.mapping(section), hf_encoders.IGNORE


def _vision(hf: dict[str, Any], _: Options) -> Family:
  section = hf_vision.config_from_hf(hf)
  return "tower", section, hf_vision.mapping(section), hf_vision.unused(section)


HUGGING_FACE: dict[str, Callable[[dict[str, Any], Options], Family]] = {
  **dict.fromkeys(hf_decoders.FAMILIES, _decoder),
  **dict.fromkeys(hf_encoders.FAMILIES, _encoder),
  **dict.fromkeys(hf_vision.FAMILIES, _vision),
}


def gguf(path: pathlib.Path, options: Options) -> Checkpoint:
  """A causal language model of llama.cpp's, dequantised; it is written back as Hugging Face's."""
  hf, tensors = read_gguf(path)
  part, section, mapping, ignore = _decoder(hf, options)
  origin = dict(source="hugging_face", config=hf, xattn_every=options.xattn_every)
  return Checkpoint({part: section}, _under(part, mapping), tensors, ignore, origin)


def clip_tower(path: pathlib.Path, _: Options) -> Checkpoint:
  """An open_clip checkpoint's image side, which gives patch tokens without the final norm."""
  tensors = open_checkpoint(path)
  section = _open_clip_section(tensors, path)
  ignore = rf"{open_clip.TEXT}|visual\.(ln_post\..*|proj)"
  origin = dict(source="open_clip", section=section)
  mapping = _under("tower", open_clip.mapping(section))
  return Checkpoint({"tower": section}, mapping, tensors, ignore, origin)


def _open_clip_section(tensors: AnyMapping[str, LazyTensor], path: pathlib.Path) -> dict[str, Any]:
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


def _hugging_face_clip(path: pathlib.Path, _: Options) -> Checkpoint:
  """CLIP's tower from a Hugging Face folder, without the final norm."""
  hf = read_json(path / "config.json")
  section = hf_vision.config_from_hf(hf) | dict(final_norm=False)
  mapping = _under("tower", hf_vision.mapping(section))
  origin = dict(source="hugging_face", config=hf)
  tensors = open_checkpoint(path)
  return Checkpoint({"tower": section}, mapping, tensors, hf_vision.unused(section), origin)


def flamingo(path: pathlib.Path, options: Options) -> Checkpoint:
  """OpenFlamingo's or Med-Flamingo's `.pt` on its language model and its CLIP tower."""
  if not options.lm or not options.vision:
    raise UserError(f"{path} holds what was trained alone: give --lm and --vision as well")
  language = hugging_face(pathlib.Path(options.lm), Options())
  clip = pathlib.Path(options.vision)
  tower = (_hugging_face_clip if clip.is_dir() else clip_tower)(clip, Options())
  kind = language.origin["config"]["model_type"]
  tensors = open_flamingo.combined(open_checkpoint(path), language.tensors, kind)
  sections = tower.sections | open_flamingo.config_from_tensors(tensors)
  sections["lm"] = language.sections["lm"] | open_flamingo.vocabulary(tensors, kind)
  mapping = open_flamingo.mapping(kind, sections) | tower.mapping
  ignore = f"{open_flamingo.ignored(kind, sections)}|{tower.ignore}"
  origin = dict(source="open_flamingo", sections=sections, model_type=kind)
  return Checkpoint(sections, mapping, tensors | tower.tensors, ignore, origin)


SOURCES: dict[str, Callable[[pathlib.Path, Options], Checkpoint]] = {
  "hugging_face": hugging_face,
  "gguf": gguf,
  "open_clip": clip_tower,
  "open_flamingo": flamingo,
  "med_flamingo": flamingo,
}


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a checkpoint that was imported, by the `origin` it left.

  Of a Med-Flamingo, the tower is a checkpoint of its own and has no place.
  """
  return pick(TABLES, origin.get("source", ""), "source in origin.json:")(origin)


def _hugging_face_table(origin: AnyMapping[str, Any]) -> Mapping:
  hf = origin["config"]
  options = Options(xattn_every=origin.get("xattn_every", 1))
  part, _, mapping, _ = HUGGING_FACE[hf.get("vision_config", hf)["model_type"]](hf, options)
  return _under(part, mapping)


TABLES: dict[str, Callable[[AnyMapping[str, Any]], Mapping]] = {
  "hugging_face": _hugging_face_table,
  "open_clip": lambda origin: _under("tower", open_clip.mapping(origin["section"])),
  "open_flamingo": lambda origin: open_flamingo.mapping(origin["model_type"], origin["sections"]),
}


def _under(part: str, mapping: Mapping) -> Mapping:
  return {f"{part}/{path}": tensor for path, tensor in mapping.items()}


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object.

  Raises:
    UserError: if there is none.
  """
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read: {error}") from None
  if not isinstance(content, dict):
    raise UserError(f"{path} holds no JSON object")
  return content
