"""PathVQA (He et al., 2020): questions on pathology figures of textbooks and of PEIR."""

from collections.abc import Iterator

from medflax.data.builders.base import CLOSED, OPEN, Builder, Record, images, yes_no_type
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE


def _rows(source: SourceFolder) -> Iterator[Row]:
  return source.splits({split: f"qas/{split}/{split}_qa.pkl" for split in ("train", "val", "test")})


def _records(row: Row) -> Iterator[Record]:
  image, answer = row.text("image"), row.text("answer")
  kind = yes_no_type(answer)
  yield Record(
    id=f"{row.split}-{row.number}",
    split=row.split,
    task=kind,
    question=row.text("question"),
    answer=answer,
    group=image,
    media=images(f"images/{row.split}/{image}.jpg"),
    answer_type=kind,
  )


PATH_VQA = Builder(
  name="path_vqa",
  version="2020",
  url="https://github.com/UCSD-AI4H/PathVQA",
  licence="MIT",
  layout="qas/{train,val,test}/*_qa.pkl and images/{train,val,test}/ (of its folder split/)",
  group="image",
  tasks=(OPEN, CLOSED),
  media=(IMAGE,),
  answers=(OPEN, CLOSED),
  published={"records": 32799, "images": 4998},
  rows=_rows,
  records=_records,
)
