"""What a builder of a data set declares, and what it turns every row of its source into."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE, IMAGE_TOKEN
from medflax.data.manifest import hash_fraction
from medflax.utils import UserError

OPEN, CLOSED = "open", "closed"
MEDIA = "media"  # names the shards of media files beside those of the splits
_PLAIN = re.compile(r"[a-z][a-z0-9_]*")  # a split's name is part of file names


@dataclasses.dataclass(frozen=True)
class Record:
  """One question as it is stored; its media are still files of the source.

  Attributes:
    id: unique in the data set.
    split: train, val, test or another name that the data set's owner has given.
    task: what is being asked, for results by task.
    question: "" in an interleaved document, whose text is the `answer`.
    answer: of an interleaved document, the text with one `<image>` where each of the media stands.
    group: what must not straddle a support set: a patient, a case, an article, an image.
    media: (kind, path relative to the source) pairs; a path may be one of `volume_of`.
    topic: samples of the query's topic are preferred as its support; the task by default.
    answer_type: open or closed, as the data says, never guessed from the answer.
    choices: the options of a closed question.
    meta: anything else that results can be sliced by.
    place: the row that it comes from; filled in by `Builder.read`, not stored.
  """

  id: str
  split: str
  task: str
  question: str
  answer: str
  group: str
  media: tuple[tuple[str, str], ...] = ()
  topic: str = ""
  answer_type: str = OPEN
  choices: tuple[str, ...] = ()
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  place: str = ""


@dataclasses.dataclass(frozen=True)
class Rejected:
  """A row, or a record of it, that cannot be used."""

  place: str
  id: str
  split: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Builder:
  """A data set: where it comes from, what it holds, and how its files are read.

  Attributes:
    name: as in `BUILDERS`.
    version: of the data set, as its owner counts.
    url: where it can be had.
    licence: as its owner states it; "" where none is stated.
    layout: the files that are needed, for the message when they are missing.
    group: what a record's group is.
    tasks: that records may have.
    media: kinds of media.
    answers: answer types that occur.
    published: counts that the owner publishes: of records by split or in all (`records`), of rows
      of the source (`rows`), of media files (`images`, `volumes`, `signals`).
    rows: the source's rows, in an order that depends on the files alone.
    records: the records of a row; it raises `UserError` for one that cannot be used.
    interleaved: whether records are documents rather than questions; see `Record`.
  """

  name: str
  version: str
  url: str
  licence: str
  layout: str
  group: str
  tasks: tuple[str, ...]
  media: tuple[str, ...]
  rows: Callable[[SourceFolder], Iterable[Row]]
  records: Callable[[Row], Iterable[Record]]
  answers: tuple[str, ...] = (OPEN,)
  published: Mapping[str, int] = dataclasses.field(default_factory=dict)
  interleaved: bool = False

  def read(self, source: SourceFolder) -> Iterator[list[Record | Rejected]]:
    """All rows of `source`: for each the records that it gives, checked, or why it gives none.

    Raises:
      UserError: if there is no row at all, or a table is broken as a whole.
    """
    seen: set[str] = set()
    empty = True
    for row in self.rows(source):
      empty = False
      found: list[Record | Rejected] = []
      try:
        if row.problem:
          raise UserError(row.problem)
        for record in self.records(row):
          found.append(self._checked(record, row, seen))
      except UserError as error:
        found.append(Rejected(row.place, "", row.split, str(error)))
      yield found
    if empty:
      absent = f" ({', '.join(source.absent)} not found)" if source.absent else ""
      hint = source.unpack_hint(source.absent[0] if source.absent else "")
      remedy = f"; {hint}" if hint else ""
      raise UserError(
        f"{source.root} holds no {self.name}{absent}; --from needs {self.layout}{remedy}"
      )

  def _checked(self, record: Record, row: Row, seen: set[str]) -> Record | Rejected:
    problem = self._problem(record)
    if not problem and record.id in seen:
      problem = f"id {record.id!r} is that of an earlier row"
    if problem:
      return Rejected(row.place, record.id, record.split, problem)
    seen.add(record.id)
    return dataclasses.replace(record, topic=record.topic or record.task, place=row.place)

  def _problem(self, record: Record) -> str:
    """What is wrong with a record; ""."""
    if not record.answer or not (record.question or self.interleaved):
      return f"has no {'answer' if record.question else 'question'}"
    if not (record.id and record.group and record.split):
      return "has no id, group or split"
    if not _PLAIN.fullmatch(record.split):
      return f"has the split {record.split!r}, which is no plain name"
    if record.split == MEDIA:
      return f"has the split {MEDIA!r}, which is reserved"
    if record.choices and record.answer not in record.choices:
      return f"answer {record.answer!r} is none of its choices"
    if self.interleaved and record.answer.count(IMAGE_TOKEN) != len(record.media):
      return f"has {record.answer.count(IMAGE_TOKEN)} places for {len(record.media)} media"
    declared = {
      "task": (record.task, self.tasks),
      "answer type": (record.answer_type, self.answers),
      **{f"medium {path!r}": (kind, self.media) for kind, path in record.media},
    }
    wrong = [f"{what} {value!r}" for what, (value, known) in declared.items() if value not in known]
    return f"has an undeclared {wrong[0]}" if wrong else ""


def images(*paths: str) -> tuple[tuple[str, str], ...]:
  """`Record.media` of some images."""
  return tuple((IMAGE, path) for path in paths)


def volume_of(path: str, index: int) -> str:
  """A path of `Record.media`: one volume, counted from 0, of a file that holds several."""
  return f"{path}#{index}"


def split_volume(path: str) -> tuple[str, int | None]:
  """The file of a path of `Record.media`, and which of its volumes is meant; None: it has one."""
  file, mark, index = path.rpartition("#")
  return (file, int(index)) if mark and index.isdecimal() else (path, None)


def answer_type(row: Row, *names: str) -> str:
  """A field of OPEN or CLOSED, in whatever case; other words are refused."""
  value = row.text(*names).lower()
  if value not in (OPEN, CLOSED):
    raise UserError(f"has {names[0]!r} {value!r}, neither open nor closed")
  return value


def yes_no_type(answer: str) -> str:
  """CLOSED for yes and no, OPEN otherwise: for data sets whose papers divide questions so."""
  return CLOSED if answer.lower() in ("yes", "no") else OPEN


def hash_choice(options: Sequence[str], name: str) -> str:
  """One of `options`, the same for the same name: the wording of a question."""
  return options[int(hash_fraction(name) * len(options))]
