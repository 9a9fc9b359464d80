"""How often intervals cover the truth and paired tests reject it; prints Markdown tables.

python benchmarks/interval_coverage.py --runs 2000

Evaluations are simulated whose truth is known: questions in groups of 1 to 6, whose difficulty is
shared by a group as far as `correlation` says (0: not at all, 1: all of a group are right or wrong
together). Each run draws the true mean, from 0.05 to 0.95, and the correlation, from 0 to 0.7; rows
of extreme means have 0.05 or 0.95 alone. The kinds of score:

* binary: right or wrong;
* share: as token F1 has them, 60 % right or wrong and 40 % in between (a beta distribution);
* loss: log-normal, whose mean hangs on rare large values, weighted as perplexity is.

`percentile` is the common bootstrap by group, for comparison. Two systems find the same questions
hard as far as they agree, from 0 to 0.9: equally good ones give the tests' false positives, one
that is 10 points better their power.
"""

import argparse
import itertools
import json
import pathlib
import sys
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from scipy import special

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from medflax.metrics.intervals import bootstrap
from medflax.metrics.pairs import mcnemar, paired

SIZES = (40, 120, 500)
MEANS = (0.05, 0.95)
MOST_CORRELATED = 0.7
MOST_AGREED = 0.9
BETTER = 0.1


def group_ids(rng: np.random.Generator, n: int) -> np.ndarray:
  """The group of each of `n` samples, 1 to 6 in each."""
  sizes = rng.integers(1, 7, size=n)
  return np.repeat(np.arange(n), sizes)[:n]


def binary(rng: np.random.Generator, ids: np.ndarray, mean: float, correlation: float):
  """Right or wrong, at a rate of each group's own (beta-binomial)."""
  spread = (1 - correlation) / max(correlation, 1e-9)
  rates = rng.beta(mean * spread, (1 - mean) * spread, size=len(ids)) if correlation else mean
  rates = np.broadcast_to(rates, len(ids))
  return (rng.random(len(ids)) < rates[ids]).astype(np.float64)


def share(rng: np.random.Generator, ids: np.ndarray, mean: float, correlation: float):
  """Right, wrong, or in between."""
  between = rng.beta(3 * mean, 3 * (1 - mean), size=len(ids))
  whole = binary(rng, ids, mean, correlation)
  return np.where(rng.random(len(ids)) < 0.4, between, whole)


def loss(rng: np.random.Generator, ids: np.ndarray, mean: float, correlation: float):
  """Log-normal with a standard deviation of 1 of the logarithm."""
  logs = _normal(rng, ids, correlation)
  return mean * np.exp(logs - 0.5)


def two_systems(
  rng: np.random.Generator,
  ids: np.ndarray,
  means: tuple[float, float],
  agreement: float,
  correlation: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Binary scores of two systems that find the same questions hard, and the same groups."""
  hard = _normal(rng, ids, correlation)
  scores = []
  for mean in means:
    own = _normal(rng, ids, correlation)
    level = np.sqrt(agreement) * hard + np.sqrt(1 - agreement) * own
    scores.append((level < special.ndtri(mean)).astype(np.float64))
  return scores[0], scores[1]


def percentile(values: np.ndarray, ids: np.ndarray, seed: int) -> tuple[float, float]:
  """The common bootstrap."""
  sums, counts = np.bincount(ids, values), np.bincount(ids)
  drawn = np.random.default_rng(seed).integers(len(sums), size=(500, len(sums)))
  low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [2.5, 97.5])
  return float(low), float(high)


KINDS: dict[str, Callable[..., np.ndarray]] = {"binary": binary, "share": share, "loss": loss}


def coverage(kind: str, n: int, runs: int, extreme: bool) -> dict[str, float]:
  """Shares of the intervals that have the true mean, and the mean width of ours."""
  found: dict[str, float] = defaultdict(float)
  for run in range(runs):
    rng = np.random.default_rng((run, n, extreme))
    mean = float(rng.choice(MEANS) if extreme else rng.uniform(*MEANS))
    ids = group_ids(rng, n)
    values = KINDS[kind](rng, ids, mean, rng.uniform(0, MOST_CORRELATED))
    groups = list(map(str, ids))
    weights = np.ones(n) if kind == "loss" else None
    ours = bootstrap(values, groups, seed=run, weights=weights, num_resamples=1000).ci95
    common = percentile(values, ids, run)
    found["ours"] += (ours[0] <= mean <= ours[1]) / runs
    found["percentile"] += (common[0] <= mean <= common[1]) / runs
    found["width"] += (ours[1] - ours[0]) / runs
  return dict(found)


def tests(n: int, runs: int) -> dict[str, float]:
  """False positives and power at 5 %, and how many intervals have the true difference."""
  found: dict[str, float] = defaultdict(float)
  for run in range(runs):
    for better in (0.0, BETTER):
      rng = np.random.default_rng((run, n, 2))
      mean = rng.uniform(MEANS[0], MEANS[1] - BETTER)
      agreement, correlation = rng.uniform(0, MOST_AGREED), rng.uniform(0, MOST_CORRELATED)
      ids = group_ids(rng, n)
      a, b = two_systems(rng, ids, (mean, mean + better), agreement, correlation)
      measured = paired(a, b, list(map(str, ids)), seed=run, num_resamples=1000)
      kind = "power" if better else "false positives"
      found[kind] += (measured.p <= 0.05) / runs
      found[f"McNemar's {kind}"] += (mcnemar(a, b).p <= 0.05) / runs
      found["coverage"] += (measured.ci95[0] <= better <= measured.ci95[1]) / (2 * runs)
  return dict(found)


def _normal(rng: np.random.Generator, ids: np.ndarray, correlation: float) -> np.ndarray:
  """Standard normal, with that correlation within a group."""
  shared, own = rng.standard_normal((2, len(ids)))
  return np.sqrt(correlation) * shared[ids] + np.sqrt(1 - correlation) * own


def main() -> None:
  """Prints the tables, then all numbers as a line of JSON."""
  parser = argparse.ArgumentParser(description="How often intervals cover the truth.")
  parser.add_argument("--runs", type=int, default=2000)
  flags = parser.parse_args()
  results = {}
  print("| scores | questions | means | ours cover | percentile covers | width of ours |")
  print("|---|---|---|---|---|---|")
  for kind, extreme, n in itertools.product(KINDS, (False, True), SIZES):
    if kind == "loss" and extreme:
      continue  # its spread goes with its mean
    told = " or ".join(map(str, MEANS)) if extreme else " to ".join(map(str, MEANS))
    x = results[f"{kind}, {n}, {told}"] = coverage(kind, n, flags.runs, extreme)
    cells = f"{x['ours']:.1%} | {x['percentile']:.1%} | {x['width']:.3f}"
    print(f"| {kind} | {n} | {told} | {cells} |", flush=True)
  names = ("false positives", "power", "McNemar's false positives", "McNemar's power", "coverage")
  print(f"\n| questions | {' | '.join(names)} |\n|---{'|---' * len(names)}|")
  for n in SIZES:
    x = results[f"tests, {n}"] = tests(n, flags.runs)
    print(f"| {n} | {' | '.join(f'{x[name]:.1%}' for name in names)} |", flush=True)
  print(json.dumps(results))


if __name__ == "__main__":
  main()
