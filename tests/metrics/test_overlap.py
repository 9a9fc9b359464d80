"""Shares of tokens in common, and the characters of prefix tuning's BLEU."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax.metrics.overlap import Overlap, char_bleu1, overlap, token_overlap


def test_tokens_count_as_often_as_they_are_there():
  assert overlap("aab", "abbc") == Overlap(2 / 3, 2 / 4, 4 / 7)
  assert overlap([7, 7, 7], [7]) == Overlap(1 / 3, 1.0, 0.5)


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_f1_is_the_harmonic_mean_and_order_does_not_matter(ours, theirs):
  precision, recall, f1 = overlap(ours, theirs)
  total = precision + recall
  assert f1 == pytest.approx(2 * precision * recall / total if total else 0)
  assert overlap(theirs, ours) == Overlap(recall, precision, f1)
  assert overlap(ours[::-1], theirs) == (precision, recall, f1)
  assert overlap(ours, ours).f1 == 1


def test_words_are_normalised():
  assert token_overlap("The LEFT lung.", "left-lung") == Overlap(2 / 3, 1.0, 0.8)


def test_nothing_has_nothing_in_common_with_a_sign():
  assert token_overlap("", "left").f1 == token_overlap("", "-").f1 == 0
  assert token_overlap("-", "-").f1 == token_overlap("", "").f1 == 1


@pytest.mark.filterwarnings("ignore:\\nThe hypothesis contains 0 counts")
def test_character_bleu_is_what_nltk_gives_for_strings():
  from nltk.translate.bleu_score import sentence_bleu

  @given(st.text("ab ć", min_size=1, max_size=6), st.text("ab ć", min_size=1, max_size=6))
  def check(prediction, reference):
    want = sentence_bleu(list(reference), list(prediction), weights=(1, 0, 0, 0))
    assert char_bleu1(prediction, reference) == pytest.approx(want)

  check()
  assert char_bleu1("", "a") == 0
