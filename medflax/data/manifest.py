"""The manifest of a folder data set: parsing, checking, grouping and splitting its rows.

Nothing here opens a media file. See docs/data.md for the format.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medflax.data.documents import IMAGE, VOLUME
from medflax.utils import UserError, nearest

SPLITS = ("train", "val", "test")
_SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
_MEDIA_FIELDS = {"images": IMAGE, "volumes": VOLUME}
_FIELDS = (*_MEDIA_FIELDS, "question", "answer", "split", "id", "choices", "group", "task")


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of a manifest. `media` are (kind, path relative to the root) pairs.

  The path of a volume may be that of a folder, which then holds the slices of one DICOM series.
  """

  line: int
  id: str
  media: tuple[tuple[str, str], ...]
  question: str
  answer: str
  choices: tuple[str, ...] = ()
  task: str = ""
  group: str = ""
  split: str = ""
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class BadRow:
  """A line that cannot be used, and why."""

  line: int
  id: str
  reason: str


def parse_manifest(content: bytes, root: pathlib.Path) -> tuple[list[Row], list[BadRow]]:
  """Parses JSONL `content`, whose paths are relative to `root`; empty lines are no rows."""
  rows, bad, seen = [], [], {}
  root = root.resolve()
  known_paths: dict[tuple[str, str], str] = {}  # resolving is slow, and questions share images
  for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
    if not line.strip():
      continue
    row_id = ""
    try:
      record = _parse_json(line)
      row_id = _text(record, "id", optional=True) or f"line-{number}"
      if row_id in seen:
        raise UserError(f"id {row_id!r} is that of line {seen[row_id]}; make ids unique")
      rows.append(_parse_row(record, number, row_id, root, known_paths))
      seen[row_id] = number
    except UserError as error:
      bad.append(BadRow(number, row_id, str(error)))
  return rows, bad


def _parse_json(line: bytes) -> dict[str, Any]:
  try:
    record = json.loads(line.decode())
  except UnicodeDecodeError:
    raise UserError("is not UTF-8; save the manifest as UTF-8") from None
  except json.JSONDecodeError as error:
    raise UserError(
      f"is not valid JSON ({error.msg} at column {error.colno}); write one object a line"
    ) from None
  except (ValueError, RecursionError):  # numbers of thousands of digits, brackets without end
    raise UserError("is not sensible JSON; write one flat object a line") from None
  if not isinstance(record, dict):
    raise UserError("is not a JSON object; write one object a line")
  return record


def _parse_row(
  record: dict[str, Any],
  line: int,
  row_id: str,
  root: pathlib.Path,
  known_paths: dict[tuple[str, str], str],
) -> Row:
  media = []
  for field, kind in _MEDIA_FIELDS.items():
    for path in _texts(record, field):
      if (kind, path) not in known_paths:
        resolved = path_inside(root, path, folder=kind == VOLUME)
        known_paths[kind, path] = resolved.relative_to(root).as_posix()
      media.append((kind, known_paths[kind, path]))
  if not media:
    raise UserError(f"has no media; give `images` or `volumes`{_typo('images', record)}")
  choices = _texts(record, "choices")
  answer = _text(record, "answer")
  if choices and answer not in choices:
    raise UserError(f"answer {answer!r} is none of its `choices`; add it or correct it")
  split = _text(record, "split", optional=True)
  if split and split not in SPLITS:
    raise UserError(f"has split {split!r}; write {', '.join(SPLITS)}")
  return Row(
    line=line,
    id=row_id,
    media=tuple(media),
    question=_text(record, "question"),
    answer=answer,
    choices=choices,
    task=_text(record, "task", optional=True),
    group=_text(record, "group", optional=True),
    split=split,
    meta={key: value for key, value in record.items() if key not in _FIELDS},
  )


def _text(record: dict[str, Any], field: str, *, optional: bool = False) -> str:
  """A field that is a non-empty string; "" where it is optional and absent or null."""
  value = record.get(field)
  if value is None:
    if optional:
      return ""
    raise UserError(f"has no `{field}`{_typo(field, record)}")
  if not isinstance(value, str):
    raise UserError(f"`{field}` is {_shown(value)}, not a string; put it in quotes")
  if not value.strip():
    raise UserError(f"`{field}` is empty; fill it in or remove the row")
  return value.strip()


def _texts(record: dict[str, Any], field: str) -> tuple[str, ...]:
  """A field that is a list of non-empty strings, or one string; () where absent or null."""
  value = record.get(field)
  values = [] if value is None else [value] if isinstance(value, str) else value
  if not isinstance(values, list) or not all(isinstance(v, str) and v.strip() for v in values):
    raise UserError(f"`{field}` is {_shown(value)}; write a list of strings, none empty")
  return tuple(values)


def _typo(field: str, record: dict[str, Any]) -> str:
  """Points at a key of the record that may have been meant as `field`."""
  hint = nearest(field, [key for key in record if key not in _FIELDS])
  return hint.replace("did you mean", "is it under") if "mean" in hint else ""


def _shown(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) <= 40 else text[:37] + "…"


def path_inside(root: pathlib.Path, path: str, *, folder: bool = False) -> pathlib.Path:
  """The file at `path` below `root` (itself resolved), symbolic links and all resolved.

  Args:
    root: the folder that it must not lead out of.
    path: relative to `root`.
    folder: whether a folder will do as well.

  Raises:
    UserError: if it leads out of `root`, or there is no such file.
  """
  pure = pathlib.PurePosixPath(path)
  climbs = UserError(f"{path!r} leads out of the data folder; copy the file into it")
  if pure.is_absolute() or ".." in pure.parts:
    raise climbs
  try:
    resolved = (root / pure).resolve()
    is_folder = resolved.is_dir()
    found = is_folder or resolved.is_file()
  except (OSError, ValueError, RuntimeError):  # too long, a NUL inside, links in a circle
    raise UserError(f"{_shown(path)} is not a usable path; correct it") from None
  if not resolved.is_relative_to(root):
    raise climbs
  if not found:
    raise UserError(f"{path!r} does not exist; paths are relative to the data folder")
  if is_folder and not folder:
    raise UserError(f"{path!r} is a folder; name a file")
  return resolved


def group_rows(rows: Sequence[Row]) -> list[str]:
  """A label a row, equal for all rows that must stay together: a shared `group` or file.

  A slice belongs with the series whose folder it lies in, where that is listed as a volume.
  Labels are the rows' own `group` where they have one, else the first of their files' paths.
  """
  parents: dict[tuple[str, str], tuple[str, str]] = {}

  def find(key: tuple[str, str]) -> tuple[str, str]:
    while (parent := parents.setdefault(key, key)) != key:
      parents[key] = key = parents[parent]  # halves the path on the way
    return key

  listed = {path for row in rows for _, path in row.media}

  def home(path: str) -> str:
    folder = str(pathlib.PurePosixPath(path).parent)
    return folder if folder in listed else path

  # Keys sort so that a component's smallest one is a group's name before any file's path.
  keys = [
    [("0group", row.group)] * bool(row.group) + [("1file", home(path)) for _, path in row.media]
    for row in rows
  ]
  for linked in keys:
    low, *others = sorted({find(key) for key in linked})
    for other in others:
      parents[other] = low
  return [find(linked[0])[1] for linked in keys]


def assign_splits(rows: Sequence[Row], groups: Sequence[str]) -> list[str]:
  """The rows' own splits, checked for leakage, or 80/10/10 by a hash of their groups.

  The hash does not depend on a seed, nor a group's split on the other groups, except that a split
  left empty takes a group from the largest one.

  Raises:
    UserError: if only some rows have a split, a group lies in two, or three groups are missing.
  """
  given = sum(bool(row.split) for row in rows)
  if not given:
    by_group = _split_groups(set(groups))
    return [by_group[group] for group in groups]
  if given < len(rows):
    line = next(row.line for row in rows if not row.split)
    raise UserError(f"line {line} has no `split` while {given} rows have one; give all or none")
  first: dict[str, Row] = {}
  for row, group in zip(rows, groups, strict=True):
    other = first.setdefault(group, row)
    if other.split != row.split:
      raise UserError(
        f"lines {other.line} ({other.split}) and {row.line} ({row.split}) share group or file "
        f"{group!r}, which would inflate results; put the whole group in one split"
      )
  return [row.split for row in rows]


def hash_fraction(name: str) -> float:
  """A number in [0, 1) that depends on a name alone."""
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def hash_split(group: str) -> str:
  """The split of a group by a hash of its name: 80, 10 and 10 %."""
  at = hash_fraction(group)
  return "train" if at < _SHARES["train"] else "val" if at < 1 - _SHARES["test"] else "test"


def _split_groups(groups: Iterable[str]) -> dict[str, str]:
  position = {group: hash_fraction(group) for group in groups}
  if len(position) < len(SPLITS):
    raise UserError(
      f"its rows form {len(position)} group(s) by `group` and shared files, and "
      f"{', '.join(SPLITS)} need one each; add data or give every row a `split`"
    )
  splits = {group: hash_split(group) for group in position}
  for split in SPLITS:
    sizes = collections.Counter(splits.values())
    if not sizes[split]:
      largest = max(SPLITS, key=lambda name: sizes[name])
      moved = max((at, group) for group, at in position.items() if splits[group] == largest)[1]
      splits[moved] = split
  return splits
