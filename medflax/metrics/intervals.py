"""A measured number with its uncertainty, where samples of one group are not independent.

Groups are patients, cases or episode families: spreads are taken between groups and whole groups
are resampled, not samples (Davison & Hinkley, "Bootstrap Methods and their Application", section
3.8). Which interval is used for which numbers was chosen by simulation
(`benchmarks/interval_coverage.py`):

* Of scores from 0 to 1, Wilson's interval with as many independent samples as the spread between
  groups tells, and Student's quantile (Korn & Graubard 1998; Dean & Pagano 2015). It does not leave
  [0, 1]. Groups that are rarely wrong may all be right by chance: the spread is told as if one more
  group were all right and one all wrong.
* Of other scores, and of weighted ones, the studentised bootstrap (Efron 1982; Hall 1992), whose
  quantiles are read further out for few groups (Hesterberg 2015, "What teachers should know about
  the bootstrap").
* Of a number of the whole set, the jackknife's standard error and Student's quantile on the scale
  of the logit, as is done for AUROCs (Pepe 2003, "The Statistical
  Evaluation of Medical Tests").
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import special

from medflax.utils import UserError

Values = Sequence[float | int] | Shaped[np.ndarray, " n"]
Interval = tuple[float, float]
# A number of a set, given the samples' indices, which may repeat; nan: of these there is none.
Statistic = Callable[[Int[np.ndarray, " n"]], float]

_TAIL = 0.975
# More groups are left out several at a time.
_MAX_BLOCKS = 200
# Groups drawn at once; bounds memory at some 16 MiB whatever their number.
_MAX_DRAWS = 2**18
# With few groups the studentised bootstrap has wild quantiles; at most so many times Student's.
_MAX_QUANTILE = 3.0


@dataclasses.dataclass(frozen=True)
class Measurement:
  """A number, its standard error, its 95 % interval (low, high) and its number of samples."""

  value: float
  stderr: float
  ci95: Interval
  n: int

  def to_json(self) -> dict[str, Any]:
    """The form kept in results.json."""
    return dataclasses.asdict(self) | {"ci95": list(self.ci95)}

  def __str__(self) -> str:
    return f"{self.value:.3f} [{self.ci95[0]:.3f}, {self.ci95[1]:.3f}] (n {self.n})"


@dataclasses.dataclass(frozen=True)
class Clusters:
  """What the groups contribute to a mean: it is `sums` over `totals`, both added up."""

  sums: Float[np.ndarray, " g"]
  totals: Float[np.ndarray, " g"]

  @property
  def mean(self) -> float:
    return float(self.sums.sum() / self.totals.sum())

  @property
  def variance(self) -> float:
    """Of the mean, by the spread between groups; 0 of a single one."""
    count = len(self.sums)
    residuals = self.sums - self.mean * self.totals
    scale = count / max(1, count - 1) / self.totals.sum() ** 2
    return float(residuals @ residuals * scale)

  @property
  def quantile(self) -> float:
    """Student's, of 95 %."""
    return float(special.stdtrit(len(self.sums) - 1, _TAIL))

  def plus(self, *values: float, size: float = 1.0) -> "Clusters":
    """With more groups that weigh `size`, each of equal values."""
    sums, totals = size * np.array(values), np.full(len(values), size)
    return Clusters(np.append(self.sums, sums), np.append(self.totals, totals))


def bootstrap(
  values: Values,
  groups: Sequence[str],
  *,
  seed: int,
  weights: Values | None = None,
  num_resamples: int = 2000,
) -> Measurement:
  """The (weighted) mean of `values` with a 95 % interval from the spread between groups.

  The standard error is that of linearisation. Values that are all 0 or 1 have Wilson's interval, as
  have values from 0 to 1 without weights; others have the studentised bootstrap's. A single group
  tells nothing about the spread: Wilson's interval is [0, 1] then, the other collapses.

  Args:
    values: one number per sample.
    groups: the group of each sample, resampled as a whole; "" is a group of its own.
    seed: same seed and input, same bits.
    weights: the share of each sample in the mean (for example its number of tokens);
      None: all equal.
    num_resamples: how many resamples the interval is read from.

  Raises:
    UserError: if there is no sample, a value is not finite, or all weights are 0.
  """
  values = np.asarray(values, np.float64)
  equal = weights is None
  weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
  if not len(values) == len(groups) == len(weights):
    raise ValueError(f"{len(values)} values, {len(groups)} groups, {len(weights)} weights")
  _check(values)
  if not weights.sum() > 0:
    raise UserError(f"cannot average: the weights of all {len(values)} samples are 0")
  clusters = _clusters(values, weights, groups)
  if np.isin(values, (0, 1)).all() or (equal and values.min() >= 0 and values.max() <= 1):
    interval = _of_shares(clusters)
  else:
    interval = studentised(clusters, seed, num_resamples)
  return Measurement(clusters.mean, clusters.variance**0.5, interval, len(values))


def jackknife(
  statistic: Statistic, groups: Sequence[str], *, seed: int, highest: float = 1.0
) -> Measurement:
  """A number of the whole set that is no mean over samples (BLEU of a corpus, AUROC).

  Its standard error is told by leaving out one group after the other, or one of `_MAX_BLOCKS`
  random parts of them. Where there is no number without one of these, or there is but one group,
  the error is not known (0) and the interval is the whole range.

  Args:
    statistic: of the samples at some indices, from 0 to `highest`; nan where there is none.
    groups: the group of each sample, left out as a whole; "" is a group of its own.
    seed: of the parts; same seed and input, same bits.
    highest: the end of the range.

  Raises:
    UserError: if there is no sample, or no such number of them.
  """
  ids = _group_ids(groups)
  value = float(statistic(np.arange(len(ids)))) if len(ids) else 0.0
  _check(np.full(len(ids), value))
  count = int(ids.max()) + 1
  blocks = min(count, _MAX_BLOCKS)
  if blocks == 1:
    return Measurement(value, 0.0, (0.0, highest), len(ids))
  part = (np.random.default_rng(seed).permutation(count) % blocks)[ids]
  without = np.array([statistic(np.flatnonzero(part != block)) for block in range(blocks)])
  if not np.isfinite(without).all():
    return Measurement(value, 0.0, (0.0, highest), len(ids))
  error = float((without - without.mean()) @ (without - without.mean())) ** 0.5
  error *= ((blocks - 1) / blocks) ** 0.5
  share, quantile = value / highest, float(special.stdtrit(blocks - 1, _TAIL))
  if error and 0 < share < 1:
    half = quantile * error / highest / (share * (1 - share))
    low, high = (float(special.expit(special.logit(share) + side * half)) for side in (-1, 1))
  else:
    low, high = _wilson(share, quantile, float(blocks))
  return Measurement(value, error, (low * highest, high * highest), len(ids))


def across_seeds(runs: Sequence[Mapping[str, Measurement]]) -> dict[str, Measurement]:
  """Every number's mean over the runs, with the seeds' standard deviation as `stderr`.

  The interval is Student's of the mean over seeds, and `n` the number of seeds; with a single
  one it collapses.

  Raises:
    UserError: if there is no run, or if they did not measure the same.
  """
  if not runs:
    raise UserError("nothing to average: 0 seeds")
  every, common = set().union(*runs), set(runs[0]).intersection(*runs)
  if missing := sorted(every - common):
    raise UserError(f"the seeds did not measure the same: {missing[0]} is missing in one of them")
  count = len(runs)
  metrics = {}
  for key in runs[0]:
    values = np.array([run[key].value for run in runs])
    mean, spread = float(values.mean()), float(values.std(ddof=1)) if count > 1 else 0.0
    half = float(special.stdtrit(count - 1, _TAIL)) * spread / count**0.5 if count > 1 else 0.0
    metrics[key] = Measurement(mean, spread, (mean - half, mean + half), count)
  return metrics


def clusters_of(values: Values, groups: Sequence[str]) -> Clusters:
  """Of samples that all weigh the same.

  Raises:
    UserError: if there is no sample or a value is not finite.
  """
  values = np.asarray(values, np.float64)
  if len(values) != len(groups):
    raise ValueError(f"{len(values)} values, {len(groups)} groups")
  _check(values)
  return _clusters(values, np.ones_like(values), groups)


def studentised(clusters: Clusters, seed: int, num_resamples: int = 2000) -> Interval:
  """The studentised bootstrap: each resample's distance is told in its own standard errors.

  Without a spread it collapses onto the mean.
  """
  mean, error = clusters.mean, clusters.variance**0.5
  count = len(clusters.sums)
  if not error:
    return mean, mean
  weights = clusters.totals / clusters.totals.mean()
  away = (clusters.sums - mean * clusters.totals) / (clusters.totals.mean() * error)
  columns = np.stack([away, weights, away**2, away * weights, weights**2], axis=1)
  rng = np.random.default_rng(seed)
  sizes = [min(_MAX_DRAWS // count + 1, num_resamples)] * (num_resamples * count // _MAX_DRAWS + 1)
  drawn = [columns[rng.integers(count, size=(size, count))].sum(axis=1) for size in sizes]
  away, weights, away2, both, weights2 = np.concatenate(drawn)[:num_resamples].T
  shift = away / weights
  squares = away2 - 2 * shift * both + shift**2 * weights2
  errors = np.sqrt(np.maximum(squares, 0) * count / (count - 1)) / weights
  most = _MAX_QUANTILE * clusters.quantile
  scores = np.clip(shift / np.maximum(errors, 1e-12), -most, most)
  tail = special.ndtr(clusters.quantile)
  low, high = np.quantile(scores, [1 - tail, tail])
  return mean - max(high, 0.0) * error, mean - min(low, 0.0) * error


def _of_shares(clusters: Clusters) -> Interval:
  """Wilson's, of as many independent samples as would have the spread of these groups."""
  if len(clusters.sums) == 1:
    return 0.0, 1.0
  more = clusters.plus(0.0, 1.0, size=float(clusters.totals.mean()))
  independent = more.mean * (1 - more.mean) / more.variance
  return _wilson(clusters.mean, clusters.quantile, independent)


def _check(values: Float[np.ndarray, " n"]) -> None:
  if not len(values):
    raise UserError("nothing to measure: 0 samples; check the task, the split and the filters")
  if not np.isfinite(values).all():
    index = int(np.flatnonzero(~np.isfinite(values))[0])
    raise UserError(f"cannot average: value {index} of {len(values)} is {values[index]}")


def _group_ids(groups: Sequence[str]) -> Int[np.ndarray, " n"]:
  """Groups numbered in the order of their first samples."""
  names = [group or ("", index) for index, group in enumerate(groups)]
  ids = {name: number for number, name in enumerate(dict.fromkeys(names))}
  return np.array([ids[name] for name in names], np.int64)


def _clusters(
  values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], groups: Sequence[str]
) -> Clusters:
  ids = _group_ids(groups)
  sums, totals = np.bincount(ids, weights * values), np.bincount(ids, weights)
  return Clusters(sums[totals > 0], totals[totals > 0])  # a group without weight says nothing


def _wilson(mean: float, quantile: float, count: float) -> Interval:
  """Wilson's interval (1927) of a share of so many independent samples."""
  a = quantile**2 / count
  centre = (mean + a / 2) / (1 + a)
  half = (a * mean * (1 - mean) + a * a / 4) ** 0.5 / (1 + a)
  return max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean))  # as rounded
