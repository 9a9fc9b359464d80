"""Numbers of candidates' likelihoods."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflax.metrics.likelihood import (
  LIKELIHOOD_METRICS,
  Likelihoods,
  from_candidates,
  reliability,
  risk_coverage,
)
from medflax.utils import UserError


def yes_no(*pairs):
  """Of (probability of yes, whether yes is right)."""
  return [Likelihoods(("yes", "no"), np.array([p, 1 - p]), 0 if yes else 1) for p, yes in pairs]


def value(name, questions):
  return LIKELIHOOD_METRICS[name].measure(questions, [""] * len(questions), seed=0).value


QUESTIONS = st.lists(
  st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.55, 0.9, 1.0]), st.booleans()), min_size=1, max_size=9
)


@settings(max_examples=50, deadline=None)
@given(QUESTIONS)
def test_area_is_the_share_of_pairs_in_order(pairs):
  questions = yes_no(*pairs)
  ups, downs = [p for p, yes in pairs if yes], [p for p, yes in pairs if not yes]
  measured = LIKELIHOOD_METRICS["auroc"].measure(questions, [""] * len(pairs), seed=0)
  if ups and downs:
    in_order = [(up > down) + (up == down) / 2 for up in ups for down in downs]
    assert measured.value == pytest.approx(np.mean(in_order))  # that of "no" is the same
  else:
    assert measured is None


@settings(max_examples=50, deadline=None)
@given(QUESTIONS)
def test_the_curve_ends_at_the_error_and_the_area_is_its_mean(pairs):
  questions = yes_no(*pairs)
  coverage, risk = risk_coverage(questions)
  assert coverage[-1] == 1
  assert risk[-1] == pytest.approx(1 - value("likelihood_accuracy", questions))
  assert value("aurc", questions) == pytest.approx(risk.mean())


def test_sure_answers_are_given_first():
  coverage, risk = risk_coverage(yes_no((0.9, True), (0.6, False), (0.1, False), (0.6, True)))
  assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
  # The two of 0.6 are half wrong each, whichever comes first.
  assert risk == pytest.approx([0, 0, 0.5 / 3, 0.25])


def test_brier():
  assert value("brier", yes_no((0.8, True))) == pytest.approx(0.2**2 + 0.2**2)
  assert value("brier", yes_no((0.0, True))) == pytest.approx(2)
  outside = Likelihoods(("left", "right"), np.array([0.5, 0.5]), -1)
  assert value("brier", [outside]) == pytest.approx(1.5)
  assert value("likelihood_accuracy", [outside]) == 0


def test_calibration_is_read_in_bins():
  questions = yes_no((0.9, True), (0.9, False), (0.3, False), (0.3, False))
  assert value("ece", questions) == pytest.approx((abs(1 - 1.8) + abs(2 - 1.4)) / 4)
  low, high = reliability(questions, bins=10)
  assert (low.n, low.confidence, low.accuracy) == (2, pytest.approx(0.7), 1)
  assert (high.low, high.high, high.n) == (pytest.approx(0.8), pytest.approx(0.9), 2)
  assert value("ece", yes_no((1.0, True))) == 0


def test_lines_of_answers_are_read():
  candidates = [dict(text="Left", probability=0.2), dict(text="right", probability=0.8)]
  read = from_candidates(candidates, "right.")
  assert (read.choices, read.probabilities.tolist(), read.answer) == (
    ("Left", "right"),
    [0.2, 0.8],
    1,
  )
  assert from_candidates(candidates, "both").answer == -1


def test_several_classes_are_one_against_the_rest():
  choices = ("CT", "MR", "US")
  table = [([0.6, 0.3, 0.1], 0), ([0.5, 0.4, 0.1], 1), ([0.2, 0.2, 0.6], 2), ([0.1, 0.2, 0.7], 1)]
  questions = [Likelihoods(choices, np.array(p), answer) for p, answer in table]
  # CT: 3 of 3 pairs; MR: rows 1, 3 against 0, 2: 2 and half of 4; US: 2 of 3.
  assert value("auroc", questions) == pytest.approx((1 + 2.5 / 4 + 2 / 3) / 3)


def test_choices_of_their_own_have_no_classes():
  questions = [Likelihoods((f"a{i}", f"b{i}"), np.array([0.3, 0.7]), 0) for i in range(3)]
  assert LIKELIHOOD_METRICS["auroc"].measure(questions, [""] * 3, seed=0) is None


@pytest.mark.parametrize("name", LIKELIHOOD_METRICS)
def test_every_metric_has_an_interval(name):
  rng = np.random.default_rng(0)
  questions = yes_no(*((p, bool(rng.random() < p)) for p in rng.random(90)))
  groups = [f"{i // 3}" for i in range(90)]
  metric = LIKELIHOOD_METRICS[name]
  measured = metric.measure(questions, groups, seed=0)
  low, high = measured.ci95
  assert 0 <= low < high <= 2 and measured.n == 90 and math.isfinite(measured.stderr)
  assert metric.signature == "v1"
  with pytest.raises(UserError, match="0 samples"):
    metric.measure([], [], seed=0)
