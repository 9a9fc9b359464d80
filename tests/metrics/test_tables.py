"""Linearised tables: parsing, and DePlot's similarity."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax.metrics.scorers import make_metrics
from medflax.metrics.tables import BREAK, cell_accuracy, parse_table, rms_f1

CELL = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=6)
CLEAN = CELL.filter(lambda cell: "|" not in cell and "<" not in cell)
TABLES = st.lists(st.lists(CLEAN, min_size=2, max_size=3).map(tuple), min_size=2, max_size=4)
TABLE = "Group | Value <0x0A> A | 10 <0x0A> B | 4"


def linearise(rows):
  """The one line that `parse_table` reads; bars and breaks in a cell become spaces."""
  clean = lambda cell: " ".join(re.sub(rf"\||{BREAK}", " ", cell).split())
  return f" {BREAK} ".join(" | ".join(map(clean, row)) for row in rows)


def test_rows_and_cells():
  rows = [("Group", "Value"), ("A", "10"), ("B", "4")]
  assert parse_table(TABLE) == rows
  assert parse_table("Group|Value\n\n A |10<0x0A>B|4\r\n | \n") == rows
  assert parse_table("TITLE | <0x0A> x") == [("TITLE", ""), ("x",)]
  assert parse_table(" <0x0A>\n") == []


@given(TABLES)
def test_a_table_is_read_as_it_was_written(rows):
  assert parse_table(linearise(rows)) == rows
  assert rms_f1(linearise(rows), linearise(rows)) == pytest.approx(1)
  assert cell_accuracy(linearise(rows), linearise(rows)) == 1


@given(st.text(), st.text())
def test_any_text_is_scored(a, b):
  assert 0 <= rms_f1(a, b) <= 1 + 1e-9
  assert 0 <= cell_accuracy(a, b) <= 1
  assert parse_table(linearise(parse_table(a))) == parse_table(linearise([*parse_table(a), ()]))
  assert all(any(row) for row in parse_table(a))


def test_similarity_by_hand():
  assert rms_f1("Group | Value <0x0A> B | 4 <0x0A> A | 10", TABLE) == pytest.approx(1)  # any order
  assert rms_f1("Group | Value <0x0A> A | 8 <0x0A> B | 4", TABLE) == pytest.approx((0.8 + 1) / 2)
  assert rms_f1("Group | Value <0x0A> A | 4 <0x0A> B | 4", TABLE) == pytest.approx(0.5)
  assert rms_f1("Group | Value <0x0A> A | 10", TABLE) == pytest.approx(2 / 3)
  assert rms_f1("Group | Value <0x0A> A | 10 <0x0A> C | 4", TABLE) == pytest.approx(13 / 7 / 2)
  assert rms_f1("", TABLE) == rms_f1(TABLE, "") == 0


def test_cells_at_their_place():
  assert cell_accuracy("Group | Value <0x0A> A | 9 <0x0A> B | 4", TABLE) == pytest.approx(5 / 6)
  assert cell_accuracy(f"{TABLE} <0x0A> C | 1", TABLE) == pytest.approx(6 / 8)
  assert cell_accuracy("", TABLE) == 0


def test_they_are_metrics_of_evaluations():
  metrics = make_metrics(["rms_f1", "table_cells"])
  assert [m.corpus([TABLE, "x"], [[TABLE], [TABLE]]) for m in metrics.values()] == [0.5, 0.5]
