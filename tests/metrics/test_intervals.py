"""The cluster bootstrap: values, coverage, determinism, edge cases."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflax.metrics.intervals import Measurement, bootstrap
from medflax.utils import UserError

SAMPLES = st.lists(
  st.tuples(st.floats(-10, 10), st.sampled_from(["", "a", "b", "c"])), min_size=1, max_size=30
)


@settings(max_examples=50, deadline=None)
@given(SAMPLES)
def test_value_is_the_mean_and_the_interval_is_ordered_and_finite(samples):
  values, groups = zip(*samples, strict=True)
  measured = bootstrap(values, groups, seed=0, num_resamples=50)
  assert measured.value == pytest.approx(np.mean(values), abs=1e-9)
  assert measured.ci95[0] <= measured.ci95[1]
  assert min(values) - 1e-9 <= measured.ci95[0]
  assert measured.ci95[1] <= max(values) + 1e-9
  assert measured.n == len(values)
  assert all(map(math.isfinite, (measured.stderr, *measured.ci95)))
  assert measured == bootstrap(values, groups, seed=0, num_resamples=50)


@settings(max_examples=25, deadline=None)
@given(SAMPLES, st.randoms())
def test_names_of_groups_do_not_matter(samples, random):
  values, groups = zip(*samples, strict=True)
  renamed = [group and f"patient {group}" for group in groups]
  assert bootstrap(values, groups, seed=1, num_resamples=20) == bootstrap(
    values, renamed, seed=1, num_resamples=20
  )


def test_interval_covers_the_truth_for_clustered_samples():
  """40 patients, 5 equal answers each: groups must be resampled to cover 95 %."""
  rng = np.random.default_rng(0)
  groups = [f"patient {index}" for index in range(40) for _ in range(5)]
  grouped = single = 0
  for trial in range(200):
    values = np.repeat(rng.random(40) < 0.6, 5).astype(np.float64)
    low, high = bootstrap(values, groups, seed=trial, num_resamples=300).ci95
    grouped += low <= 0.6 <= high
    low, high = bootstrap(values, [""] * 200, seed=trial, num_resamples=300).ci95
    single += low <= 0.6 <= high
  assert 0.89 <= grouped / 200 <= 0.99
  assert single / 200 < 0.75  # the mistake the grouping is there for


def test_stderr_agrees_with_theory():
  values = np.random.default_rng(0).normal(size=400)
  measured = bootstrap(values, [""] * 400, seed=0)
  assert measured.stderr == pytest.approx(values.std(ddof=1) / 20, rel=0.1)


def test_weights_make_a_ratio_of_sums():
  measured = bootstrap([1.0, 4.0], ["a", "b"], weights=[3, 1], seed=0)
  assert measured.value == pytest.approx(7 / 4)
  assert measured.ci95 == (1.0, 4.0)


def test_resamples_without_weight_are_drawn_again():
  measured = bootstrap([0.5, 9.0], ["a", "b"], weights=[1, 0], seed=0)
  assert measured == Measurement(0.5, 0.0, (0.5, 0.5), 2)


def test_one_sample_collapses():
  assert bootstrap([0.25], ["a"], seed=0) == Measurement(0.25, 0.0, (0.25, 0.25), 1)


@pytest.mark.parametrize(
  ("values", "weights", "message"),
  [
    ([], None, "0 samples"),
    ([1.0, math.nan], None, "value 1 of 2 is nan"),
    ([1.0, 2.0], [0, 0], "weights of all 2"),
  ],
)
def test_what_cannot_be_measured_says_so(values, weights, message):
  with pytest.raises(UserError, match=message):
    bootstrap(values, ["a"] * len(values), weights=weights, seed=0)


def test_json_is_plain():
  text = json.dumps(bootstrap([0.0, 1.0], ["a", "b"], seed=0).to_json(), allow_nan=False)
  assert json.loads(text) == {
    "value": 0.5,
    "stderr": pytest.approx(0.354, abs=0.02),
    "ci95": [0.0, 1.0],
    "n": 2,
  }
