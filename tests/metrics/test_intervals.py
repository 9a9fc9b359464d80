"""Intervals of means by group: values, coverage, determinism, edge cases."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflax.metrics.intervals import Measurement, across_seeds, bootstrap, jackknife
from medflax.utils import UserError

GROUP = st.sampled_from(["", "a", "b", "c"])
SAMPLES = st.lists(st.tuples(st.floats(-10, 10), GROUP), min_size=1, max_size=30)
SHARES = st.lists(st.tuples(st.floats(0, 1), GROUP), min_size=1, max_size=30)
BINARY = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), GROUP), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None)
@given(SAMPLES | SHARES | BINARY)
def test_value_is_the_mean_and_in_its_interval(samples):
  values, groups = zip(*samples, strict=True)
  measured = bootstrap(values, groups, seed=0, num_resamples=50)
  assert measured.value == pytest.approx(np.mean(values), abs=1e-9)
  assert measured.ci95[0] <= measured.value + 1e-12 and measured.value - 1e-12 <= measured.ci95[1]
  assert measured.n == len(values)
  assert all(map(math.isfinite, (measured.stderr, *measured.ci95)))
  assert measured == bootstrap(values, groups, seed=0, num_resamples=50)
  if min(values) >= 0 and max(values) <= 1:
    assert measured.ci95[0] >= 0 and measured.ci95[1] <= 1


@settings(max_examples=25, deadline=None)
@given(SAMPLES | BINARY, st.randoms())
def test_names_of_groups_do_not_matter(samples, random):
  values, groups = zip(*samples, strict=True)
  renamed = [group and f"patient {group}" for group in groups]
  assert bootstrap(values, groups, seed=1, num_resamples=20) == bootstrap(
    values, renamed, seed=1, num_resamples=20
  )


@pytest.mark.parametrize("binary", [True, False])
def test_interval_covers_the_truth_for_clustered_samples(binary):
  """40 patients, 5 equal answers each: groups must be looked at to cover 95 %."""
  rng = np.random.default_rng(0)
  groups = [f"patient {index}" for index in range(40) for _ in range(5)]
  grouped = single = 0
  for trial in range(200):
    scores = rng.random(40)
    values = np.repeat(scores < 0.6 if binary else scores, 5).astype(np.float64)
    truth = 0.6 if binary else 0.5
    low, high = bootstrap(values, groups, seed=trial, num_resamples=300).ci95
    grouped += low <= truth <= high
    low, high = bootstrap(values, [""] * 200, seed=trial, num_resamples=300).ci95
    single += low <= truth <= high
  assert 0.91 <= grouped / 200 <= 0.99
  assert single / 200 < 0.75  # the mistake the grouping is there for


def test_samples_of_their_own_have_the_interval_of_wilson():
  # The ends solve |0.8 - end| = t (end (1 - end) / 11)^.5: two more tell the spread.
  values = [1.0] * 8 + [0.0] * 2
  low, high = bootstrap(values, [""] * 10, seed=0).ci95
  t, n = 2.262157, 11
  for end in (low, high):
    assert abs(0.8 - end) == pytest.approx(t * math.sqrt(end * (1 - end) / n), abs=1e-6)


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 0.909, 1.0), (0.0, 0.0, 0.091)])
def test_answers_that_are_all_alike_still_have_an_interval(value, low, high):
  measured = bootstrap([value] * 40, [""] * 40, seed=0)
  assert measured.value == value
  assert measured.ci95 == pytest.approx((low, high), abs=1e-3)
  fewer = bootstrap([value] * 40, [f"{i // 4}" for i in range(40)], seed=0).ci95
  assert fewer[1] - fewer[0] > 2 * (high - low)  # ten patients tell less than forty


def test_shares_allow_for_what_was_not_seen():
  values = [0.1, 0.15, 0.2, 0.15] * 10
  low, high = bootstrap(values, [""] * 40, seed=0).ci95
  assert 0.1 < low < 0.15 < high < 0.25
  assert high - 0.15 > 0.15 - low
  # With samples enough it is Student's.
  many = bootstrap(values * 50, [""] * 2000, seed=0)
  assert (many.ci95[1] - many.ci95[0]) / many.stderr == pytest.approx(2 * 1.96, rel=0.2)


def test_a_skewed_mean_has_an_uneven_interval():
  values = np.random.default_rng(0).exponential(size=60)
  measured = bootstrap(values, [""] * 60, seed=0)
  above, below = measured.ci95[1] - measured.value, measured.value - measured.ci95[0]
  assert above > 1.15 * below


def test_stderr_agrees_with_theory():
  values = np.random.default_rng(0).normal(size=400)
  measured = bootstrap(values, [""] * 400, seed=0)
  assert measured.stderr == pytest.approx(values.std(ddof=1) / 20)
  assert measured.ci95 == pytest.approx(
    (measured.value - 1.96 * measured.stderr, measured.value + 1.96 * measured.stderr), abs=0.02
  )


def test_weights_make_a_ratio_of_sums():
  measured = bootstrap([1.0, 4.0, 2.0], ["a", "b", "c"], weights=[3, 1, 0], seed=0)
  assert measured.value == pytest.approx(7 / 4)
  # The same as samples that are there three times, in a group.
  assert measured.ci95 == bootstrap([1.0, 1.0, 1.0, 4.0], ["a", "a", "a", "b"], seed=0).ci95


def test_groups_without_weight_say_nothing():
  measured = bootstrap([0.5, 9.0], ["a", "b"], weights=[1, 0], seed=0)
  assert measured == Measurement(0.5, 0.0, (0.5, 0.5), 2)


def test_one_sample():
  assert bootstrap([0.25], ["a"], seed=0) == Measurement(0.25, 0.0, (0.0, 1.0), 1)
  assert bootstrap([2.5], ["a"], seed=0) == Measurement(2.5, 0.0, (2.5, 2.5), 1)
  assert bootstrap([1], ["a"], seed=0) == Measurement(1.0, 0.0, (0.0, 1.0), 1)


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


def test_a_number_of_the_set_has_the_interval_of_leaving_groups_out():
  values = np.random.default_rng(0).random(300)
  groups = [f"{i // 3}" for i in range(300)]
  mean_of = lambda indices: float(values[indices].mean())
  of_set, mean = jackknife(mean_of, groups, seed=0), bootstrap(values, groups, seed=0)
  assert of_set.value == pytest.approx(mean.value)
  assert of_set.stderr == pytest.approx(mean.stderr)  # the same for groups of one size
  assert of_set.ci95 == pytest.approx(mean.ci95, abs=0.005)
  percent = jackknife(lambda indices: 100 * mean_of(indices), groups, seed=0, highest=100.0)
  assert percent.ci95 == pytest.approx([100 * end for end in of_set.ci95])


def test_many_groups_are_left_out_by_parts():
  values = np.random.default_rng(0).random(1000)
  calls = []
  statistic = lambda indices: calls.append(indices) or float(values[indices].mean())
  measured = jackknife(statistic, [""] * 1000, seed=0)
  assert len(calls) == 1 + 200 and {len(indices) for indices in calls[1:]} == {995}
  assert measured.stderr == pytest.approx(values.std(ddof=1) / 1000**0.5, rel=0.15)
  assert measured == jackknife(statistic, [""] * 1000, seed=0)


def test_a_number_of_the_set_that_hangs_on_one_group_has_no_interval():
  values = np.array([0.0, 0.0, 1.0])
  rare = lambda i: float(values[i].mean()) if values[i].any() else math.nan
  measured = jackknife(rare, ["", "", ""], seed=0)
  assert measured.value == pytest.approx(1 / 3) and measured.ci95 == (0.0, 1.0)
  assert jackknife(rare, ["a", "a", "a"], seed=0).ci95 == (0.0, 1.0)
  alike = jackknife(lambda _: 1.0, ["", "", "", ""], seed=0)
  assert alike.stderr == 0 and alike.ci95[1] == 1 and 0.2 < alike.ci95[0] < 0.5
  with pytest.raises(UserError, match="is nan"):
    jackknife(lambda _: math.nan, ["", ""], seed=0)
  with pytest.raises(UserError, match="0 samples"):
    jackknife(rare, [], seed=0)


def test_seeds_have_students_interval():
  runs = [{"em": Measurement(value, 0.1, (0.0, 1.0), 50)} for value in (0.5, 0.6, 0.7)]
  measured = across_seeds(runs)["em"]
  assert (measured.value, measured.stderr, measured.n) == (
    pytest.approx(0.6),
    pytest.approx(0.1),
    3,
  )
  half = 4.302653 * 0.1 / math.sqrt(3)
  assert measured.ci95 == pytest.approx((0.6 - half, 0.6 + half))
  assert across_seeds(runs[:1])["em"] == Measurement(0.5, 0.0, (0.5, 0.5), 1)
  with pytest.raises(UserError, match="did not measure the same: f1"):
    across_seeds([runs[0], runs[1] | {"f1": measured}])
  with pytest.raises(UserError, match="0 seeds"):
    across_seeds([])


def test_json_is_plain():
  text = json.dumps(bootstrap([0.0, 1.0], ["a", "b"], seed=0).to_json(), allow_nan=False)
  assert json.loads(text) == {
    "value": 0.5,
    "stderr": 0.5,
    "ci95": [pytest.approx(0.005, abs=0.002), pytest.approx(0.995, abs=0.002)],
    "n": 2,
  }
