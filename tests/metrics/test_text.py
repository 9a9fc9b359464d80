"""Normalisation and exact match of answers."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax.metrics.text import exact_match, normalise


@pytest.mark.parametrize(
  ("text", "normal"),
  [
    (" Left Lung. ", "left lung"),
    ("left-sided", "left sided"),
    ("T2-weighted (MRI)", "t2 weighted mri"),
    ("Crohn's", "crohns"),
    ("3.5 cm", "3.5 cm"),
    ("3.", "3"),
    ("1,000", "1,000"),
    ("ﬁbrosis\u00a0①", "fibrosis 1"),
    ("-", ""),
  ],
)
def test_examples(text, normal):
  assert normalise(text) == normal


@given(st.text())
def test_is_idempotent_and_clean(text):
  once = normalise(text)
  assert normalise(once) == once
  assert once == " ".join(once.split())
  assert not any(unicodedata.category(c)[0] == "P" for c in once if c not in ".,")


@given(st.text(st.characters(codec="ascii")))
def test_case_and_outer_space_do_not_matter(text):
  assert exact_match(f"  {text.upper()} ", text.lower())


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_numbers_are_told_apart(a, b):
  assert exact_match(str(a), str(b)) == (a == b)
  assert not exact_match(f"{a}.5", f"{a}5")


def test_nothing_does_not_match_a_sign():
  assert not exact_match("", "-")
  assert exact_match(" - ", "-")
  assert not exact_match("", "left")
