"""PubMedQA (Jin et al., 2019): yes, no or maybe, given an abstract; the labelled part, no images.

The 500 articles of `test_ground_truth.json` are the test; the other 500, which its owners divide
into ten folds, are all training.
"""

from collections.abc import Iterator

from medflax.data.builders.base import CLOSED, Builder, Record
from medflax.data.builders.source import Row, SourceFolder
from medflax.utils import UserError

CHOICES = ("yes", "no", "maybe")
ABSTRACT = "abstract"


def _rows(source: SourceFolder) -> Iterator[Row]:
  folder = source.folder("data", ".")
  table, truth = f"{folder}/ori_pqal.json", f"{folder}/test_ground_truth.json"
  absent = [name for name in (table, truth) if not source.has(name)]
  source.absent += absent
  if absent:  # without the list of test articles, they would be trained on
    return
  tested = source.json(truth)
  for number, (article, fields) in enumerate(source.json(table).items(), start=1):
    split = "test" if article in tested else "train"
    if isinstance(fields, dict):
      yield Row(table, number, fields | {"article": article}, split)
    else:
      yield Row(table, number, {}, split, "is not a JSON object")


def _records(row: Row) -> Iterator[Record]:
  contexts = row.items("CONTEXTS")
  if not contexts:
    raise UserError("has no abstract")
  yield Record(
    id=row.text("article"),
    split=row.split,
    task=ABSTRACT,
    question=f"{' '.join(map(str, contexts))}\n{row.text('QUESTION')}",
    answer=row.text("final_decision"),
    group=row.text("article"),
    answer_type=CLOSED,
    choices=CHOICES,
    meta={"long_answer": row.text("LONG_ANSWER", optional=True)},
  )


PUBMED_QA = Builder(
  name="pubmed_qa",
  version="2019",
  url="https://github.com/pubmedqa/pubmedqa",
  licence="MIT",
  layout="data/ori_pqal.json and data/test_ground_truth.json",
  group="article",
  tasks=(ABSTRACT,),
  media=(),
  answers=(CLOSED,),
  published={"train": 500, "test": 500},
  rows=_rows,
  records=_records,
)
