"""A few runs of `benchmarks/interval_coverage.py`, which has the numbers of many."""

import pytest

from benchmarks import interval_coverage
from benchmarks.interval_coverage import Groups

ALIKE = Groups(6, 0.3)


@pytest.mark.parametrize("kind", ["binary", "share", "loss"])
def test_intervals_of_means_cover_the_truth(kind):
  measure = lambda rng, run: interval_coverage.of_mean(kind, 120, 0.3, ALIKE, rng, run)
  assert 0.9 <= interval_coverage.coverage(measure, 0.3, runs=200, seed=0)["covered"] <= 0.99


@pytest.mark.parametrize("kind", interval_coverage.SET_KINDS)
def test_intervals_of_sets_cover_the_truth(kind):
  measure = lambda rng, run: interval_coverage.of_set(kind, 120, ALIKE, rng, run)
  truth = interval_coverage.SET_KINDS[kind][1]
  assert 0.88 <= interval_coverage.coverage(measure, truth, runs=100, seed=0)["covered"] <= 1


def test_equally_good_systems_are_seldom_told_apart():
  found = interval_coverage.tests(120, 0.5, ALIKE, runs=150, seed=0)
  assert found["false positives"] <= 0.08 < found["power"]
  assert 0.92 <= found["covered"] <= 1
