"""CT-RATE (Hamamci et al., 2024): chest CT volumes with reports and labels of 18 abnormalities."""

from collections.abc import Iterator

from medflax.data.builders.base import Builder, Record
from medflax.data.builders.reports import (
  ANSWERS,
  FINDINGS,
  IMPRESSION,
  LABEL,
  label_records,
  report_records,
)
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import VOLUME

_SPLITS = {"train": "train", "val": "valid"}
_NAME = "VolumeName"


def _rows(source: SourceFolder) -> Iterator[Row]:
  root = source.folder("dataset", ".")
  for split, official in _SPLITS.items():
    folder = source.folder(f"{root}/{official}", f"{root}/{official}_fixed")
    labels = {
      row.column(_NAME): {
        label: value.strip() in ("1", "1.0")
        for label, value in row.fields.items()
        if label != _NAME
      }
      for name in source.found(f"**/{official}_predicted_labels.csv")
      for row in source.rows(name)
      if not row.problem
    }
    for name in source.found(f"**/{official}*_reports.csv"):
      for row in source.rows(name, split):
        yield row.of(labels=labels.get(row.fields.get(_NAME), {}), folder=folder)


def _records(row: Row) -> Iterator[Record]:
  volume = row.text(_NAME)
  name = volume.removesuffix(".nii.gz")
  split, number, scan, *_ = [*name.split("_"), "", ""]
  patient = f"{split}_{number}"  # of train_1_a_2: patient 1, scan a, reconstruction 2
  media = ((VOLUME, f"{row.text('folder')}/{patient}/{patient}_{scan}/{volume}"),)
  told = {
    FINDINGS: row.text("Findings_EN", optional=True),
    IMPRESSION: row.text("Impressions_EN", optional=True),
  }
  indication = row.text("ClinicalInformation_EN", optional=True)
  yield from report_records(
    told,
    study=name,
    split=row.split,
    group=patient,
    media=media,
    meta={"indication": indication} if indication else {},
  )
  yield from label_records(
    row.fields["labels"], study=name, split=row.split, group=patient, media=media
  )


CT_RATE = Builder(
  name="ct_rate",
  version="1",
  url="https://huggingface.co/datasets/ibrahimhamamci/CT-RATE",
  licence="CC BY-NC-SA 4.0",
  layout="dataset/ with train/, valid/, radiology_text_reports/ and multi_abnormality_labels/",
  group="patient",
  tasks=(FINDINGS, IMPRESSION, LABEL),
  media=(VOLUME,),
  answers=ANSWERS,
  published={"volumes": 50188},
  rows=_rows,
  records=_records,
)
