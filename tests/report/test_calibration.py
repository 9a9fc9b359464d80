"""Reliability and risk against what the definitions give by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax.report.calibration import reliability, risk_coverage

ANSWERS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


def _arrays(answers):
  confidence, right = zip(*answers, strict=True)
  return np.array(confidence), np.array(right, bool)


def test_calibration_error_by_hand():
  # Two bins: (0.55, half right) and (0.95, all right): 0.5 · 0.05 + 0.5 · 0.05.
  bins = reliability(np.array([0.55, 0.55, 0.95, 0.95]), np.array([True, False, True, True]))
  assert bins.counts.tolist() == [2, 2]
  assert bins.accuracy.tolist() == [0.5, 1.0]
  assert bins.error == pytest.approx(0.05)


@given(ANSWERS)
def test_bins_hold_every_answer_once(answers):
  confidence, right = _arrays(answers)
  bins = reliability(confidence, right)
  assert np.sum(bins.members, axis=0).tolist() == [1] * len(right)
  assert (bins.accuracy * bins.counts).sum() == pytest.approx(right.sum())
  assert 0 <= bins.error <= 1


def test_perfectly_calibrated_answers_have_no_error():
  confidence = np.repeat([0.25, 0.75], 400)
  right = np.tile([True, False, False, False], 200)
  right[400:] = ~right[400:]
  assert reliability(confidence, right).error == pytest.approx(0)


def test_risk_by_hand():
  coverage, risk = risk_coverage(np.array([0.2, 0.9, 0.5]), np.array([False, True, False]))
  assert coverage == pytest.approx([1 / 3, 2 / 3, 1])
  assert risk == pytest.approx([0, 1 / 2, 2 / 3])


@given(ANSWERS, st.randoms(use_true_random=False))
def test_risk_ends_at_the_error_rate_and_ignores_the_order(answers, random):
  confidence, right = _arrays(answers)
  coverage, risk = risk_coverage(confidence, right)
  assert coverage[-1] == 1
  assert risk[-1] == pytest.approx(1 - right.mean())
  random.shuffle(answers)
  assert risk_coverage(*_arrays(answers))[1] == pytest.approx(risk)
