"""Files of a data set as its owner distributes them: tables of any format, one row after another.

A table yields `Row`s. A row that cannot be read says so in `problem`, and the table goes on; a
table that cannot be read at all raises `UserError`.
"""

import ast
import csv
import dataclasses
import functools
import gzip
import io
import json
import os
import pathlib
import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from medflax.data.builders.archives import find_archives, unpack_hint
from medflax.data.manifest import path_inside
from medflax.utils import UserError

csv.field_size_limit(2**27)  # case reports do not fit the default of 128 KiB a cell


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a table.

  Attributes:
    table: path of the table within the source.
    number: of the row in its table, from 1.
    fields: by column.
    split: which split of the data set it belongs to; "" where its fields say so.
    problem: why it cannot be used; "" if it can.
  """

  table: str
  number: int
  fields: Mapping[str, Any]
  split: str = ""
  problem: str = ""

  @property
  def place(self) -> str:
    """Where it is, for messages."""
    return f"{self.table} row {self.number}"

  def of(self, *, split: str = "", **fields: Any) -> "Row":
    """The row with further fields, which a data set's other files tell, and maybe a split."""
    return dataclasses.replace(self, fields={**self.fields, **fields}, split=split or self.split)

  def within(self, name: str) -> "Row":
    """An object inside the row, as a row.

    Raises:
      UserError: if there is none.
    """
    value = self.fields.get(name)
    if not isinstance(value, Mapping):
      raise UserError(f"has no object {name!r}")
    return dataclasses.replace(self, fields=value)

  def column(self, name: str) -> Any:
    """A field without which the whole table is of no use: a key that joins it to another.

    Raises:
      UserError: if there is none, naming the table.
    """
    if name not in self.fields:
      raise UserError(f"{self.table} has no column {name!r}; download it again")
    return self.fields[name]

  def text(self, *names: str, optional: bool = False) -> str:
    """The first of the fields `names` that there is, as stripped text.

    Raises:
      UserError: if there is none or it is empty, unless `optional`: then "".
    """
    value = next((self.fields[name] for name in names if self.fields.get(name) is not None), None)
    if isinstance(value, str | int | float) and str(value).strip():
      return str(value).strip()
    if optional and (value is None or value == ""):
      return ""
    state = "has no" if value is None else "has an empty" if value == "" else "has no usable"
    raise UserError(f"{state} {names[0]!r}")

  def items(self, name: str) -> list[Any]:
    """A field that is a list, or a list's literal; [] where there is none.

    Raises:
      UserError: if it is something else.
    """
    value = self.fields.get(name)
    if isinstance(value, str) and value.strip():
      try:
        value = ast.literal_eval(value)
      except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = 0
    if value is None or value == "":
      return []
    if not isinstance(value, list):
      raise UserError(f"has {name!r} that is no list")
    return value


class SourceFolder:
  """A folder that is only ever read, and from which no path leads out.

  Attributes:
    root: the folder, resolved.
    absent: files that were asked for and are not there.
  """

  def __init__(self, root: str | os.PathLike):
    """Raises `UserError` if there is no such folder."""
    self.root = pathlib.Path(root).resolve()
    if not self.root.is_dir():
      raise UserError(f"{str(root)!r} is not a folder; give the one with the downloaded files")
    self.absent: list[str] = []

  def file(self, name: str) -> pathlib.Path:
    """The file at a path relative to the folder.

    Raises:
      UserError: if the path leads out, or there is no such file; told apart is an archive
        that has not been unpacked.
    """
    try:
      return path_inside(self.root, name)
    except UserError as error:
      if "does not exist" in str(error) and (hint := self.unpack_hint(name)):
        raise UserError(f"{name!r} does not exist; {hint}") from None
      raise

  def unpack_hint(self, name: str) -> str:
    """Which archive of the folder to unpack where for a missing file; "" where there is none."""
    return unpack_hint(self.root, self._archives, name)

  @functools.cached_property
  def _archives(self) -> list[str]:
    return find_archives(self.root)

  def has(self, name: str) -> bool:
    """Whether there is such a file."""
    try:
      return path_inside(self.root, name).is_file()
    except UserError:
      return False

  def folder(self, *names: str) -> str:
    """The first of the folders `names` that exists; the first of all if none does."""
    return next((name for name in names if (self.root / name).is_dir()), names[0])

  def names(self, pattern: str) -> list[str]:
    """Paths of the files that match a glob pattern, sorted."""
    found = (path for path in self.root.glob(pattern) if path.is_file())
    return sorted(path.relative_to(self.root).as_posix() for path in found)

  def found(self, *patterns: str) -> list[str]:
    """Paths of the files that match any of some patterns; where none does, it is in `absent`."""
    names = [name for pattern in patterns for name in self.names(pattern)]
    if not names:
      self.absent.append(patterns[0])
    return names

  def stems(self, pattern: str) -> dict[str, str]:
    """Paths of the files that match a glob pattern, by their names without extension."""
    return {pathlib.PurePosixPath(name).stem: name for name in self.names(pattern)}

  def rows(self, name: str, split: str = "", **options: Any) -> Iterator[Row]:
    """The rows of a table, by the reader that `TABLES` has for its extension.

    A table that is not there has no rows and is noted in `absent`.

    Args:
      name: path relative to the folder.
      split: that all rows belong to.
      **options: of the reader: `columns` of a table without a header.

    Raises:
      UserError: if the whole table cannot be read.
    """
    if not self.has(name):
      self.absent.append(name)
      return
    reader = TABLES[pathlib.PurePosixPath(name.removesuffix(".gz")).suffix]
    try:
      for number, fields in enumerate(reader(self.file(name), **options), start=1):
        if isinstance(fields, str):
          yield Row(name, number, {}, split, fields)
        else:
          yield Row(name, number, fields, split)
    except UnicodeDecodeError:
      raise UserError(f"{name} is not UTF-8; download it again") from None
    except UserError:
      raise
    except (OSError, ValueError, EOFError, zlib.error, csv.Error, pickle.UnpicklingError) as error:
      raise UserError(f"{name} is truncated or broken ({error}); download it again") from None

  def splits(self, tables: Mapping[str, str], **options: Any) -> Iterator[Row]:
    """The rows of several tables, by the split that each is."""
    for split, name in tables.items():
      yield from self.rows(name, split, **options)

  def text(self, name: str) -> str:
    """The content of a text file.

    Raises:
      UserError: if there is none or it is not UTF-8.
    """
    try:
      return self.file(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
      raise UserError(f"{name} is not UTF-8; download it again") from None

  def json(self, name: str) -> Any:
    """The content of a JSON file.

    Raises:
      UserError: if there is none or it is not JSON.
    """
    return self._parsed(name, lambda path: json.loads(path.read_bytes()))

  def xml(self, name: str) -> ElementTree.Element:
    """The root of an XML file.

    Raises:
      UserError: if there is none or it is not XML.
    """
    return self._parsed(name, lambda path: ElementTree.parse(path).getroot())

  def _parsed(self, name: str, parse: Callable[[pathlib.Path], Any]) -> Any:
    path = self.file(name)
    try:
      return parse(path)
    except (OSError, ValueError, RecursionError, ElementTree.ParseError) as error:
      raise UserError(f"{name} is truncated or broken ({error}); download it again") from None


# What a table's reader yields: a row's fields by column, or why the row cannot be used.
Fields = Mapping[str, Any] | str


def _objects(values: Iterable[Any]) -> Iterator[Fields]:
  return (v if isinstance(v, dict) else "is not a JSON object" for v in values)


def _read_json(path: pathlib.Path) -> Iterator[Fields]:
  """A list of objects."""
  values = json.loads(path.read_bytes())
  if not isinstance(values, list):
    raise ValueError("not a list")
  return _objects(values)


def _read_jsonl(path: pathlib.Path) -> Iterator[Fields]:
  """One object a line; empty lines are none."""
  with path.open("rb") as file:
    for line in file:
      if line.strip():
        try:
          value = json.loads(line)
        except (ValueError, RecursionError):
          value = None
        yield value if isinstance(value, dict) else "is not one JSON object"


def _open(path: pathlib.Path) -> io.TextIOWrapper:
  if path.suffix == ".gz":
    return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
  return path.open(encoding="utf-8-sig", newline="")


def _read_csv(path: pathlib.Path) -> Iterator[Fields]:
  """A table whose first row is its header."""
  with _open(path) as file:
    lines = csv.reader(file)
    header = [name.strip() for name in next(lines, [])]
    for cells in lines:
      if len(cells) == len(header):
        yield dict(zip(header, cells, strict=True))
      elif cells:
        yield f"has {len(cells)} columns instead of {len(header)}"


def _read_lines(
  path: pathlib.Path, columns: tuple[str, ...], delimiter: str = "\t"
) -> Iterator[Fields]:
  """Lines of plain text, cut at the delimiter; the last column keeps any further ones."""
  with path.open(encoding="utf-8-sig", newline="\n") as file:
    for line in file:
      cells = line.rstrip("\r\n").split(delimiter, len(columns) - 1)
      if len(cells) == len(columns):
        yield dict(zip(columns, cells, strict=True))
      elif line.strip():
        yield f"has {len(cells)} columns instead of {len(columns)}"


class _Plain(pickle.Unpickler):
  """Reads lists, dicts and strings alone: a pickle from elsewhere must not run code."""

  def find_class(self, module_name: str, global_name: str) -> Any:
    raise pickle.UnpicklingError(f"it holds a {module_name}.{global_name}, not plain data")


def _read_pickle(path: pathlib.Path) -> Iterator[Fields]:
  """A list of dicts."""
  try:
    values = _Plain(io.BytesIO(path.read_bytes())).load()
  except pickle.UnpicklingError:
    raise
  except Exception as error:  # whatever its opcodes stumble over
    raise ValueError(f"not a pickle of plain data: {error}") from None
  if not isinstance(values, list):
    raise ValueError("not a list")
  return _objects(values)


def _read_parquet(path: pathlib.Path) -> Iterator[Fields]:
  """Column by column in the file, row by row here."""
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError:
    raise UserError("parquet files need: pip install 'medflax[parquet]'") from None
  try:
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
      yield from batch.to_pylist()
  except pyarrow.ArrowException as error:
    raise ValueError(str(error).split("\n")[0]) from None


TABLES: dict[str, Callable[..., Iterable[Fields]]] = {
  ".json": _read_json,
  ".jsonl": _read_jsonl,
  ".csv": _read_csv,
  ".txt": _read_lines,
  ".pkl": _read_pickle,
  ".parquet": _read_parquet,
}
