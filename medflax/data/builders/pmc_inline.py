"""PMC-Inline (Wu et al., 2023): articles of PubMed Central with figures in their sentences.

`paper_train.csv` and `paper_test.csv` name a JSON file for every article: sentences with the
figures that they refer to. Documents are runs of at most 50 sentences and 3 images, as RadFM
samples them; here they follow one another instead of being drawn at random.
"""

from collections.abc import Iterator

from medflax.data.builders.base import Builder, Record
from medflax.data.builders.interleave import Piece, records
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE
from medflax.utils import UserError

MAX_SENTENCES, MAX_IMAGES, MAX_WORDS = 50, 3, 1500
ARTICLE = "article"


def _rows(source: SourceFolder) -> Iterator[Row]:
  folder = source.folder("figures", "images")
  for row in source.splits({"train": "paper_train.csv", "test": "paper_test.csv"}):
    if row.problem:
      yield row
      continue
    path = str(row.fields.get("PMC_path", ""))
    try:
      yield row.of(sentences=source.json(path), folder=folder)
    except UserError as error:
      yield Row(row.table, row.number, {}, row.split, str(error))


def _records(row: Row) -> Iterator[Record]:
  article = row.text("PMC_path").rsplit("/", 1)[-1].removesuffix(".json")
  sentences = row.items("sentences")
  if not all(isinstance(sentence, dict) for sentence in sentences):
    raise UserError(f"article {article} holds a sentence that is no object")
  pieces = (
    Piece(
      str(sentence.get("text", "")),
      tuple(f"{row.text('folder')}/{article}_{ref}.jpg" for ref in sentence.get("img_ref") or []),
    )
    for sentence in sentences
  )
  limits = dict(max_images=MAX_IMAGES, max_words=MAX_WORDS, max_pieces=MAX_SENTENCES)
  yield from records(pieces, name=article, split=row.split, task=ARTICLE, group=article, **limits)


PMC_INLINE = Builder(
  name="pmc_inline",
  version="1",
  url="https://huggingface.co/datasets/chaoyi-wu/PMC-Inline",
  licence="of the articles (PubMed Central Open Access)",
  layout="paper_train.csv, paper_test.csv, the JSON files they name and figures/",
  group="article",
  tasks=(ARTICLE,),
  media=(IMAGE,),
  rows=_rows,
  records=_records,
  interleaved=True,
)
