"""PMC-CaseReport (Wu et al., 2023): questions on the figures of case reports, as parquet or CSV.

A question comes after its report's text, of which, as RadFM has it, the first sentence and the
last four are kept where there are more than five.
"""

from collections.abc import Iterator

from medflax.data.builders.base import Builder, Record, images
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE

CASE = "case"
MAX_SENTENCES, LAST = 5, 4


def _rows(source: SourceFolder) -> Iterator[Row]:
  folder = source.folder("figures", "images")
  for split in ("train", "test"):
    for name in source.found(f"**/*{split}*.parquet", f"**/*{split}*.csv"):
      for row in source.rows(name, split):
        yield row.of(folder=folder)


def _records(row: Row) -> Iterator[Record]:
  article = row.text("PMC_id")
  figures = [str(name) for name in row.items("img_ref")]
  context = shortened(row.text("context", optional=True))
  question = row.text("question").removeprefix("Q:").strip()
  yield Record(
    id=f"{row.split}-{row.table.rsplit('/', 1)[-1]}-{row.number}",
    split=row.split,
    task=CASE,
    question=f"{context}\n{question}" if context else question,
    answer=row.text("answer").removeprefix("A:").strip(),
    group=article,
    media=images(*(f"{row.text('folder')}/{article}_{name}.jpg" for name in figures)),
  )


def shortened(context: str) -> str:
  """The first sentence and the last four of a longer text."""
  pieces = [piece for piece in context.split(".") if piece.strip()]
  if len(pieces) <= MAX_SENTENCES:
    return context
  return f"{pieces[0].strip()}. {'.'.join(pieces[-LAST:]).strip()}."


PMC_CASE_REPORT = Builder(
  name="pmc_case_report",
  version="1",
  url="https://huggingface.co/datasets/chaoyi-wu/PMC-CaseReport",
  licence="of the articles (PubMed Central Open Access)",
  layout="*train*.parquet and *test*.parquet (or .csv) and figures/",
  group="article",
  tasks=(CASE,),
  media=(IMAGE,),
  rows=_rows,
  records=_records,
)
