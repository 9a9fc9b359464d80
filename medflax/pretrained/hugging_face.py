"""Hugging Face's folders of one part: a causal language model, an encoder or a vision tower."""

import pathlib
from collections.abc import Callable
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import hf_decoders, hf_encoders, hf_vision
from medflax.pretrained.checkpoint import Checkpoint, Options, read_json, under
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.gguf_files import read_gguf
from medflax.pretrained.mapping import Mapping
from medflax.utils import pick

Family = tuple[str, dict[str, Any], Mapping, str]  # part, section, its table, what is ignored


def open_folder(path: pathlib.Path, options: Options) -> Checkpoint:
  """A folder with a config.json."""
  hf = read_json(path / "config.json")
  family = pick(FAMILIES, _model_type(hf), f"model_type of {path / 'config.json'}:")
  part, section, mapping, ignore = family(hf, options)
  tensors = open_checkpoint(path)
  return Checkpoint({part: section}, under(part, mapping), tensors, ignore, _origin(hf, options))


def open_gguf(path: pathlib.Path, options: Options) -> Checkpoint:
  """A causal language model of llama.cpp's, dequantised; it is written back as a folder."""
  hf, tensors = read_gguf(path)
  part, section, mapping, ignore = _decoder(hf, options)
  return Checkpoint({part: section}, under(part, mapping), tensors, ignore, _origin(hf, options))


def open_clip_tower(path: pathlib.Path) -> Checkpoint:
  """CLIP's tower from a folder, without the final norm."""
  hf = read_json(path / "config.json")
  section = hf_vision.config_from_hf(hf) | dict(final_norm=False)
  mapping, ignore = under("tower", hf_vision.mapping(section)), hf_vision.unused(section)
  origin = _origin(hf, Options())
  return Checkpoint({"tower": section}, mapping, open_checkpoint(path), ignore, origin)


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a folder that was imported."""
  hf, options = origin["config"], Options(xattn_every=origin.get("xattn_every", 1))
  part, _, mapping, _ = FAMILIES[_model_type(hf)](hf, options)
  return under(part, mapping)


def _origin(hf: dict[str, Any], options: Options) -> dict[str, Any]:
  return dict(source="hugging_face", config=hf, xattn_every=options.xattn_every)


def _model_type(hf: AnyMapping[str, Any]) -> str:
  return hf.get("vision_config", hf).get("model_type", "")


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


FAMILIES: dict[str, Callable[[dict[str, Any], Options], Family]] = {
  **dict.fromkeys(hf_decoders.FAMILIES, _decoder),
  **dict.fromkeys(hf_encoders.FAMILIES, _encoder),
  **dict.fromkeys(hf_vision.FAMILIES, _vision),
}
