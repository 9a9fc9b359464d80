"""Documents to token rows: media rules, encoding, truncation, and the batch dict.

The batch contract is in docs/design.md; this module fills its keys.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float32, Int32

from medflax.data.documents import IMAGE_TOKEN, Document, Media, Segment, Special, Text
from medflax.data.tokenizer import Tokenizer
from medflax.utils import UserError

MediaLinks = tuple[Int32[np.ndarray, " t"], Int32[np.ndarray, " t"]]


def _prev_image(is_media: Bool[np.ndarray, " t"]) -> MediaLinks:
  index = np.cumsum(is_media, dtype=np.int32)
  return index, index


def _next_image(is_media: Bool[np.ndarray, " t"]) -> MediaLinks:
  index = np.cumsum(is_media, dtype=np.int32) + ~is_media
  index = np.where(index > is_media.sum(), 0, index).astype(np.int32)
  return index, index


def _all_prev(is_media: Bool[np.ndarray, " t"]) -> MediaLinks:
  index = np.cumsum(is_media, dtype=np.int32)
  return index, (index > 0).astype(np.int32)


# Which media a token of one document sees: `media_index` and `media_first`, ordinals from 1.
# OpenFlamingo's `MaskedCrossAttention` (helpers.py): `_prev_image` is version 2's, `_next_image`
# version 0.0.2's default, `_all_prev` is `only_attend_immediate_media=False`.
MEDIA_RULES: dict[str, Callable[[Bool[np.ndarray, " t"]], MediaLinks]] = {
  "prev_image": _prev_image,
  "next_image": _next_image,
  "all_prev": _all_prev,
}


def media_options(config: Any) -> dict[str, Any]:
  """What `encode_document` is to know of `config.data`: how media and answers stand in the text."""
  names = ("media_rule", "media_mark", "media_tokens", "answer_tokens")
  return {name: getattr(config, name) for name in names}


class Encoded(TypedDict):
  """One document as tokens; media ordinals count from 1 within the document.

  `soft_index` counts the tokens of a media item from 1 where it stands inline; 0 is text.
  `media` is in reading order. `dropped_chunks` and `cut_tokens` tell what truncation took, and
  `entry` which part of a mixture it is of; "": of none.
  """

  tokens: Int32[np.ndarray, " t"]
  loss_mask: Float32[np.ndarray, " t"]
  media_index: Int32[np.ndarray, " t"]
  media_first: Int32[np.ndarray, " t"]
  soft_index: Int32[np.ndarray, " t"]
  media: list[Media]
  dropped_chunks: int
  cut_tokens: int
  entry: str


# The weight in the loss of every token of a text, by where each ends.
Weigh = Callable[[str, Sequence[int]], list[float]]


def evenly(text: str, ends: Sequence[int]) -> list[float]:
  """Every token counts as one."""
  return [1.0] * len(ends)


# What a token is to the loss, to the media rule and to truncation.
_TEXT, _TARGET, _MEDIA, _MARK = range(4)


class _Chunk:
  """Tokens of consecutive segments: one sample of a few-shot prompt, or what precedes them."""

  def __init__(self):
    self.tokens: list[int] = []
    self.roles: list[int] = []
    self.weights: list[float] = []  # in the loss, of those that carry it
    self.media: list[Media] = []

  def add(self, token: int, role: int) -> None:
    self.tokens.append(token)
    self.roles.append(role)
    self.weights.append(1.0)

  def add_texts(self, texts: Sequence[Text], tokenizer: Tokenizer, weigh: Weigh) -> None:
    """Tokenises neighbouring texts as one string, as a language model's own training did.

    A token that straddles two texts belongs to the one it ends in.
    """
    whole = "".join(text.text for text in texts)
    ids, ends = tokenizer.spans(whole)
    self.weights += weigh(whole, ends)
    stops = list(itertools.accumulate(len(text.text) for text in texts))
    roles = [_TARGET if text.loss else _TEXT for text in texts]
    self.tokens += ids
    self.roles += [roles[bisect.bisect_left(stops, end)] for end in ends]

  def fill_answer(self, count: int) -> None:
    """Repeats what ends the targets until there are `count`."""
    is_target = lambda role: role == _TARGET
    targets = sum(1 for _ in itertools.takewhile(is_target, reversed(self.roles)))
    for _ in range(count - targets if targets else 0):
      self.add(self.tokens[-1], _TARGET)


def _parts(document: Document) -> list[Sequence[Segment]]:
  """The head, then one part for each of `document.starts`."""
  segments, starts = document.segments, document.starts
  if starts is None:
    is_media = [isinstance(segment, Media) for segment in segments]
    starts = [i for i, here in enumerate(is_media) if here and not (i and is_media[i - 1])]
  return [segments[a:b] for a, b in itertools.pairwise((0, *starts, len(segments)))]


def _pieces(texts: Iterable[Text]) -> list[list[Text]]:
  """Neighbouring texts, by what is tokenised together."""
  pieces: list[list[Text]] = [[]]
  for text in texts:
    if text.apart:
      pieces.append([])
    pieces[-1].append(text)
  return [piece for piece in pieces if piece]


def _chunk(
  segments: Sequence[Segment],
  tokenizer: Tokenizer,
  weigh: Weigh,
  media_mark: str,
  media_tokens: int,
) -> _Chunk:
  chunk = _Chunk()
  for is_text, run in itertools.groupby(segments, lambda segment: isinstance(segment, Text)):
    if is_text:
      for texts in _pieces(run):
        chunk.add_texts(texts, tokenizer, weigh)
      continue
    for segment in run:
      if isinstance(segment, Special):
        chunk.add(tokenizer.special_id(segment.token), _TARGET if segment.loss else _MARK)
      else:
        chunk.media.append(segment)
        if media_tokens:  # features replace their embeddings, so that any id will do
          for _ in range(media_tokens):
            chunk.add(tokenizer.pad_id, _MEDIA)
        elif media_mark:
          chunk.add(tokenizer.special_id(media_mark), _MEDIA)
  return chunk


def encode_document(
  document: Document,
  tokenizer: Tokenizer,
  *,
  media_rule: str,
  media_mark: str = IMAGE_TOKEN,
  media_tokens: int = 0,
  answer_tokens: int = 0,
  weigh: Weigh = evenly,
  max_tokens: int | None = None,
  max_media: Mapping[str, int] | None = None,
) -> Encoded:
  """Tokenises a document; media become marks, or places for their features.

  A document that exceeds `max_tokens` or, of some kind, `max_media` loses its earliest parts
  (shots), never media without its text. If the last part alone is too long, text that carries
  no loss is cut from the left: the instruction, then the question, but no media, no special
  token and nothing to be learned. A document without `starts` is read from its beginning: it
  loses its last parts, and of its first one the text before the media, then the end.

  Args:
    document: what to encode.
    tokenizer: from `load_tokenizer`.
    media_rule: a key of `MEDIA_RULES`.
    media_mark: the special token that stands for a media item of whatever kind, unless it is
      inline; "": nothing does, and every token may see all media of its document.
    media_tokens: inline tokens of a media item; 0: media are not inline.
    answer_tokens: what ends an answer to be learned is repeated until it has so many, so that
      its length tells a model that fills masks nothing; 0: it stands there once.
    weigh: what the tokens of targets count for in the loss.
    max_tokens, max_media: the bounds, media by kind; None: unbounded.

  Raises:
    UserError: naming the document, if it does not fit even so.
  """
  parts, options = _parts(document), (weigh, media_mark, media_tokens)
  head, *chunks = (_chunk(part, tokenizer, *options) for part in parts)
  for chunk in chunks:
    chunk.fill_answer(answer_tokens)
  if document.bos and tokenizer.bos_id is not None:
    head.tokens.insert(0, tokenizer.bos_id)
    head.roles.insert(0, _MARK)
    head.weights.insert(0, 1.0)

  total, episodic = len(chunks), document.starts is not None
  while len(chunks) > 1 and (
    _excess_tokens([head, *chunks], max_tokens) > 0 or _excess_kind(chunks, max_media)
  ):
    chunks.pop(0 if episodic else -1)
  if max_media is not None and (kind := _excess_kind(chunks, max_media)):
    raise UserError(
      f"{_name(document)}: a sample has more than data.max_media.{kind} = "
      f"{max_media.get(kind, 0)} media of kind {kind}; raise it"
    )

  kept = [head, *chunks]
  tokens = np.array([token for chunk in kept for token in chunk.tokens], np.int32)
  roles = np.array([role for chunk in kept for role in chunk.roles], np.int8)
  weights = np.array([weight for chunk in kept for weight in chunk.weights], np.float32)
  excess = max(0, _excess_tokens(kept, max_tokens))
  if excess:
    cut = np.flatnonzero((roles == _TEXT) | (not episodic and roles == _TARGET))
    if not episodic:
      cut = np.concatenate([cut[cut < len(head.roles)], cut[cut >= len(head.roles)][::-1]])
    cut = cut[:excess]
    if len(cut) < excess:
      raise UserError(
        f"{_name(document)}: media and answer take {len(tokens) - len(cut)} tokens, more than "
        f"data.max_tokens = {max_tokens}; raise it or shorten the answer"
      )
    tokens, roles, weights = (np.delete(x, cut) for x in (tokens, roles, weights))

  is_media = roles == _MEDIA
  count = np.cumsum(is_media) - 1
  soft_index = np.where(is_media, count % media_tokens + 1, 0) if media_tokens else 0 * tokens
  media = [media for chunk in chunks for media in chunk.media]
  media_index, media_first = MEDIA_RULES[media_rule](is_media & (soft_index <= 1))
  if media_tokens:  # whatever the rule, a place is its own media's
    own = np.where(is_media, count // media_tokens + 1, 0)
    media_index, media_first = (np.where(is_media, own, x) for x in (media_index, media_first))
  elif not media_mark:
    media_index, media_first = (np.full(len(tokens), min(n, len(media))) for n in (len(media), 1))
  return Encoded(
    tokens=tokens,
    loss_mask=np.where(~is_media if document.whole else roles == _TARGET, weights, np.float32(0)),
    media_index=media_index.astype(np.int32),
    media_first=media_first.astype(np.int32),
    soft_index=soft_index.astype(np.int32),
    media=media,
    dropped_chunks=total - len(chunks),
    cut_tokens=excess,
    entry="",
  )


def _excess_tokens(chunks: Sequence[_Chunk], max_tokens: int | None) -> int:
  return 0 if max_tokens is None else sum(len(chunk.tokens) for chunk in chunks) - max_tokens


def _excess_kind(chunks: Sequence[_Chunk], max_media: Mapping[str, int] | None) -> str:
  """A kind of which there is more than its bound, or ""."""
  if max_media is None:
    return ""
  kinds = [media.kind for chunk in chunks for media in chunk.media]
  return next((kind for kind in kinds if kinds.count(kind) > max_media.get(kind, 0)), "")


def _name(document: Document) -> str:
  source = document.source
  return " ".join(part for part in (source.dataset, source.split, document.id) if part)


@dataclasses.dataclass(frozen=True)
class RowShape:
  """The fixed shapes of one row of a batch.

  Attributes:
    length: tokens.
    media: for each kind the shape of its row, (slots, …item shape).
    inline: whether media stand between the tokens; the batch then has `soft_index`.
  """

  length: int
  media: Mapping[str, tuple[int, ...]]
  inline: bool = False


Batch = dict[str, np.ndarray]


def collate(
  rows: Sequence[Sequence[Encoded]], shape: RowShape, pad_id: int, *, left_pad: bool = False
) -> Batch:
  """Lays rows of documents out as the batch of docs/design.md.

  Documents follow one another; padding comes after them, or before them with `left_pad`. A row
  may be empty. Media are uint8 unless one is float32; then all are, in [0, 1].

  Raises:
    ValueError: if a row's documents do not fit `shape`.
    UserError: if a media item does not have the row's item shape.
  """
  keys = ("tokens", "positions", "segment_ids", "media_index", "media_first")
  keys += ("soft_index",) if shape.inline else ()
  text = {key: np.zeros((len(rows), shape.length), np.int32) for key in keys}
  text["loss_mask"] = np.zeros((len(rows), shape.length), np.float32)
  text["tokens"][:] = pad_id
  placed: dict[str, list[tuple[int, int, int, np.ndarray]]] = {kind: [] for kind in shape.media}
  for r, row in enumerate(rows):
    start = shape.length - sum(len(document["tokens"]) for document in row) if left_pad else 0
    slots, ordinal = dict.fromkeys(shape.media, 0), 0
    for segment, document in enumerate(row, start=1):
      stop = start + len(document["tokens"])
      if start < 0 or stop > shape.length:
        raise ValueError(f"row {r} has more than {shape.length} tokens")
      here = np.s_[r, start:stop]
      text["tokens"][here] = document["tokens"]
      text["loss_mask"][here] = document["loss_mask"]
      text["positions"][here] = np.arange(stop - start)
      text["segment_ids"][here] = segment
      if shape.inline:
        text["soft_index"][here] = document["soft_index"]
      for key in ("media_index", "media_first"):
        links = document[key]
        text[key][here] = np.where(links > 0, links + ordinal, 0)
      for media in document["media"]:
        ordinal += 1
        if slots.get(media.kind, 0) >= shape.media.get(media.kind, (0,))[0]:
          raise ValueError(f"row {r} has more {media.kind} media than slots")
        placed[media.kind].append((r, slots[media.kind], ordinal, media.array))
        slots[media.kind] += 1
      start = stop
  for kind, items in placed.items():
    text |= _media_arrays(kind, items, (len(rows), *shape.media[kind]))
  return text


def _media_arrays(
  kind: str, items: list[tuple[int, int, int, np.ndarray]], shape: tuple[int, ...]
) -> Batch:
  """`media/<kind>` and `media_ordinal/<kind>` from (row, slot, ordinal, array) items."""
  floats = any(array.dtype == np.float32 for *_, array in items)
  media = np.zeros(shape, np.float32 if floats else np.uint8)
  ordinals = np.zeros(shape[:2], np.int32)
  for row, slot, ordinal, array in items:
    if array.shape != shape[2:]:
      raise UserError(
        f"{kind} of shape {array.shape} where the batch has {shape[2:]}; "
        f"set data.{kind}_size to what the data set yields"
      )
    media[row, slot] = array / np.float32(255) if floats and array.dtype == np.uint8 else array
    ordinals[row, slot] = ordinal
  return {f"media/{kind}": media, f"media_ordinal/{kind}": ordinals}
