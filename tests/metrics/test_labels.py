"""Answers that name classes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax.metrics.labels import label_f1, labels, macro_f1, micro_f1, same_labels

CLASSES = st.sampled_from(["mass", "nodule", "effusion"])


def of_set(score, predictions, references):
  return score(predictions, [[text] for text in references])(np.arange(len(predictions)))


@pytest.mark.parametrize(
  ("answer", "names"),
  [
    ("Effusion, cardiomegaly; oedema.", {"effusion", "cardiomegaly", "oedema"}),
    ("mass,mass", {"mass"}),
    ("1,5 cm, left", {"1,5 cm", "left"}),
    ("T1,axial", {"t1", "axial"}),
    (" ;,", set()),
    ("", set()),
  ],
)
def test_lists_are_separated(answer, names):
  assert labels(answer) == names


def test_order_and_case_do_not_matter():
  assert same_labels("Mass, nodule", "nodule; mass") == 1
  assert same_labels("mass", "nodule, mass") == 0
  assert label_f1("mass", "nodule, mass") == pytest.approx(2 / 3)
  assert same_labels("", "") == label_f1("", "") == 1


@given(st.lists(st.tuples(CLASSES, CLASSES), min_size=1, max_size=12))
def test_single_labels_have_the_textbook_numbers(pairs):
  predictions, references = zip(*pairs, strict=True)
  scores = []
  for name in set(references):
    hits = sum(p == r == name for p, r in pairs)
    named, right = predictions.count(name), references.count(name)
    scores.append(2 * hits / (named + right))
  assert of_set(macro_f1, predictions, references) == pytest.approx(np.mean(scores))
  accuracy = np.mean([p == r for p, r in pairs])
  assert of_set(micro_f1, predictions, references) == pytest.approx(accuracy)


def test_other_texts_are_misses_of_the_class():
  predictions, references = ["mass", "I cannot tell", "nodule"], ["mass", "mass", "nodule"]
  assert of_set(macro_f1, predictions, references) == pytest.approx((2 / 3 + 1) / 2)
  assert of_set(micro_f1, predictions, references) == pytest.approx(2 / 3)


def test_several_labels():
  predictions, references = ["mass, nodule", "effusion"], ["mass", "effusion; mass"]
  assert of_set(macro_f1, predictions, references) == pytest.approx((2 / 3 + 1) / 2)
  assert of_set(micro_f1, predictions, references) == pytest.approx(4 / 6)


def test_classes_that_a_resample_lacks_are_left_out():
  score = macro_f1(["mass", "mass"], [["mass"], ["nodule"]])
  assert score(np.array([0, 0])) == 1
  assert score(np.array([1, 1])) == 0
  assert math.isnan(macro_f1(["mass"], [[""]])(np.array([0])))
