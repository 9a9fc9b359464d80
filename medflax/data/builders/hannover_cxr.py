"""COVID-19 Image Repository of Hannover Medical School (2020): chest X-rays of 71 patients."""

from collections.abc import Iterator

from medflax.data.builders.base import CLOSED, Builder, Record, images
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE
from medflax.data.manifest import hash_split

# Column of the table: the question, and what its values are called.
_QUESTIONS = {
  "projection": (
    "Is the projection of this chest X-ray anteroposterior or posteroanterior?",
    {"ap": "anteroposterior", "pa": "posteroanterior"},
  ),
  "sex": ("Is the patient female or male?", {"f": "female", "m": "male"}),
}


def _rows(source: SourceFolder) -> Iterator[Row]:
  for row in source.rows("data.csv"):
    name = row.fields.get("image_id")
    png = f"png/{name}.png"
    yield row.of(path=png if source.has(png) else f"jpg/{name}.jpg")


def _records(row: Row) -> Iterator[Record]:
  patient, image = row.text("patient_id"), row.text("image_id")
  for task, (question, answers) in _QUESTIONS.items():
    value = row.text(task, optional=True).lower()
    if value in answers:
      yield Record(
        id=f"{image}-{task}",
        split=hash_split(patient),
        task=task,
        question=question,
        answer=answers[value],
        group=patient,
        media=images(row.text("path")),
        answer_type=CLOSED,
        choices=tuple(answers.values()),
      )


HANNOVER_CXR = Builder(
  name="hannover_cxr",
  version="2020",
  url="https://github.com/ml-workgroup/covid-19-image-repository",
  licence="CC BY 3.0",
  layout="data.csv and png/ (or jpg/)",
  group="patient",
  tasks=tuple(_QUESTIONS),
  media=(IMAGE,),
  answers=(CLOSED,),
  published={"rows": 243, "images": 243},
  rows=_rows,
  records=_records,
)
