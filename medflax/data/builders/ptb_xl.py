"""PTB-XL (Wagner et al., 2020): ECG records of 12 leads and ten seconds with statements.

Splits are the recommended folds: 1 to 8, 9 and 10, by patient. Records of 500 Hz are taken where
they are, else those of 100 Hz. Reports are in their own languages, most of them German.
"""

import ast
from collections.abc import Iterator

from medflax.data.builders.base import CLOSED, OPEN, Builder, Record
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import SIGNAL
from medflax.utils import UserError

CLASSES = {
  "NORM": "normal ECG",
  "MI": "myocardial infarction",
  "STTC": "ST/T change",
  "CD": "conduction disturbance",
  "HYP": "hypertrophy",
}
_FOLDS = {"9": "val", "10": "test"}
_STATEMENTS = "scp_statements.csv"
# Task: the column of the statements that belong to it, and the question.
_TASKS = {
  "diagnosis": ("diagnostic", "Which diagnoses does this ECG show?"),
  "form": ("form", "What is the form of this ECG?"),
  "rhythm": ("rhythm", "What is the rhythm of this ECG?"),
}


def _rows(source: SourceFolder) -> Iterator[Row]:
  # The column of the codes has no name.
  statements = {row.fields.get("", ""): row for row in source.rows(_STATEMENTS)}
  for row in source.rows("ptbxl_database.csv"):
    names = (f"{row.fields.get(name)}.hea" for name in ("filename_hr", "filename_lr"))
    path = next((name for name in names if source.has(name)), None)
    split = _FOLDS.get(row.fields.get("strat_fold", ""), "train")
    yield row.of(split=split, path=path, statements=statements)


def _records(row: Row) -> Iterator[Record]:
  name, told = row.text("ecg_id"), row.fields["statements"]
  if row.fields["path"] is None:
    raise UserError(f"record {name} has no file {row.text('filename_hr')}.hea")
  known = [told[code] for code in _codes(row) if code in told]

  def record(task: str, question: str, answer: str, choices: tuple[str, ...] = ()) -> Record:
    return Record(
      id=f"{name}-{task}",
      split=row.split,
      task=task,
      question=question,
      answer=answer,
      group=row.text("patient_id"),
      media=((SIGNAL, row.text("path")),),
      answer_type=CLOSED if choices else OPEN,
      choices=choices,
    )

  for task, (column, question) in _TASKS.items():
    found = [code.text("description") for code in known if code.text(column, optional=True)]
    if found:
      yield record(task, question, ", ".join(found))
  classes = {code.text("diagnostic_class", optional=True) for code in known} & CLASSES.keys()
  if len(classes) == 1:
    answer = CLASSES[classes.pop()]
    yield record("class", "Which class does this ECG belong to?", answer, tuple(CLASSES.values()))
  report = row.text("report", optional=True)
  if report:
    yield record("report", "What does the report of this ECG say?", report)


def _codes(row: Row) -> list[str]:
  """The codes of a record: a dict's literal, of likelihoods that are often unknown."""
  try:
    codes = ast.literal_eval(row.text("scp_codes"))
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    codes = None
  if not isinstance(codes, dict):
    raise UserError("has 'scp_codes' that are no dict")
  return list(map(str, codes))


PTB_XL = Builder(
  name="ptb_xl",
  version="1.0.3",
  url="https://physionet.org/content/ptb-xl/1.0.3",
  licence="CC BY 4.0",
  layout="ptbxl_database.csv, scp_statements.csv and records500/ (or records100/)",
  group="patient",
  tasks=(*_TASKS, "class", "report"),
  media=(SIGNAL,),
  answers=(OPEN, CLOSED),
  published={"rows": 21799, "signals": 21799},
  rows=_rows,
  records=_records,
)
