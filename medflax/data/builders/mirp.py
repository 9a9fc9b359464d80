"""MIRP (Wolf et al., 2025): where structures lie in abdominal CT slices, turned and mirrored.

A benchmark: all of it is the test split. Its tasks are the research questions: names of structures
alone (RQ1), with markers (RQ2), markers alone (RQ3), and markers on white (AS).
"""

from collections.abc import Iterator

from medflax.data.builders.base import CLOSED, Builder, Record, images
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE
from medflax.utils import UserError

MARKERS = ("dots", "letters", "numbers")
ANSWERS = ("no", "yes")  # by the number that stands for them
# Task: its folder of images and its questions.
_TASKS = {
  "rq1": ("RQ1/images", "RQ1/qa.json"),
  **{
    f"{part.lower()}_{marker}": (f"{part}/image_{marker}", f"{part}/qa_{marker}.json")
    for part in ("RQ2", "RQ3", "AS")
    for marker in MARKERS
  },
}


def _rows(source: SourceFolder) -> Iterator[Row]:
  for task, (folder, table) in _TASKS.items():
    for row in source.rows(table, "test"):
      yield row.of(task=task, folder=folder)


def _records(row: Row) -> Iterator[Record]:
  name, task = row.text("filename"), row.text("task")
  for number, pair in enumerate(row.items("question_answer")):
    if not isinstance(pair, dict) or pair.get("answer") not in (0, 1):
      raise UserError(f"has a question without an answer of 0 or 1 about {name}")
    question = Row(row.table, row.number, pair)
    yield Record(
      id=f"{task}-{name.rsplit('.', 1)[0]}-{number}",
      split=row.split,
      task=task,
      question=question.text("question"),
      answer=ANSWERS[pair["answer"]],
      group=row.text("base_name", optional=True) or name.split("_slice")[0],
      media=images(f"{row.text('folder')}/{name}"),
      answer_type=CLOSED,
      choices=ANSWERS,
      meta={
        "orientation": row.text("rotate_flip_short", optional=True),
        "structures": [question.text(f"object{i}_name", optional=True) for i in (1, 2)],
      },
    )


MIRP = Builder(
  name="mirp",
  version="2025",
  url="https://huggingface.co/datasets/Wolfda95/MIRP_Your_Other_Left",
  licence="CC BY 4.0",
  layout="RQ1/, RQ2/, RQ3/ and AS/, each with images and qa*.json",
  group="volume",
  tasks=tuple(_TASKS),
  media=(IMAGE,),
  answers=(CLOSED,),
  published={"images": 7 * 4878 + 3 * 100},
  rows=_rows,
  records=_records,
)
