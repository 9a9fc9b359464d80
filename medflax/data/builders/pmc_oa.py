"""PMC-OA (Lin et al., 2023): figures of PubMed Central with captions.

`pmc_oa` has panels with their own captions, `pmc_oa_beta` whole captions, which Med-Flamingo was
trained on. The owner names no split that both use, so articles are split by a hash.
"""

import dataclasses
import functools
from collections.abc import Iterator

from medflax.data.builders.base import Builder, Record, hash_choice, images
from medflax.data.builders.roco import CAPTION, CAPTION_QUESTIONS
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE
from medflax.data.manifest import hash_split

_IMAGES = ("images", "caption_T060_filtered_top4_sep_v0_subfigures", "figures")


def _rows(source: SourceFolder, table: str) -> Iterator[Row]:
  folder = source.folder(*_IMAGES)
  return (row.of(folder=folder) for row in source.rows(table))


def _records(row: Row) -> Iterator[Record]:
  image = row.text("image")
  article = row.text("pmcid", optional=True) or image.split("_")[0]
  name = image.rsplit(".", 1)[0]
  yield Record(
    id=name,
    split=hash_split(article),
    task=CAPTION,
    question=hash_choice(CAPTION_QUESTIONS, name),
    answer=row.text("caption"),
    group=article,
    media=images(f"{row.text('folder')}/{image}"),
  )


PMC_OA = Builder(
  name="pmc_oa",
  version="1",
  url="https://huggingface.co/datasets/axiong/pmc_oa",
  licence="of the articles (PubMed Central Open Access)",
  layout="pmc_oa.jsonl and the unpacked images.zip",
  group="article",
  tasks=(CAPTION,),
  media=(IMAGE,),
  rows=functools.partial(_rows, table="pmc_oa.jsonl"),
  records=_records,
)
PMC_OA_BETA = dataclasses.replace(
  PMC_OA,
  name="pmc_oa_beta",
  url="https://huggingface.co/datasets/axiong/pmc_oa_beta",
  layout="pmc_oa_beta.jsonl and the unpacked images.zip",
  rows=functools.partial(_rows, table="pmc_oa_beta.jsonl"),
)
