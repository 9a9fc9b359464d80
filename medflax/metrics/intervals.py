"""A measured number with its uncertainty: the cluster bootstrap.

Samples of one patient, case or episode family are not independent, so whole groups are
resampled, not samples (Davison & Hinkley, "Bootstrap Methods and their Application",
section 3.8; percentile interval: Efron 1979).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from medflax.utils import UserError

# Groups drawn at once; bounds memory at some 16 MiB whatever their number.
_MAX_DRAWS = 2**20


@dataclasses.dataclass(frozen=True)
class Measurement:
  """A number, its standard error, its 95 % interval (low, high) and its number of samples."""

  value: float
  stderr: float
  ci95: tuple[float, float]
  n: int

  def to_json(self) -> dict[str, Any]:
    """The form kept in results.json."""
    return {"value": self.value, "stderr": self.stderr, "ci95": list(self.ci95), "n": self.n}

  def __str__(self) -> str:
    return f"{self.value:.3f} [{self.ci95[0]:.3f}, {self.ci95[1]:.3f}] (n {self.n})"


def bootstrap(
  values: Sequence[float | int] | Shaped[np.ndarray, " n"],
  groups: Sequence[str],
  *,
  seed: int,
  weights: Sequence[float | int] | Shaped[np.ndarray, " n"] | None = None,
  num_resamples: int = 2000,
) -> Measurement:
  """The (weighted) mean of `values` with a 95 % percentile interval over resampled groups.

  With a single group nothing can be said about the spread: the interval collapses onto the
  value and the standard error is 0.

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
  weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
  if not len(values) == len(groups) == len(weights):
    raise ValueError(f"{len(values)} values, {len(groups)} groups, {len(weights)} weights")
  if not len(values):
    raise UserError("nothing to measure: 0 samples; check the task, the split and the filters")
  if not np.isfinite(values).all():
    index = int(np.flatnonzero(~np.isfinite(values))[0])
    raise UserError(f"cannot average: value {index} of {len(values)} is {values[index]}")
  if not weights.sum() > 0:
    raise UserError(f"cannot average: the weights of all {len(values)} samples are 0")

  names = [group or ("", index) for index, group in enumerate(groups)]
  ids = {name: number for number, name in enumerate(dict.fromkeys(names))}
  group_ids = np.array([ids[name] for name in names])
  sums = np.bincount(group_ids, weights * values)
  totals = np.bincount(group_ids, weights)
  value = float(sums.sum() / totals.sum())
  means = _resampled_means(sums, totals, seed, num_resamples)
  low, high = np.percentile(means, [2.5, 97.5])
  return Measurement(value, float(means.std(ddof=1)), (float(low), float(high)), len(values))


def _resampled_means(
  sums: Float[np.ndarray, " g"], totals: Float[np.ndarray, " g"], seed: int, num_resamples: int
) -> Float[np.ndarray, " r"]:
  """The mean in each resample of the groups, drawn with replacement."""
  rng = np.random.default_rng(seed)
  num_groups = len(sums)
  means = []
  while (missing := num_resamples - sum(map(len, means))) > 0:
    size = min(missing, max(1, _MAX_DRAWS // num_groups))
    drawn = rng.integers(num_groups, size=(size, num_groups))
    weight = totals[drawn].sum(axis=1)
    # A resample may hold only groups of weight 0: it says nothing and is drawn again.
    means.append(sums[drawn].sum(axis=1)[weight > 0] / weight[weight > 0])
  return np.concatenate(means)
