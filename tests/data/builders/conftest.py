"""Makes tiny data sets in their official layouts, builds them and reads them back."""

import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pytest

from medflax.data.builders import BUILDERS
from medflax.data.builders.prepare import prepare
from medflax.data.builders.store import REJECTED
from medflax.data.documents import Sample
from medflax.data.prepared import PreparedDataset


class Built(NamedTuple):
  """A prepared data set: its summary, samples by split, and what was rejected."""

  info: Mapping[str, Any]
  data: PreparedDataset
  samples: Mapping[str, Sequence[Sample]]
  rejected: Sequence[Mapping[str, Any]]

  @property
  def reasons(self) -> list[str]:
    """Reasons, in which whatever a reader says about a media file is "NAME is broken"."""
    media = re.compile(r"^(\S+\.(?:jpg|png|nii\.gz|hea)) (?:is|cannot|holds|has) .*")
    return [media.sub(r"\1 is broken", item["reason"]) for item in self.rejected]


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
  (tmp_path / "source").mkdir()
  return tmp_path / "source"


@pytest.fixture
def build(source, tmp_path) -> Callable[[str], Built]:
  def run(name: str) -> Built:
    target = tmp_path / name
    info = prepare(BUILDERS[name], source, target)
    data = PreparedDataset(target, (8, 8), (4, 8, 8))
    assert data.name == name
    samples = {split: list(data.samples("vqa", split)) for split in data.splits}
    lines = (target / REJECTED).read_text().splitlines()
    return Built(info, data, samples, [json.loads(line) for line in lines])

  return run


@pytest.fixture
def write(source) -> Callable[..., None]:
  """Writes a file of the source: text or bytes as they are, anything else as JSON."""

  def run(name: str, content: Any) -> None:
    path = source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
      path.write_bytes(content)
    else:
      path.write_text(content if isinstance(content, str) else json.dumps(content))

  return run


@pytest.fixture
def picture(source) -> Callable[..., None]:
  """Writes a grey picture of one brightness; `broken` cuts it short."""

  def run(name: str, value: int, *, broken: bool = False) -> None:
    path = source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((6, 6), value, np.uint8)).save(path)
    if broken:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

  return run


@pytest.fixture
def shades() -> Callable[[Sample], list[int]]:
  """The brightness of each of a sample's media, which tells which files they are."""
  return lambda sample: [round(float(media.array.mean())) for media in sample.media]
