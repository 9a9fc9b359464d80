"""WFDB records, such as those of the PhysioNet Challenge 2015 on alarms (Clifford et al., 2015).

Every record is asked which signals it holds; one whose header states an alarm, which alarm it is
and whether it is a true one. Other comments of a header, which may tell of a patient, are not read.
"""

import re
from collections.abc import Iterator

from medflax.data.builders.base import CLOSED, OPEN, Builder, Record
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import SIGNAL
from medflax.data.manifest import hash_split
from medflax.data.readers.wfdb import read_wfdb
from medflax.utils import UserError

ALARMS = {
  "Asystole": "asystole",
  "Bradycardia": "extreme bradycardia",
  "Tachycardia": "extreme tachycardia",
  "Ventricular_Flutter_Fib": "ventricular flutter or fibrillation",
  "Ventricular_Tachycardia": "ventricular tachycardia",
}
_TRUE = {"True alarm": "yes", "False alarm": "no"}


def _rows(source: SourceFolder) -> Iterator[Row]:
  for number, name in enumerate(source.found("**/*.hea"), start=1):
    split = hash_split(name)
    try:
      path = source.file(name)
      lines = [line.strip() for line in path.read_text(encoding="latin-1").splitlines()]
      for line in lines:
        if re.match(r"\S+\.(dat|mat)\s", line):
          source.file(path.with_name(line.split()[0]).relative_to(source.root).as_posix())
    except UserError as error:
      yield Row(name, number, {}, split, str(error))
      continue
    comments = [line[1:].strip() for line in lines if line.startswith("#")]
    yield Row(name, number, {"path": path, "comments": comments}, split)


def _records(row: Row) -> Iterator[Record]:
  name = row.table.removesuffix(".hea")
  try:
    channels = read_wfdb(row.fields["path"]).channels
  except UserError as error:
    raise UserError(f"{row.table} {error}") from None
  told = {
    "signals": ("Which signals does this recording hold?", ", ".join(filter(None, channels)), ())
  }
  for comment in row.fields["comments"]:
    if comment in ALARMS:
      told["alarm"] = ("Which alarm was raised?", ALARMS[comment], tuple(ALARMS.values()))
    if comment in _TRUE:
      told["alarm_is_true"] = ("Is the alarm true?", _TRUE[comment], tuple(_TRUE.values()))
  for task, (question, answer, choices) in told.items():
    yield Record(
      id=f"{name}-{task}",
      split=row.split,
      task=task,
      question=question,
      answer=answer,
      group=name,
      media=((SIGNAL, row.table),),
      answer_type=CLOSED if choices else OPEN,
      choices=choices,
    )


WFDB_ALARMS = Builder(
  name="wfdb_alarms",
  version="1.0.0",
  url="https://physionet.org/content/challenge-2015/1.0.0",
  licence="ODC-By 1.0",
  layout="*.hea and the files of samples that they name",
  group="record",
  tasks=("signals", "alarm", "alarm_is_true"),
  media=(SIGNAL,),
  answers=(OPEN, CLOSED),
  rows=_rows,
  records=_records,
)
