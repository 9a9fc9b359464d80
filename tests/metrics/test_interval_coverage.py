"""A few runs of `benchmarks/interval_coverage.py`, which has the numbers of many."""

import pytest

from benchmarks import interval_coverage


@pytest.mark.parametrize("kind", interval_coverage.KINDS)
def test_intervals_cover_the_truth(kind):
  found = interval_coverage.coverage(kind, n=120, runs=200, extreme=False)
  assert 0.9 <= found["ours"] <= 0.99
  if kind != "loss":
    assert interval_coverage.coverage(kind, n=40, runs=200, extreme=True)["percentile"] < 0.85


def test_equally_good_systems_are_seldom_told_apart():
  found = interval_coverage.tests(n=120, runs=150)
  assert found["false positives"] <= 0.08 < found["power"]
  assert 0.92 <= found["coverage"] <= 1
