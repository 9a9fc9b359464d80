"""Hugging Face's folders of one part: language models, encoders, vision towers, captioners."""

import dataclasses
import pathlib
from collections.abc import Callable
from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import (
  hf_captioners,
  hf_decoders,
  hf_encoder_decoders,
  hf_encoders,
  hf_swin,
  hf_vision,
)
from medflax.pretrained.checkpoint import Checkpoint, Options, read_json, under
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.gguf_files import read_gguf
from medflax.pretrained.gguf_tokenizer import tokenizer_files
from medflax.pretrained.lazy import LazyTensor
from medflax.pretrained.mapping import Mapping
from medflax.utils import UserError, pick

# What a folder's tokenizer is made of.
TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "tokenizer.model",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
)


@dataclasses.dataclass(frozen=True)
class Fit:
  """Where a config.json's model belongs.

  Attributes:
    part, section: of `config.model`.
    mapping: our paths within the part.
    ignore: regex of the foreign names that have no place.
    base: before the names of the base model in files of the whole, absent from files of it alone.
    beside: see `Checkpoint`.
  """

  part: str
  section: dict[str, Any]
  mapping: Mapping
  ignore: str
  base: str = ""
  beside: dict[str, int] = dataclasses.field(default_factory=dict)


def open_folder(path: pathlib.Path, options: Options) -> Checkpoint:
  """A folder with a config.json."""
  hf = read_json(path / "config.json")
  files = [path / name for name in TOKENIZER_FILES if (path / name).is_file()]
  tokenizer = {file.name: file.read_bytes() for file in files}
  where = str(path / "config.json")
  family, tensors = _family(hf, where), open_checkpoint(path)
  _check_depth(hf, len(tensors), where)
  return _checkpoint(hf, _fit(family, hf, options, where), tensors, tokenizer)


def open_gguf(path: pathlib.Path, options: Options) -> Checkpoint:
  """A causal language model of llama.cpp's, dequantised; it is written back as a folder."""
  hf, tensors, metadata = read_gguf(path)
  return _checkpoint(hf, _decoder(hf, options), tensors, tokenizer_files(metadata, str(path)))


def open_clip_tower(path: pathlib.Path) -> Checkpoint:
  """CLIP's tower from a folder, without the final norm."""
  hf = read_json(path / "config.json")
  section = hf_vision.config_from_hf(hf) | dict(final_norm=False)
  fit = Fit("tower", section, hf_vision.mapping(section), hf_vision.unused(section))
  return _checkpoint(hf, fit, open_checkpoint(path), {})


def table(origin: AnyMapping[str, Any]) -> Mapping:
  """The table of a folder that was imported."""
  options = Options(xattn_every=origin.get("xattn_every", 1))
  hf, where = origin["config"], "origin.json"
  fit = _fit(_family(hf, where), hf, options, where)
  return under(fit.part, fit.mapping)


def _checkpoint(
  hf: dict[str, Any],
  fit: Fit,
  tensors: AnyMapping[str, LazyTensor],
  tokenizer: dict[str, bytes],
) -> Checkpoint:
  return Checkpoint(
    sections={fit.part: fit.section},
    mapping=under(fit.part, fit.mapping),
    tensors=_as_in_table(tensors, fit),
    ignore=fit.ignore,
    origin=dict(source="hugging_face", config=hf, **fit.beside),
    beside=fit.beside,
    tokenizer=tokenizer,
  )


Family = Callable[[dict[str, Any], Options], Fit]


def _family(hf: dict[str, Any], where: str) -> Family:
  kind = str(hf.get("model_type", ""))
  if kind not in FAMILIES:
    kind = str(_nested(hf, "vision_config").get("model_type", ""))
  return pick(FAMILIES, kind, f"model_type of {where}:")


def _fit(family: Family, hf: dict[str, Any], options: Options, where: str) -> Fit:
  """Where the model belongs.

  Raises:
    UserError: for a field that is missing or of another kind.
  """
  try:
    return family(hf, options)
  except UserError:
    raise
  except KeyError as error:
    raise UserError(f"{where}: lacks the field {error}") from None
  except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
    raise UserError(f"{where}: has a field that no such model has: {error}") from None


def _nested(hf: dict[str, Any], name: str) -> dict[str, Any]:
  section = hf.get(name, hf)
  return section if isinstance(section, dict) else hf


def _check_depth(hf: dict[str, Any], count: int, where: str) -> None:
  """Refuses more layers than tensors before a table has a row for each."""
  for section in (hf, *(_nested(hf, name) for name in ("vision_config", "text_config"))):
    depths = {name: section[name] for name in DEPTHS if isinstance(section.get(name), int)}
    if deep := [name for name, depth in depths.items() if depth > count]:
      raise UserError(f"{where}: {deep[0]} = {depths[deep[0]]}, but there are {count} tensors")


DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")


def _as_in_table(tensors: AnyMapping[str, LazyTensor], fit: Fit) -> dict[str, LazyTensor]:
  """Tensors by the names of the table: with or without the base's prefix, norms as PyTorch's.

  GPT-2's published files leave it out, those of a ViT that classifies have it; BERT's oldest
  ones have TensorFlow's names of a norm's weight and bias.
  """
  known = {key for tensor in fit.mapping.values() for key in tensor.keys}

  def name(key: str) -> str:
    new = key.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
      "LayerNorm.beta", "LayerNorm.bias"
    )
    others = (new, fit.base + new, new.removeprefix(fit.base))
    return next((k for k in others if k in known and k not in tensors), key)

  return {name(key): tensor for key, tensor in tensors.items()}


def _decoder(hf: dict[str, Any], options: Options) -> Fit:
  section, kind, every = hf_decoders.config_from_hf(hf), hf["model_type"], options.xattn_every
  mapping, ignore = hf_decoders.mapping(kind, section, every), hf_decoders.ignored(kind, section)
  base = hf_decoders.NAMES[kind].layer.partition(".")[0] + "."
  return Fit("lm", section, mapping, ignore, base, dict(xattn_every=every))


def _encoder(hf: dict[str, Any], _: Options) -> Fit:
  section, base = hf_encoders.config_from_hf(hf), f"{hf['model_type']}."
  return Fit("lm", section, hf_encoders.mapping(section), hf_encoders.IGNORE, base)


def _encoder_decoder(hf: dict[str, Any], _: Options) -> Fit:
  section, ignore = hf_encoder_decoders.config_from_hf(hf), hf_encoder_decoders.IGNORE
  values = hf.get("vision_config", {}).get("patch_embed_hidden_size", 768)
  beside = dict(patch_values=values)
  return Fit("lm", section, hf_encoder_decoders.mapping(section), ignore, beside=beside)


def _vision(hf: dict[str, Any], _: Options) -> Fit:
  section = hf_vision.config_from_hf(hf)
  base = f"{hf['model_type']}."
  ignore = _unused(hf_vision.unused(section), base)
  return Fit("tower", section, hf_vision.mapping(section), ignore, base)


def _swin(hf: dict[str, Any], _: Options) -> Fit:
  section = hf_swin.config_from_hf(hf)
  ignore = _unused(hf_swin.IGNORE, "swin.")
  return Fit("tower", section, hf_swin.mapping(section), ignore, "swin.")


def _unused(ignore: str, base: str) -> str:
  return rf"({base})?({ignore})|classifier\..*"


def _captioner(hf: dict[str, Any], _: Options) -> Fit:
  section = hf_captioners.config_from_hf(hf)
  return Fit("captioner", section, hf_captioners.mapping(section), hf_captioners.IGNORE)


FAMILIES: dict[str, Family] = {
  **dict.fromkeys(hf_decoders.FAMILIES, _decoder),
  **dict.fromkeys(hf_encoders.FAMILIES, _encoder),
  **dict.fromkeys(hf_encoder_decoders.FAMILIES, _encoder_decoder),
  **dict.fromkeys(hf_vision.FAMILIES, _vision),
  "swin": _swin,
  "git": _captioner,
}
