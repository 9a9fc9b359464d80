"""MIMIC-CXR-JPG 2.x (Johnson et al., 2019): chest X-rays with reports, credentialed access.

Frontal views (PA, AP) of a study, its report's findings and impression, and CheXpert's labels as
yes-no questions; labels of uncertainty are left out. The official split is by patient. Images
come from MIMIC-CXR-JPG, reports from MIMIC-CXR, unpacked into the same folder.
"""

from collections.abc import Iterator

from medflax.data.builders.base import Builder, Record, images
from medflax.data.builders.reports import (
  ANSWERS,
  LABEL,
  REPORT_TASKS,
  label_records,
  report_records,
  sections,
)
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE
from medflax.utils import UserError

FRONTAL = ("PA", "AP")
_SPLITS = {"train": "train", "validate": "val", "test": "test"}
_KEYS = ("subject_id", "study_id")


def _table(source: SourceFolder, name: str) -> Iterator[Row]:
  for path in source.found(f"mimic-cxr-2.*-{name}.csv", f"mimic-cxr-2.*-{name}.csv.gz")[:1]:
    yield from source.rows(path)


def _rows(source: SourceFolder) -> Iterator[Row]:
  """A row a study, in the order of the table of splits."""
  views = {
    row.column("dicom_id"): row.column("ViewPosition")
    for row in _table(source, "metadata")
    if not row.problem
  }
  labels = {
    row.column("study_id"): _labels(row) for row in _table(source, "chexpert") if not row.problem
  }
  studies: dict[str, Row] = {}
  for row in _table(source, "split"):
    study = row.fields.get("study_id", row.place)
    known = studies.setdefault(
      study, row.of(split=_SPLITS.get(row.fields.get("split", ""), ""), paths=[])
    )
    if row.problem:
      continue
    if views.get(row.column("dicom_id")) in FRONTAL:
      known.fields["paths"].append(f"{_folder(row)}/{row.column('dicom_id')}.jpg")
  for study, row in studies.items():
    report = "" if row.problem else _report(source, f"{_folder(row)}.txt")
    yield row.of(labels=labels.get(study, {}), report=report)


def _folder(row: Row) -> str:
  subject, study = (row.column(key) for key in _KEYS)
  return f"files/p{subject[:2]}/p{subject}/s{study}"


def _report(source: SourceFolder, name: str) -> str:
  return source.file(name).read_text(errors="replace") if source.has(name) else ""


def _labels(row: Row) -> dict[str, bool]:
  """1.0 is present, 0.0 absent; -1.0 uncertain and nothing not mentioned."""
  known = {"1.0": True, "0.0": False}
  return {
    name: known[value] for name, value in row.fields.items() if name not in _KEYS and value in known
  }


def _records(row: Row) -> Iterator[Record]:
  study, patient = f"s{row.text('study_id')}", f"p{row.text('subject_id')}"
  told = sections(row.fields["report"])
  if not row.fields["paths"]:
    raise UserError(f"study {study} has no frontal view")
  if not told and not row.fields["labels"]:
    raise UserError(f"study {study} has neither a report of sections nor labels")
  media = images(*row.fields["paths"])
  yield from report_records(
    told,
    study=study,
    split=row.split,
    group=patient,
    media=media,
    meta={"indication": told["indication"]} if "indication" in told else {},
  )
  yield from label_records(
    row.fields["labels"], study=study, split=row.split, group=patient, media=media[:1]
  )


MIMIC_CXR = Builder(
  name="mimic_cxr",
  version="2.1.0",
  url="https://physionet.org/content/mimic-cxr-jpg",
  licence="PhysioNet Credentialed Health Data License 1.5.0",
  layout="mimic-cxr-2.*-{split,metadata,chexpert}.csv and files/ with images and reports",
  group="patient",
  tasks=(*REPORT_TASKS, LABEL),
  media=(IMAGE,),
  answers=ANSWERS,
  published={"rows": 227835},
  rows=_rows,
  records=_records,
)
