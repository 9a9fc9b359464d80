"""How often intervals cover the truth and paired tests reject it; prints Markdown tables.

python benchmarks/interval_coverage.py --runs 2000

An evaluation is simulated many times: `n` questions in groups of 1 to 6, whose difficulty is shared
by the questions of a group as far as `correlation` says (0: not at all, 1: all of a group are
right or wrong together). The kinds of score:

* binary: right or wrong;
* share: as token F1 has them, 60 % right or wrong and 40 % in between (a beta distribution);
* loss: log-normal, whose mean hangs on rare large values.

The truth is known, so that it can be counted how many 95 % intervals have it. `percentile` is the
common bootstrap of samples by group, for comparison. Of two systems one is as good as the other for
the tests' false positives, and 10 points better for the interval of the difference.
"""

import argparse
import json
import pathlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
from scipy import special

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from medflax.metrics.intervals import bootstrap
from medflax.metrics.pairs import mcnemar, paired

SIZES = (40, 120, 500)
CORRELATIONS = (0.0, 0.3, 0.7)
MEANS = {
  "binary": (0.05, 0.2, 0.5, 0.8, 0.95),
  "share": (0.05, 0.2, 0.5, 0.8, 0.95),
  "loss": (1.0,),
}
PAIRED_MEANS = (0.05, 0.3, 0.5, 0.85)
# Of the two systems' answers to a question.
AGREEMENTS = (0.0, 0.5, 0.9)
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


def percentile(values: np.ndarray, groups: list[str], seed: int) -> tuple[float, float]:
  """The common bootstrap."""
  ids = np.unique(groups, return_inverse=True)[1]
  sums, counts = np.bincount(ids, values), np.bincount(ids)
  drawn = np.random.default_rng(seed).integers(len(sums), size=(500, len(sums)))
  low, high = np.percentile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [2.5, 97.5])
  return float(low), float(high)


KINDS: dict[str, Callable[..., np.ndarray]] = {"binary": binary, "share": share, "loss": loss}


def designs(kind: str) -> Iterator[tuple[int, float, float]]:
  """Questions, true mean and correlation of all that is simulated of a kind of score."""
  yield from (
    (n, mean, correlation) for n in SIZES for mean in MEANS[kind] for correlation in CORRELATIONS
  )


def coverage(kind: str, runs: int, design: tuple[int, float, float]) -> dict[str, float]:
  """Shares of the intervals that cover the truth, and the mean width of ours."""
  n, mean, correlation = design
  hits, width = defaultdict(int), 0.0
  for run in range(runs):
    rng = np.random.default_rng((run, n, int(100 * mean), int(100 * correlation)))
    ids = group_ids(rng, n)
    values, groups = KINDS[kind](rng, ids, mean, correlation), list(map(str, ids))
    ours = bootstrap(values, groups, seed=run, num_resamples=1000).ci95
    ends = {"ours": ours, "percentile": percentile(values, groups, run)}
    width += (ours[1] - ours[0]) / runs
    for name, (low, high) in ends.items():
      hits[name] += low <= mean <= high
  return {name: count / runs for name, count in hits.items()} | {"width": width}


def tests(runs: int, n: int, mean: float, agreement: float, correlation: float) -> dict[str, float]:
  """False positives and power at 5 %, and how many intervals have the true difference."""
  found = defaultdict(float)
  for run in range(runs):
    for better in (0.0, BETTER):
      rng = np.random.default_rng((run, n, int(100 * mean), int(100 * agreement), 10))
      ids = group_ids(rng, n)
      a, b = two_systems(rng, ids, (mean, mean + better), agreement, correlation)
      measured = paired(a, b, list(map(str, ids)), seed=run, num_resamples=1000)
      rejected, kind = measured.p <= 0.05, "power" if better else "false positives"
      found[kind] += rejected / runs
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
  results = {"coverage": [], "tests": []}
  print("| scores | questions | ours, mean | lowest to highest | percentile, mean | lowest |")
  print("|---|---|---|---|---|---|")
  for kind in KINDS:
    every = [(design, coverage(kind, flags.runs, design)) for design in designs(kind)]
    results["coverage"] += [(kind, *design, numbers) for design, numbers in every]
    for n in SIZES:
      ours, common = (
        [numbers[name] for design, numbers in every if design[0] == n]
        for name in ("ours", "percentile")
      )
      print(
        f"| {kind} | {n} | {np.mean(ours):.1%} | {min(ours):.1%} to {max(ours):.1%} | "
        f"{np.mean(common):.1%} | {min(common):.1%} |",
        flush=True,
      )
  print()
  names = ("false positives", "power", "McNemar's false positives", "McNemar's power", "coverage")
  print(f"| questions | correlation | {' | '.join(names)} |\n|---|---{'|---' * len(names)}|")
  for n in SIZES:
    for correlation in CORRELATIONS:
      every = [
        tests(flags.runs, n, mean, agreement, correlation)
        for mean in PAIRED_MEANS
        for agreement in AGREEMENTS
      ]
      results["tests"] += [(n, correlation, numbers) for numbers in every]
      cells = [f"{np.mean([x[m] for x in every]):.1%}" for m in names]
      for place in (0, 2):
        cells[place] += f", at most {max(x[names[place]] for x in every):.1%}"
      print(f"| {n} | {correlation} | {' | '.join(cells)} |", flush=True)
  print(json.dumps(results))


if __name__ == "__main__":
  main()
