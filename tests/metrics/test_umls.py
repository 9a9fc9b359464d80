"""Concepts in common, by a lexicon."""

import pytest

from medflax.metrics.umls import Lexicon
from medflax.utils import UserError

TERMS = "Pleural effusion\tC1\neffusion\tC2\r\nX-ray\tC3\n\neffusion\tC9\nleft lower lobe\tC4\n"


@pytest.fixture
def lexicon(tmp_path):
  path = tmp_path / "terms.tsv"
  path.write_text(TERMS, "utf-8")
  return Lexicon(path)


@pytest.mark.parametrize(
  ("text", "concepts"),
  [
    ("A PLEURAL effusion.", {"C1"}),
    ("effusion, pleural", {"C2"}),
    ("pleural effusion and effusion", {"C1", "C2"}),
    ("x ray of the left lower lung", {"C3"}),
    ("left lower lobe effusion", {"C4", "C2"}),
    ("effusions", set()),
    ("", set()),
  ],
)
def test_the_longest_term_is_found(lexicon, text, concepts):
  assert lexicon.concepts(text) == concepts


def test_overlap(lexicon):
  found = lexicon.overlap(
    "pleural effusion on x-ray", "pleural effusion, left lower lobe, effusion"
  )
  assert found == (1 / 2, 1 / 3, 2 / 5)
  assert lexicon.overlap("none", "nothing").f1 == 1
  assert lexicon.overlap("effusion", "nothing").f1 == 0


def test_the_file_is_part_of_the_signature(lexicon, tmp_path):
  other = tmp_path / "terms2.tsv"
  other.write_text(TERMS + "mass\tC5\n")
  assert lexicon.source.startswith("terms.tsv ")
  assert lexicon.source.split()[-1] != Lexicon(other).source.split()[-1]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"effusion C2\n", ":1 is not 'term<TAB>concept'"),
    (b"a\tC1\n...\tC2\n", ":2 is not"),
    (b"\n", "has no terms"),
    (b"\xff\tC1\n", "is not UTF-8"),
  ],
)
def test_what_is_no_lexicon_says_so(tmp_path, content, message):
  path = tmp_path / "terms.tsv"
  path.write_bytes(content)
  with pytest.raises(UserError, match=message):
    Lexicon(path)


def test_a_missing_file_says_so(tmp_path):
  with pytest.raises(UserError, match=r"cannot read .*none\.tsv: No such file"):
    Lexicon(tmp_path / "none.tsv")
