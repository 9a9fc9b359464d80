"""Cutting long texts with figures into documents, after Med-Flamingo's recipe for textbooks."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from medflax.data.builders.base import Record, images
from medflax.data.documents import IMAGE_TOKEN


class Piece(NamedTuple):
  """A sentence or paragraph, and the files of the images that stand before it."""

  text: str
  images: tuple[str, ...] = ()


class Segment(NamedTuple):
  """A document: text with one `<image>` for each of its images."""

  text: str
  images: tuple[str, ...]


def segments(
  pieces: Iterable[Piece], *, max_images: int, max_words: int, max_pieces: int | None = None
) -> Iterator[Segment]:
  """Consecutive pieces as documents of limited size; runs without an image are left out.

  Args:
    pieces: in reading order. One that is too large by itself makes a document of its own, with
      its first `max_images` images.
    max_images: of a document.
    max_words: of a document.
    max_pieces: of a document; None: as many as fit.
  """
  current: list[Piece] = []
  for piece in map(_plain, pieces):
    piece = piece._replace(images=piece.images[:max_images])
    grown = [*current, piece]
    too_large = (
      sum(len(p.images) for p in grown) > max_images
      or sum(len(p.text.split()) for p in grown) > max_words
      or (max_pieces is not None and len(grown) > max_pieces)
    )
    if current and too_large:
      yield from _document(current)
      current = []
    current.append(piece)
  yield from _document(current)


def records(
  pieces: Iterable[Piece], *, name: str, split: str, task: str, group: str, **limits: int
) -> Iterator[Record]:
  """The documents of a text, numbered after its `name`; `limits` are those of `segments`."""
  for number, segment in enumerate(segments(pieces, **limits)):
    yield Record(
      id=f"{name}-{number}",
      split=split,
      task=task,
      question="",
      answer=segment.text,
      group=group,
      media=images(*segment.images),
    )


def _plain(piece: Piece) -> Piece:
  """Text that spells out the mark for an image must not pass for one."""
  return piece._replace(text=" ".join(piece.text.replace(IMAGE_TOKEN, " ").split()))


def _document(pieces: Sequence[Piece]) -> Iterator[Segment]:
  paths = tuple(path for piece in pieces for path in piece.images)
  if paths:
    text = " ".join(IMAGE_TOKEN * len(piece.images) + piece.text for piece in pieces)
    yield Segment(text.strip(), paths)
