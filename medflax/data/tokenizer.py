"""Tokenizers: the small one shipped with medflax, or any Hugging Face tokenizer folder.

Text never yields a special token: `<image>` in a user's question is spelt out like any other
text. Special tokens come from `Media` and `Special` segments alone (see encode.py).
"""

import functools
import json
import pathlib
import re
from collections.abc import Iterable

import numpy as np
import tokenizers

from medflax.data.documents import END_OF_CHUNK, IMAGE_TOKEN
from medflax.utils import UserError, nearest

SHIPPED = pathlib.Path(__file__).parent / "assets" / "tokenizer.json"

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
# Of the shipped tokenizer, in id order from 0.
SHIPPED_SPECIALS = (PAD, BOS, EOS, IMAGE_TOKEN, END_OF_CHUNK)


class Tokenizer:
  """Text to ids and back.

  Attributes:
    vocab_size: number of ids, added tokens included.
    bos_id, eos_id: None where the tokenizer has none.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    origin: tuple[str, tuple[str, ...], str],
    *,
    pad: str,
    bos: str | None,
    eos: str | None,
  ):
    """`origin` is what `load_tokenizer` was given."""
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True  # the library's word for: spell them out in text
    self._backend, self._origin = backend, origin
    self._special_ids = {
      token.content: index
      for index, token in backend.get_added_tokens_decoder().items()
      if token.special
    }
    self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
    self.pad_id = self.special_id(pad)
    self.bos_id = self.special_id(bos) if bos else None
    self.eos_id = self.special_id(eos) if eos else None
    # A pure function of short, often repeated strings: prompts, closed answers, invented words.
    self._spans = functools.lru_cache(maxsize=4096)(self._encode_spans)

  def __reduce__(self):
    return load_tokenizer, self._origin  # worker processes read the file again

  def _encode_spans(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    encoding = self._backend.encode(text, add_special_tokens=False)
    return tuple(encoding.ids), tuple(end for _, end in encoding.offsets)

  def spans(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids of `text`, and for each the offset in `text` (in characters) where it ends."""
    return self._spans(text)

  def encode(self, text: str) -> list[int]:
    """The ids of `text`; none of them special, none added in front or behind."""
    return list(self.spans(text)[0])

  def decode(self, ids: Iterable[int | np.integer]) -> str:
    """The text of `ids`; special tokens are dropped."""
    return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

  def pieces(self) -> list[bytes]:
    """What each token adds to a text, in UTF-8, by id; special tokens add nothing.

    Raises:
      UserError: for tokens that are neither of bytes nor SentencePiece's.
    """
    told = json.loads(self._backend.to_str())["decoder"] or {}
    kinds = {part["type"] for part in (told, *told.get("decoders", ()))}
    if not kinds & {"ByteLevel", "Metaspace", "ByteFallback"}:
      raise UserError(
        f"tokenizer {self._origin[0]}: stop strings need a byte-level or SentencePiece tokenizer"
      )
    spell = _byte_level if "ByteLevel" in kinds else _sentence_piece
    pieces = {
      index: spell(token)
      for token, index in self._backend.get_vocab(with_added_tokens=False).items()
    }
    for index, token in self._backend.get_added_tokens_decoder().items():
      pieces[index] = b"" if token.special else token.content.encode()
    return [pieces.get(index, b"") for index in range(max(pieces) + 1)]

  def special_id(self, token: str) -> int:
    """The id of a special token by name.

    Raises:
      UserError: if the tokenizer has no special token of that name.
    """
    if token not in self._special_ids:
      hint = nearest(token, self._special_ids)
      raise UserError(f"tokenizer {self._origin[0] or 'medflax'}: no special token {token!r}{hint}")
    return self._special_ids[token]


def _byte_level(token: str) -> bytes:
  """The bytes of a token of GPT-2's alphabet, which has a printable character for each."""
  byte_of = _byte_alphabet()
  return b"".join(byte_of.get(c, c.encode()) for c in token)


@functools.cache
def _byte_alphabet() -> dict[str, bytes]:
  """Printable Latin-1 stands for itself, the other bytes in their order for U+0100 and on."""
  printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = [byte for byte in range(256) if byte not in printable]
  shifted = {chr(0x100 + i): bytes([byte]) for i, byte in enumerate(others)}
  return {chr(byte): bytes([byte]) for byte in printable} | shifted


def _sentence_piece(token: str) -> bytes:
  """A piece's text: "▁" is a space, "<0x0A>" a byte."""
  if re.fullmatch("<0x[0-9A-F]{2}>", token):
    return bytes([int(token[3:5], 16)])
  return token.replace("▁", " ").encode()


def load_tokenizer(
  path: str = "", add: Iterable[str] = (END_OF_CHUNK, IMAGE_TOKEN), pad: str = ""
) -> Tokenizer:
  """Loads the shipped tokenizer ("") or a Hugging Face tokenizer folder, without network.

  Args:
    path: "" or the folder.
    add: special tokens that get the next ids unless the tokenizer has them. The default is
      OpenFlamingo's (open_flamingo/src/factory.py): 32000 and 32001 after LLaMA's 32,000 pieces.
    pad: the padding token, one that exists; "": the tokenizer's own, or else `<PAD>`, added last.

  Raises:
    UserError: if the folder or its files are missing or cannot be read, or there is no such `pad`.
  """
  origin = (path, tuple(add), pad)
  if not path:
    backend = tokenizers.Tokenizer.from_file(str(SHIPPED))
    backend.add_special_tokens([*origin[1]])
    return Tokenizer(backend, origin, pad=pad or PAD, bos=BOS, eos=EOS)
  if not pathlib.Path(path).is_dir():
    raise UserError(f"tokenizer.path: {path} is not a folder; give one that has tokenizer.json")

  import transformers  # seconds to import, and only needed here

  try:
    loaded = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
  except Exception as error:  # every file format raises its own
    reason = str(error).strip().split("\n")[0]
    raise UserError(f"tokenizer.path: cannot load {path}: {reason}") from error
  if not loaded.is_fast:
    raise UserError(f"tokenizer.path: {path} has no tokenizer.json (a fast tokenizer)")
  loaded.add_tokens([*origin[1]], special_tokens=True)
  if not pad and loaded.pad_token is None:
    loaded.add_special_tokens({"pad_token": "<PAD>"})
  backend, bos, eos = loaded.backend_tokenizer, loaded.bos_token, loaded.eos_token
  return Tokenizer(backend, origin, pad=pad or loaded.pad_token, bos=bos, eos=eos)
