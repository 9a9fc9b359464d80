"""Open questions in the form of Visual USMLE (Moor et al., 2023), from a file of your own.

The original may not be passed on. `problems.jsonl` or `problems.json` holds objects of `image` or
`images`, `vignette`, `labs_table`, `question`, `answer` and `specialty`; a problem with
`"shot": true` belongs to the pool of support samples, the others to the test.
"""

from collections.abc import Iterator

from medflax.data.builders.base import Builder, Record, images
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE

PROBLEM = "problem"


def _rows(source: SourceFolder) -> Iterator[Row]:
  for name in source.found("problems.jsonl", "problems.json"):
    for row in source.rows(name):
      yield row.of(split="train" if row.fields.get("shot") is True else "test")


def _records(row: Row) -> Iterator[Record]:
  paths = row.items("images") or [row.text("image")]
  told = [row.text(name, optional=True) for name in ("vignette", "labs_table")]
  specialty = row.text("specialty", optional=True)
  name = row.text("id", optional=True) or f"problem-{row.number}"
  yield Record(
    id=name,
    split=row.split,
    task=PROBLEM,
    question="\n".join([*filter(None, told), row.text("question")]),
    answer=row.text("answer"),
    group=row.text("case", optional=True) or name,
    media=images(*map(str, paths)),
    topic=specialty,
    meta={"specialty": specialty},
  )


USMLE = Builder(
  name="usmle",
  version="1",
  url="https://arxiv.org/abs/2307.15189",
  licence="of your problems",
  layout="problems.jsonl (or problems.json) and the images it names",
  group="case",
  tasks=(PROBLEM,),
  media=(IMAGE,),
  rows=_rows,
  records=_records,
)
