"""ROCO (Pelka et al., 2018) and ROCOv2 (Rückert et al., 2024): figures of articles with captions.

ROCO is a repository of captions whose script fetches the images; its radiology half is used.
"""

from collections.abc import Iterator

from medflax.data.builders.base import Builder, Record, hash_choice, images
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE
from medflax.utils import UserError

CAPTION = "caption"
CAPTION_QUESTIONS = (
  "What does this figure show?",
  "Describe this figure.",
  "Write a caption for this figure.",
)
_SPLITS = {"train": "train", "val": "validation", "test": "test"}
_SPLITS_V2 = {"train": "train", "val": "valid", "test": "test"}


def _rows(source: SourceFolder) -> Iterator[Row]:
  for split, official in _SPLITS.items():
    folder = f"data/{official}/radiology"
    links = {}
    for row in source.rows(f"{folder}/dlinks.txt", columns=("id", "command", "file")):
      links[row.fields.get("id", "")] = row
    for row in source.rows(f"{folder}/captions.txt", split, columns=("id", "caption")):
      link = links.get(row.fields.get("id"))
      path = f"{folder}/images/{_file_name(link)}" if link else None
      yield row.of(path=path, article=_article(link) if link else None)


def _article(link: Row) -> str:
  """PMC4083729 of 'wget … ftp://…/PMC4083729.tar.gz'."""
  return str(link.fields.get("command", "")).rsplit("/", 1)[-1].split(".")[0].strip()


def _file_name(link: Row) -> str:
  """What the repository's script calls the image: the article and the file in its archive."""
  return f"{_article(link)}_{str(link.fields.get('file', '')).strip()}"


def _records(row: Row) -> Iterator[Record]:
  name = row.text("id")
  if row.fields["path"] is None:
    raise UserError(f"{name} has no line in dlinks.txt, so its image is unknown")
  yield _record(row, name, row.text("caption"), row.text("path"), row.text("article"))


def _rows_v2(source: SourceFolder) -> Iterator[Row]:
  licences = source.rows("license_information.csv")
  articles = {row.fields.get("ID", ""): row.fields.get("PMCID", "") for row in licences}
  for split, official in _SPLITS_V2.items():
    folder = source.folder(f"{official}_images/{official}", f"{official}_images", official)
    for row in source.rows(f"{official}_captions.csv", split):
      yield row.of(folder=folder, articles=articles)


def _records_v2(row: Row) -> Iterator[Record]:
  name = row.text("ID")
  path = f"{row.text('folder')}/{name}.jpg"
  yield _record(row, name, row.text("Caption"), path, row.fields["articles"].get(name) or name)


def _record(row: Row, name: str, caption: str, path: str, article: str) -> Record:
  return Record(
    id=name,
    split=row.split,
    task=CAPTION,
    question=hash_choice(CAPTION_QUESTIONS, name),
    answer=caption,
    group=article,
    media=images(path),
  )


ROCO = Builder(
  name="roco",
  version="1",
  url="https://github.com/razorx89/roco-dataset",
  licence="CC, article by article (licences.txt)",
  layout="data/{train,validation,test}/radiology/ with captions.txt, dlinks.txt and images/",
  group="article",
  tasks=(CAPTION,),
  media=(IMAGE,),
  published={"train": 65448, "val": 8180, "test": 8179},
  rows=_rows,
  records=_records,
)
ROCO_V2 = Builder(
  name="roco_v2",
  version="2",
  url="https://doi.org/10.5281/zenodo.8333645",
  licence="CC, article by article (license_information.csv)",
  layout="{train,valid,test}_captions.csv and the unpacked {train,valid,test}_images.zip",
  group="article",
  tasks=(CAPTION,),
  media=(IMAGE,),
  published={"train": 59958, "val": 9904, "test": 9927},
  rows=_rows_v2,
  records=_records_v2,
)
