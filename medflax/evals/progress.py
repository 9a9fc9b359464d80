"""Replies on disk while an evaluation runs, so that a killed one goes on where it was."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import IO

import jax

from medflax.evals.answering import Reply
from medflax.utils import write_atomic

FILE = "replies.jsonl"

log = logging.getLogger(__name__)


class Progress:
  """The replies to whole batches, by number: those of before, and new ones as they are added.

  A context manager; the file stays until `drop`. Lines that a kill cut short are asked again.
  """

  def __init__(self, folder: pathlib.Path, fingerprint: str):
    """`fingerprint` is of all that decides replies; those under another are dropped."""
    self._path = folder / FILE
    self._fingerprint = fingerprint
    self.replies: dict[int, list[Reply]] = {}
    self._file: IO[str] | None = None

  def __enter__(self) -> "Progress":
    if jax.process_count() > 1:  # processes may have seen different parts of the file
      return self
    lines = self._path.read_text("utf-8").split("\n")[:-1] if self._path.exists() else []
    if not lines or lines[0] != self._fingerprint:
      lines = [self._fingerprint]
    for line in lines[1:]:
      number, replies = json.loads(line)
      self.replies[number] = [Reply(text, stop, tuple(p)) for text, stop, p in replies]
    if self.replies:
      log.info("%s: goes on after %d batches", self._path.parent, len(self.replies))
    write_atomic(self._path, "".join(line + "\n" for line in lines))
    self._file = self._path.open("a", encoding="utf-8")
    return self

  def add(self, number: int, replies: Sequence[Reply]) -> None:
    """Keeps the replies to a batch."""
    self.replies[number] = list(replies)
    if self._file is not None:
      line = json.dumps([number, [dataclasses.astuple(reply) for reply in replies]])
      self._file.write(line + "\n")
      self._file.flush()

  def __exit__(self, *exception: object) -> None:
    if self._file is not None:
      self._file.close()


def drop(folder: pathlib.Path) -> None:
  """Removes what `Progress` left, once the results stand elsewhere."""
  (folder / FILE).unlink(missing_ok=True)
