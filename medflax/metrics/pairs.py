"""Two systems that answered the same questions: the difference, its interval, and tests.

The null hypothesis of `paired` is that it makes no difference which system gave which answers, so
that the two may be swapped, all samples of a group together. That test is exact whatever the
scores (Fisher 1935; Noreen 1989, "approximate randomisation"); for scores of 0 or 1 in groups of
one it is McNemar's exact test, so that it is also McNemar's for groups.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special

from medflax.metrics.intervals import (
  Clusters,
  Interval,
  Measurement,
  Values,
  clusters_of,
  studentised,
)

_MAX_SWAPS = 2**20  # groups swapped at once; bounds memory


@dataclasses.dataclass(frozen=True)
class Difference(Measurement):
  """The mean of `b - a` as a `Measurement`, and the two-sided p-value of the swapping test."""

  p: float


@dataclasses.dataclass(frozen=True)
class McNemar:
  """Samples that one system alone has right, and the exact two-sided p-value.

  The p-value is None where groups have several samples: McNemar's test takes them to be
  independent, and `paired`, which is the same test for groups of one, is right for all.
  """

  only_a: int
  only_b: int
  p: float | None

  def to_json(self) -> dict[str, Any]:
    """The form kept in compare.json."""
    return dataclasses.asdict(self)


def paired(
  a: Values, b: Values, groups: Sequence[str], *, seed: int, num_resamples: int = 10_000
) -> Difference:
  """How much better `b` is than `a` on the same samples.

  The interval of scores of 0 or 1 is Student's after one more sample that each system alone has
  right (Agresti & Min 2005; Bonett & Price 2012), with the spread between groups; that of others
  is the studentised bootstrap's.

  Args:
    a: one number per sample, as `b`.
    groups: the group of each sample, swapped and resampled as a whole; "" is one of its own.
    seed: same seed and input, same bits.
    num_resamples: how many swaps the p-value is counted from; all, if there are no more.

  Raises:
    UserError: if there is no sample, or a value is not finite.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  clusters = clusters_of(b - a, groups)
  binary = np.isin([a, b], (0, 1)).all()
  interval = _with_one_more_each(clusters) if binary else studentised(clusters, seed)
  p = _swapped(clusters.sums, seed, num_resamples)
  return Difference(clusters.mean, clusters.variance**0.5, interval, len(a), p)


def mcnemar(a: Values, b: Values, groups: Sequence[str]) -> McNemar:
  """McNemar's exact test (1947) of scores of 0 or 1; `groups` as of `paired`.

  Raises:
    ValueError: if there are other scores.
    UserError: if there is no sample.
  """
  a, b = np.asarray(a), np.asarray(b)
  if not np.isin([a, b], (0, 1)).all():
    raise ValueError("McNemar's test is of scores that are 0 or 1")
  only_a, only_b = int((a > b).sum()), int((b > a).sum())
  if clusters_of(b - a, groups).totals.max() > 1:
    return McNemar(only_a, only_b, None)
  least, total = min(only_a, only_b), only_a + only_b
  return McNemar(only_a, only_b, min(1.0, 2 * float(special.bdtr(least, total, 0.5))))


def holm(p_values: Sequence[float]) -> list[float]:
  """P-values that stay valid when all are looked at (Holm 1979)."""
  order = sorted(range(len(p_values)), key=lambda index: p_values[index])
  adjusted, least = [0.0] * len(p_values), 0.0
  for rank, index in enumerate(order):
    least = max(least, min(1.0, p_values[index] * (len(p_values) - rank)))
    adjusted[index] = least
  return adjusted


def _with_one_more_each(clusters: Clusters) -> Interval:
  if len(clusters.sums) == 1:
    return -1.0, 1.0
  more = clusters.plus(1.0, -1.0)
  half = clusters.quantile * more.variance**0.5
  return max(-1.0, more.mean - half), min(1.0, more.mean + half)


def _swapped(sums: Float[np.ndarray, " g"], seed: int, num_resamples: int) -> float:
  """The share of swaps that give at least as large a difference, this one among them."""
  sums = sums[sums != 0]
  count = len(sums)
  least = abs(sums.sum()) * (1 - 1e-12)
  if count < 63 and 2**count <= num_resamples:
    signs = (np.arange(2**count)[:, None] >> np.arange(count) & 1) * 2.0 - 1
    return float((np.abs(signs @ sums) >= least).mean())
  rng = np.random.default_rng(seed)
  rows = max(1, _MAX_SWAPS // count)
  as_large = 1
  for start in range(0, num_resamples, rows):
    size = (min(rows, num_resamples - start), count)
    signs = rng.integers(2, size=size, dtype=np.int8) * 2.0 - 1
    as_large += int((np.abs(signs @ sums) >= least).sum())
  return as_large / (num_resamples + 1)
