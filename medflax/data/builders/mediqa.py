"""MEDIQA 2019 (Ben Abacha et al.): what consumers ask, its answers, and what questions entail.

`mediqa_qa` keeps the answer that the experts rank first. `mediqa_rqe` asks whether whoever answers
the second question answers the first. No images.
"""

from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

from medflax.data.builders.base import CLOSED, OPEN, Builder, Record
from medflax.data.builders.source import Row, SourceFolder
from medflax.utils import UserError

CONSUMER, ENTAILMENT = "consumer", "entailment"
_VALUES = {"true": "yes", "false": "no"}
_QA = {
  "train": "**/MEDIQA2019-Task3-QA-TrainingSet*.xml",
  "val": "**/MEDIQA2019-Task3-QA-ValidationSet*.xml",
  "test": "**/MEDIQA2019-Task3-QA-TestSet-wLabels.xml",
}
_RQE = {
  "train": "**/RQE_Train_8588_AMIA2016.xml",
  "val": "**/RQE_Test_302_pairs_AMIA2016.xml",
  "test": "**/MEDIQA2019-Task2-RQE-TestSet-wLabels.xml",
}


def _elements(
  source: SourceFolder, files: Mapping[str, str], tag: str
) -> Iterator[tuple[str, int, str, ElementTree.Element]]:
  """File, number, split and element of every `tag`."""
  for split, pattern in files.items():
    for name in source.found(pattern):
      for number, element in enumerate(source.xml(name).iter(tag), start=1):
        yield name, number, split, element


def _rows_qa(source: SourceFolder) -> Iterator[Row]:
  for name, number, split, element in _elements(source, _QA, "Question"):
    answers = [
      {"rank": answer.get("ReferenceRank"), "text": answer.findtext("AnswerText")}
      for answer in element.iter("Answer")
    ]
    fields = {"id": element.get("QID"), "question": element.findtext("QuestionText")}
    yield Row(name, number, fields | {"answers": answers}, split)


def _records_qa(row: Row) -> Iterator[Record]:
  best = [answer["text"] for answer in row.items("answers") if answer["rank"] == "1"]
  if not best or not best[0]:
    raise UserError("has no answer of rank 1")
  name = f"{row.table.rsplit('/', 1)[-1].removesuffix('.xml')}-{row.text('id')}"
  yield Record(
    id=name,
    split=row.split,
    task=CONSUMER,
    question=" ".join(row.text("question").split()),
    answer=" ".join(best[0].split()),
    group=name,
  )


def _rows_rqe(source: SourceFolder) -> Iterator[Row]:
  for name, number, split, pair in _elements(source, _RQE, "pair"):
    fields = {"id": pair.get("pid"), "value": pair.get("value")}
    fields |= {tag: pair.findtext(tag) for tag in ("chq", "faq")}
    yield Row(name, number, fields, split)


def _records_rqe(row: Row) -> Iterator[Record]:
  value = row.text("value").lower()
  if value not in _VALUES:
    raise UserError(f"has 'value' {value!r}, neither true nor false")
  asked, known = (" ".join(row.text(tag).split()) for tag in ("chq", "faq"))
  yield Record(
    id=f"{row.split}-{row.text('id')}",
    split=row.split,
    task=ENTAILMENT,
    question=f"{asked}\nWould an answer to this one answer it, too? {known}",
    answer=_VALUES[value],
    group=asked,
    answer_type=CLOSED,
    choices=tuple(_VALUES.values()),
  )


MEDIQA_QA = Builder(
  name="mediqa_qa",
  version="2019",
  url="https://github.com/abachaa/MEDIQA2019",
  licence="",
  layout="the XML files of MEDIQA_Task3_QA/",
  group="question",
  tasks=(CONSUMER,),
  media=(),
  answers=(OPEN,),
  published={"train": 208, "val": 25, "test": 150},
  rows=_rows_qa,
  records=_records_qa,
)
MEDIQA_RQE = Builder(
  name="mediqa_rqe",
  version="2019",
  url="https://github.com/abachaa/MEDIQA2019",
  licence="",
  layout="the XML files of RQE_Data_AMIA2016 and of MEDIQA_Task2_RQE/",
  group="question",
  tasks=(ENTAILMENT,),
  media=(),
  answers=(CLOSED,),
  published={"train": 8588, "val": 302, "test": 230},
  rows=_rows_rqe,
  records=_records_rqe,
)
