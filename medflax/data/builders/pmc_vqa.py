"""PMC-VQA (Zhang et al., 2023): questions of four options on figures of PubMed Central.

What the paper calls its test set is `test_clean.csv`, verified by hand, and is the split `test`
here; the 50,000 questions it was taken from are `test_initial`. The second version leaves out
figures of several panels; its `Answer` is a letter, and there is no verified test set.
"""

import re
from collections.abc import Iterator

from medflax.data.builders.base import CLOSED, Builder, Record, images
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE
from medflax.utils import UserError

LETTERS = "ABCD"
_V1 = {"train": "train.csv", "test_initial": "test.csv", "test": "test_clean.csv"}
_V2 = {"train": "train_2.csv", "test": "test_2.csv"}


def _rows_v1(source: SourceFolder) -> Iterator[Row]:
  folder = source.folder("images", "figures")
  return (row.of(folder=folder) for row in source.splits(_V1))


def _rows_v2(source: SourceFolder) -> Iterator[Row]:
  folder = source.folder("images_2", "figures", "images")
  return (row.of(folder=folder) for row in source.splits(_V2))


def _records(row: Row) -> Iterator[Record]:
  choices = tuple(_option(row, letter) for letter in LETTERS)
  letter = row.text("Answer_label", "Answer").strip(" .:")
  if letter not in LETTERS:
    raise UserError(f"has the answer {letter!r}, which is none of the letters {LETTERS}")
  figure = row.text("Figure_path")
  yield Record(
    id=f"{row.split}-{row.number}",
    split=row.split,
    task=CLOSED,
    question=row.text("Question"),
    answer=choices[LETTERS.index(letter)],
    group=figure.split("_")[0],
    media=images(f"{row.text('folder')}/{figure}"),
    answer_type=CLOSED,
    choices=choices,
    meta={"letter": letter},
  )


def _option(row: Row, letter: str) -> str:
  """An option without its letter: ' A: left lung' is 'left lung'."""
  name = f"Choice {letter}"
  option = re.sub(rf"^\s*{letter}\s*[:.]\s*", "", row.text(name)).strip()
  if not option:
    raise UserError(f"has an empty {name!r}")
  return option


PMC_VQA_V1 = Builder(
  name="pmc_vqa_v1",
  version="1",
  url="https://huggingface.co/datasets/xmcmic/PMC-VQA",
  licence="CC BY-SA",
  layout="train.csv, test.csv, test_clean.csv and the unpacked images.zip",
  group="article",
  tasks=(CLOSED,),
  media=(IMAGE,),
  answers=(CLOSED,),
  published={"train": 176948, "test_initial": 50000, "test": 2000},
  rows=_rows_v1,
  records=_records,
)
PMC_VQA_V2 = Builder(
  name="pmc_vqa_v2",
  version="2",
  url="https://huggingface.co/datasets/xmcmic/PMC-VQA",
  licence="CC BY-SA",
  layout="train_2.csv, test_2.csv and the unpacked images_2.zip",
  group="article",
  tasks=(CLOSED,),
  media=(IMAGE,),
  answers=(CLOSED,),
  published={"train": 152603, "test": 33430},
  rows=_rows_v2,
  records=_records,
)
