"""Two systems on the same questions."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflax.metrics.pairs import McNemar, holm, mcnemar, paired

SCORE = st.sampled_from([0.0, 1.0])
PAIRS = st.lists(
  st.tuples(SCORE, SCORE, st.sampled_from(["", "a", "b", "c"])), min_size=1, max_size=9
)


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_the_p_value_is_that_of_all_swaps(pairs):
  a, b, groups = zip(*pairs, strict=True)
  measured = paired(a, b, groups, seed=0, num_resamples=1000)
  names = [group or str(index) for index, group in enumerate(groups)]
  sums = [sum(y - x for x, y, n in zip(a, b, names, strict=True) if n == name) for name in {*names}]
  swaps = [
    sum(map(math.prod, zip(signs, sums, strict=True)))
    for signs in itertools.product((1, -1), repeat=len(sums))
  ]
  want = sum(abs(swap) >= abs(sum(sums)) for swap in swaps) / len(swaps)
  assert measured.p == pytest.approx(want)
  assert measured.value == pytest.approx(np.mean(b) - np.mean(a))
  assert -1 <= measured.ci95[0] <= measured.ci95[1] <= 1


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_without_groups_it_is_mcnemars(pairs):
  a, b, _ = zip(*pairs, strict=True)
  assert paired(a, b, [""] * len(a), seed=0).p == pytest.approx(mcnemar(a, b, [""] * len(a)).p)


def test_counted_swaps_come_near_all_swaps():
  rng = np.random.default_rng(0)
  a, b = rng.random(18), rng.random(18) + 0.1
  every = paired(a, b, [""] * 18, seed=0, num_resamples=2**18)
  some = paired(a, b, [""] * 18, seed=0, num_resamples=20_000)
  assert 0.001 < every.p < 0.9
  assert some.p == pytest.approx(every.p, abs=0.01)
  assert some == paired(a, b, [""] * 18, seed=0, num_resamples=20_000)


def test_mcnemar_is_exact():
  a, b = [1] * 9 + [0] * 3 + [1] * 5, [0] * 9 + [1] * 3 + [1] * 5
  # scipy.stats.binomtest(3, 12).pvalue
  assert (found := mcnemar(a, b, [""] * 17)) == McNemar(9, 3, found.p)
  assert found.p == pytest.approx(0.14599609375)
  assert mcnemar([1, 0], [1, 0], ["", ""]) == McNemar(0, 0, 1.0)
  assert mcnemar([1, 0], [0, 1], ["x", "y"]).p == 1.0
  with pytest.raises(ValueError, match="0 or 1"):
    mcnemar([0.5], [1.0], [""])


def test_mcnemar_has_no_p_value_for_groups_of_several():
  assert mcnemar([1, 1, 0], [0, 0, 1], ["x", "x", "y"]) == McNemar(2, 1, None)


def test_equal_runs_differ_by_nothing():
  scores = np.array([0.0, 1.0] * 50)
  same = paired(scores, scores, [""] * 100, seed=0)
  assert (same.value, same.p) == (0.0, 1.0)
  # None of 100 samples: as the rule of three says.
  assert same.ci95 == pytest.approx((-0.03, 0.03), abs=0.005)
  parts = paired(scores / 2, scores / 2, [""] * 100, seed=0)
  assert parts.ci95 == (0.0, 0.0) and parts.p == 1.0


def test_a_pairing_sees_what_two_intervals_do_not():
  rng = np.random.default_rng(0)
  hard = rng.random(200)
  a, b = hard, hard + rng.normal(0.02, 0.05, 200)
  measured = paired(a, b, [""] * 200, seed=0)
  assert measured.ci95[0] > 0 and measured.p < 0.001
  shuffled = paired(a, rng.permutation(b), [""] * 200, seed=0)
  assert shuffled.ci95[0] < 0 < shuffled.ci95[1] and shuffled.p > 0.05


def test_holm_is_the_published_example():
  # Holm 1979: step down, and never below the one before.
  assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert holm([0.9, 0.8]) == [1.0, 1.0]
  assert holm([]) == []
