"""IU X-ray (Demner-Fushman et al., 2016): chest X-rays of Indiana University with reports.

Three packagings: `iu_xray`, the tables on Kaggle; `iu_xray_openi`, the XML reports of Open-i; and
`iu_xray_r2gen`, with the split of R2Gen (Chen et al., 2020). The first two have no split of their
own and go by a hash of the report. Words that Open-i blanked out stay `XXXX`.
"""

import collections
import dataclasses
from collections.abc import Iterator

from medflax.data.builders.base import Builder, Record, images
from medflax.data.builders.reports import FINDINGS, IMPRESSION, REPORT_TASKS, report_records
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE
from medflax.data.manifest import hash_split
from medflax.utils import UserError

_VIEWS = ("Frontal", "Lateral")  # the order in which a report's images are shown


def _rows_kaggle(source: SourceFolder) -> Iterator[Row]:
  folder = source.folder("images/images_normalized", "images_normalized", "images")
  views = collections.defaultdict(list)
  for row in source.rows("indiana_projections.csv"):
    view = row.fields.get("projection")
    order = _VIEWS.index(view) if view in _VIEWS else len(_VIEWS)
    views[row.fields.get("uid")].append((order, f"{folder}/{row.fields.get('filename')}"))
  for row in source.rows("indiana_reports.csv"):
    paths = [path for _, path in sorted(views[row.fields.get("uid")])]
    yield row.of(id=row.fields.get("uid"), paths=paths)


def _rows_openi(source: SourceFolder) -> Iterator[Row]:
  folder = source.folder("NLMCXR_png", "images")
  for number, name in enumerate(source.found("**/ecgen-radiology/*.xml"), start=1):
    try:
      root = source.xml(name)
    except UserError as error:
      yield Row(name, number, {}, problem=str(error))
      continue
    text = {part.get("Label", "").lower(): part.text for part in root.iter("AbstractText")}
    paths = [f"{folder}/{image.get('id')}.png" for image in root.iter("parentImage")]
    identity = root.find("uId")
    study = identity.get("id") if identity is not None else None
    yield Row(name, number, {**text, "id": study, "paths": paths})


def _rows_r2gen(source: SourceFolder) -> Iterator[Row]:
  if not source.has("annotation.json"):
    source.absent.append("annotation.json")
    return
  number = 0
  for studies in source.json("annotation.json").values():
    for study in studies:
      number += 1
      if not isinstance(study, dict):
        yield Row("annotation.json", number, {}, problem="is not a JSON object")
        continue
      paths = [f"images/{path}" for path in study.get("image_path", [])]
      fields = {"id": study.get("id"), FINDINGS: study.get("report"), "paths": paths}
      yield Row("annotation.json", number, fields, str(study.get("split", "")))


def _records(row: Row) -> Iterator[Record]:
  study, paths = row.text("id"), row.fields["paths"]
  told = {task: row.text(task, optional=True) for task in REPORT_TASKS}
  if not any(told.values()):
    raise UserError(f"report {study} has neither findings nor impression")
  if not paths:
    raise UserError(f"report {study} has no images")
  meta = {
    key: value for key in ("indication", "Problems") if (value := row.text(key, optional=True))
  }
  yield from report_records(
    told,
    study=study,
    split=row.split or hash_split(study),
    group=study,
    media=images(*paths),
    meta=meta,
  )


IU_XRAY = Builder(
  name="iu_xray",
  version="2016",
  url="https://www.kaggle.com/datasets/raddar/chest-xrays-indiana-university",
  licence="CC BY-NC-ND 4.0",
  layout="indiana_reports.csv, indiana_projections.csv and images/images_normalized/",
  group="report",
  tasks=(FINDINGS, IMPRESSION),
  media=(IMAGE,),
  published={"rows": 3851, "images": 7466},
  rows=_rows_kaggle,
  records=_records,
)
IU_XRAY_OPENI = dataclasses.replace(
  IU_XRAY,
  name="iu_xray_openi",
  url="https://openi.nlm.nih.gov/faq",
  layout="ecgen-radiology/*.xml of NLMCXR_reports and NLMCXR_png/",
  published={"rows": 3955, "images": 7470},
  rows=_rows_openi,
)
IU_XRAY_R2GEN = dataclasses.replace(
  IU_XRAY,
  name="iu_xray_r2gen",
  url="https://github.com/zhjohnchan/R2Gen",
  layout="annotation.json and images/",
  tasks=(FINDINGS,),
  published={"train": 2069, "val": 296, "test": 590},
  rows=_rows_r2gen,
)
