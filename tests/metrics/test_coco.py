"""COCO's metrics against other programs' numbers and definitions written out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflax.metrics import bleu, coco
from medflax.metrics.scorers import METRICS

WORD = st.sampled_from(["the", "left", "lung", "is", "café", "№2"])
ANSWER = st.lists(WORD, max_size=8).map(" ".join)
PAIR = st.tuples(ANSWER, st.lists(ANSWER, min_size=1, max_size=3))
CORPUS = st.lists(PAIR, min_size=1, max_size=5)


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_longest_common_subsequence(a, b):
  table = np.zeros((len(a) + 1, len(b) + 1), int)
  for i, x in enumerate(a):
    for j, y in enumerate(b):
      table[i + 1, j + 1] = max(table[i, j + 1], table[i + 1, j], table[i, j] + (x == y))
  assert coco.longest_common_subsequence(a, b) == table[-1, -1]


@settings(deadline=None)
@given(CORPUS, st.integers(1, 4))
def test_bleu_is_nltks_where_every_count_is_positive(pairs, order):
  predictions, references = zip(*pairs, strict=True)
  ours = coco.bleu_samples(predictions, references, order=order)
  theirs = bleu.nltk_samples(predictions, references, order=order, smoothed=False)
  positive = theirs > 1e-50
  np.testing.assert_allclose(ours[positive], theirs[positive], atol=1e-6)
  assert (ours[~positive] < 0.2).all()
  whole = METRICS[f"bleu{order}"].corpus(predictions, references)
  if whole > 1e-50 and all(len(p.split()) >= order for p in predictions):
    got = METRICS[f"coco_bleu{order}"].corpus(predictions, references)
    assert got == pytest.approx(whole, abs=1e-6)


@given(st.lists(WORD, min_size=1, max_size=8), st.lists(WORD, min_size=1, max_size=8))
def test_rouge_l_is_the_weighted_harmonic_mean(ours, theirs):
  common = coco.longest_common_subsequence(ours, theirs)
  precision, recall = common / len(ours), common / len(theirs)
  [score] = coco.rouge_l([" ".join(ours)], [[" ".join(theirs)]])
  if not common:
    assert score == 0
  else:
    assert score == pytest.approx(2.44 / (1 / precision + 1.44 / recall))


def test_rouge_l_takes_the_best_precision_and_the_best_recall():
  [score] = coco.rouge_l(["a b"], [["a b c d", "a"]])
  assert score == pytest.approx(1)  # precision of the first, recall of the second


def test_cider_by_hand():
  # "a" is rarer (ln 2) than nothing; one word has no 2- to 4-grams: a quarter of 10.
  assert coco.cider(["a", "c"], [["a"], ["b"]]).tolist() == pytest.approx([2.5, 0])
  # Two words, one bigram too many on our side; cosines of 1- and 2-grams.
  [score, _] = coco.cider(["a b", "x"], [["a"], ["c"]])
  assert score == pytest.approx(10 / 4 / math.sqrt(2) * math.exp(-1 / 72))


def test_cider_of_one_sample_is_0():
  assert coco.cider(["a b"], [["a b"]]).tolist() == [0]


@settings(deadline=None)
@given(CORPUS)
def test_an_answer_equal_to_the_reference_is_best(pairs):
  firsts = [texts[0] for _, texts in pairs]
  references = [[text] for text in firsts]
  others, equal = (coco.cider(texts, references) for texts in ([p for p, _ in pairs], firsts))
  assert (others <= equal + 1e-9).all() and (equal <= 10 + 1e-9).all()
