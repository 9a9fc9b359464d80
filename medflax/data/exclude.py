"""Samples that a data set leaves out by name, as those that `medflax.tools.check_leakage` found."""

import csv
import io
import logging
import os
import pathlib
from collections.abc import Iterable

from medflax.utils import UserError

ID, DATA = "id", "data"  # columns; others are for people

log = logging.getLogger(__name__)


def read_exclusions(path: str | os.PathLike, name: str) -> frozenset[str]:
  """The ids that a list names.

  Args:
    path: a CSV file with a column `id`; with a column `data`, rows of other data sets are skipped.
    name: of the data set.

  Raises:
    UserError: if there is no such file or column.
  """
  try:
    content = pathlib.Path(path).read_text(encoding="utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"data.exclude: {str(path)!r} cannot be read ({error})") from None
  reader = csv.DictReader(io.StringIO(content))
  if ID not in (reader.fieldnames or ()):
    raise UserError(
      f"data.exclude: {path} has no column {ID!r}; name the columns in its first line"
    )
  return frozenset(row[ID] for row in reader if row.get(DATA, name) in (name, ""))


def report_exclusions(
  path: str | os.PathLike, name: str, listed: frozenset[str], ids: Iterable[str]
) -> None:
  """Logs how many of `ids` are left out, and which of `listed` are not there.

  Raises:
    UserError: if none of `ids` is left.
  """
  known = set(ids)
  if known and known <= listed:
    raise UserError(f"data.exclude: {path} lists all {len(known)} samples of {name}; leave some")
  log.info("%s: %d of %d samples of %s are left out", path, len(listed & known), len(known), name)
  if unknown := sorted(listed - known):
    shown = ", ".join(unknown[:3])
    log.warning("%s lists %d ids that %s does not have: %s", path, len(unknown), name, shown)
