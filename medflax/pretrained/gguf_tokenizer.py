"""The tokenizer in a GGUF file's metadata as the files of a Hugging Face tokenizer folder."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from medflax.utils import UserError, pick

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # of llama.cpp's token types
SPACE = "▁"  # SentencePiece's
# What tokenizer_config.json calls the tokens of which GGUF has the ids.
NAMED = {
  "bos_token_id": "bos_token",
  "eos_token_id": "eos_token",
  "unknown_token_id": "unk_token",
  "padding_token_id": "pad_token",
}
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class Splitting:
  """What a byte-level tokenizer does before its merges.

  Attributes:
    pattern: a word, as a regex; "" for GPT-2's.
    normalizer: of the text, None for none.
    whole_words: a word that is in the vocabulary is not merged from its bytes.
    bos: whether texts start with the beginning-of-sequence token where the file does not say.
  """

  pattern: str = ""
  normalizer: normalizers.Normalizer | None = None
  whole_words: bool = False
  bos: bool = False


SPLITTINGS = {
  "gpt-2": Splitting(),
  "llama-bpe": Splitting(_WORDS % "1,3", whole_words=True, bos=True),
  "qwen2": Splitting(_WORDS % "1", normalizers.NFC()),
}


def tokenizer_files(given: Mapping[str, Any], path: str) -> dict[str, bytes]:
  """tokenizer.json and tokenizer_config.json, by name; none if the file has no vocabulary.

  Args:
    given: the metadata by their names after "tokenizer.ggml.".
    path: of the GGUF file, for messages.

  Raises:
    UserError: for a kind of tokenizer that is not known, or a damaged one.
  """
  if "tokens" not in given:
    return {}
  build = pick(MODELS, given.get("model", ""), f"tokenizer of {path},")
  try:
    backend, bos = build(given)
    names = {theirs: given["tokens"][given[k]] for k, theirs in NAMED.items() if k in given}
    _add_specials(backend, given)
    _frame(backend, given, names, bos)
  except UserError:
    raise
  except Exception as error:  # tokenizers raises nothing narrower
    raise UserError(f"{path}: its tokenizer is damaged: {error!r}") from None
  config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
  config |= {"clean_up_tokenization_spaces": False}
  text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
  return {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": text.encode()}


def _sentencepiece(given: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, bool]:
  """SentencePiece's BPE with bytes for characters that it does not know (LLaMA, Gemma)."""
  tokens, prefix = given["tokens"], given.get("add_space_prefix", True)
  model = models.BPE(
    _vocabulary(tokens),
    list(_merges(tokens, given["scores"], given["token_type"])),
    unk_token=tokens[given.get("unknown_token_id", 0)],
    fuse_unk=True,
    byte_fallback=True,
  )
  backend = tokenizers.Tokenizer(model)
  spaces = normalizers.Replace(" ", SPACE)
  start = [normalizers.Prepend(SPACE)] if prefix else []
  backend.normalizer = normalizers.Sequence([*start, spaces])
  strip = [decoders.Strip(" ", 1, 0)] if prefix else []
  backend.decoder = decoders.Sequence(
    [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
  )
  return backend, True


def _merges(
  tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> Iterator[tuple[str, str]]:
  """Every way to put a piece together from two, pieces of the highest score first."""
  normal = {t: s for t, s, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
  for piece in sorted(normal, key=normal.__getitem__, reverse=True):
    for i in range(len(piece) - 1, 0, -1):
      if piece[:i] in normal and piece[i:] in normal:
        yield piece[:i], piece[i:]


def _byte_level(given: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, bool]:
  """BPE over bytes, each written as a letter (GPT-2, LLaMA 3, Qwen)."""
  split = pick(SPLITTINGS, given.get("pre", ""), "tokenizer.ggml.pre of a GGUF file")
  merges = [tuple(merge.split(" ")) for merge in given["merges"]]
  vocabulary = _vocabulary(given["tokens"])
  backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split.whole_words))
  if split.normalizer is not None:
    backend.normalizer = split.normalizer
  to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split.pattern)
  words = [pre_tokenizers.Split(tokenizers.Regex(split.pattern), "isolated")]
  backend.pre_tokenizer = pre_tokenizers.Sequence([*(words if split.pattern else []), to_bytes])
  backend.decoder = decoders.ByteLevel()
  return backend, split.bos


MODELS: dict[str, Callable[[Mapping[str, Any]], tuple[tokenizers.Tokenizer, bool]]] = {
  "llama": _sentencepiece,
  "gpt2": _byte_level,
}


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
  vocabulary = {token: i for i, token in enumerate(tokens)}
  if len(vocabulary) < len(tokens):
    raise ValueError("a token is there twice")
  return vocabulary


def _add_specials(backend: tokenizers.Tokenizer, given: Mapping[str, Any]) -> None:
  """Control tokens, and texts that are always one token (with spaces, not SentencePiece's sign).

  Texts are looked for behind the normaliser, which turns spaces into that sign; but where it
  also puts one in front, before it, as Hugging Face's LLaMA does.
  """
  kinds = list(zip(given["tokens"], given["token_type"], strict=True))
  control = [token for token, kind in kinds if kind in (UNKNOWN, CONTROL)]
  backend.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in control])
  whole = [token for token, kind in kinds if kind == USER_DEFINED]
  normalized = not given.get("add_space_prefix", True)
  backend.add_tokens([tokenizers.AddedToken(token, normalized=normalized) for token in whole])


def _frame(
  backend: tokenizers.Tokenizer, given: Mapping[str, Any], names: Mapping[str, str], bos: bool
) -> None:
  """Which tokens the tokenizer itself puts before and behind a text."""
  before = ["bos_token"] if given.get("add_bos_token", bos) and "bos_token" in names else []
  behind = ["eos_token"] if given.get("add_eos_token", False) and "eos_token" in names else []
  if before or behind:
    framed = lambda part: [
      *(f"{names[name]}:{part}" for name in before),
      f"${'AB'[part]}:{part}",
      *(f"{names[name]}:{part}" for name in behind),
    ]
    tokens = [(names[name], given[f"{name}_id"]) for name in before + behind]
    backend.post_processor = processors.TemplateProcessing(
      single=framed(0), pair=framed(0) + framed(1), special_tokens=tokens
    )
