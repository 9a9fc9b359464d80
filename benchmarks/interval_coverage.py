"""How often intervals cover the truth and paired tests reject it; prints Markdown tables.

python benchmarks/interval_coverage.py --runs 2000 --seed 1

Evaluations are simulated whose truth is known. The design is fixed: every cell of these is
simulated `--runs` times, whatever comes out.

* 40, 120 and 500 questions.
* Groups: each question alone; or 1 to 6 in a group, with a correlation of 0.3 or 0.7 within it.
* Right or wrong (`binary`), and shares as token F1 has them (`share`: 60 % right or wrong, 40 % in
  between, by a beta distribution), of the means 0.05, 0.1, 0.3 and 0.5; what is above 0.5 is their
  mirror image. `loss`: log-normal, whose mean hangs on rare large values, weighted as perplexity.
* Numbers of the whole set: macro F1 of four classes (50, 25, 15 and 10 %) at an accuracy of 0.7;
  a share of words, as BLEU has them, of 0.3, answers having 6 words on average; AUROC of 0.8 where
  30 % are positive.
* Two systems that are right on 10 or 50 %, and find the same questions hard (correlation 0.5):
  equally good ones give the tests' false positives, one that is 10 points better their power.
"""

import argparse
import itertools
import json
import pathlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import special

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from medflax.metrics.intervals import Measurement, Statistic, bootstrap, jackknife
from medflax.metrics.labels import macro_f1
from medflax.metrics.likelihood import Likelihoods, auroc
from medflax.metrics.pairs import paired

SIZES = (40, 120, 500)
MEANS = (0.05, 0.1, 0.3, 0.5)
CLASSES = (0.5, 0.25, 0.15, 0.1)
ACCURACY, WORDS, AUROC = 0.7, 0.3, 0.8
PAIRED_MEANS = (0.1, 0.5)
AGREEMENT = 0.5
BETTER = 0.1


class Groups(NamedTuple):
  """At most so many questions in a group, and how alike they are."""

  largest: int
  correlation: float

  def __str__(self) -> str:
    return f"1 to {self.largest}, {self.correlation}" if self.largest > 1 else "alone"

  def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
    """The group of each of `n` samples."""
    sizes = rng.integers(1, self.largest + 1, size=n)
    return np.repeat(np.arange(n), sizes)[:n]


GROUPS = (Groups(1, 0.0), Groups(6, 0.3), Groups(6, 0.7))
Draw = Callable[[np.random.Generator, np.ndarray, float, float], np.ndarray]


def rates(rng: np.random.Generator, ids: np.ndarray, mean: float, correlation: float):
  """Of being right, a group's own (beta-binomial)."""
  spread = (1 - correlation) / max(correlation, 1e-9)
  own = rng.beta(mean * spread, (1 - mean) * spread, size=len(ids)) if correlation else mean
  return np.broadcast_to(own, len(ids))[ids]


def binary(rng: np.random.Generator, ids: np.ndarray, mean: float, correlation: float):
  """Right or wrong."""
  return (rng.random(len(ids)) < rates(rng, ids, mean, correlation)).astype(np.float64)


def share(rng: np.random.Generator, ids: np.ndarray, mean: float, correlation: float):
  """Right, wrong, or in between."""
  between = rng.beta(3 * mean, 3 * (1 - mean), size=len(ids))
  whole = binary(rng, ids, mean, correlation)
  return np.where(rng.random(len(ids)) < 0.4, between, whole)


def loss(rng: np.random.Generator, ids: np.ndarray, mean: float, correlation: float):
  """Log-normal with a standard deviation of 1 of the logarithm."""
  return mean * np.exp(_normal(rng, ids, correlation) - 0.5)


def f1_of_classes(rng: np.random.Generator, ids: np.ndarray, correlation: float) -> Statistic:
  """Macro F1; a group's questions have one answer as often as they are alike."""
  kinds = len(CLASSES)
  own, shared = rng.choice(kinds, size=(2, len(ids)), p=CLASSES)
  answers = np.where(rng.random(len(ids)) < correlation, shared[ids], own)
  right = rng.random(len(ids)) < rates(rng, ids, ACCURACY, correlation)
  other = (answers + rng.integers(1, kinds, size=len(ids))) % kinds
  said = np.where(right, answers, other)
  return macro_f1([f"c{c}" for c in said], [[f"c{c}"] for c in answers])


def true_f1() -> float:
  """Of infinitely many questions."""
  shares = np.array(CLASSES)
  named = shares * ACCURACY + (1 - shares) * (1 - ACCURACY) / (len(CLASSES) - 1)
  return float((2 * shares * ACCURACY / (named + shares)).mean())


def share_of_words(rng: np.random.Generator, ids: np.ndarray, correlation: float) -> Statistic:
  """Words that match over all words; answers differ in both."""
  lengths = rng.geometric(1 / 6, size=len(ids))
  rate = rates(rng, ids, WORDS, correlation)
  own = rng.beta(np.maximum(2 * rate, 1e-6), np.maximum(2 * (1 - rate), 1e-6))
  hits = rng.binomial(lengths, own)
  return lambda rows: float(hits[rows].sum() / lengths[rows].sum())


def area(rng: np.random.Generator, ids: np.ndarray, correlation: float) -> Statistic:
  """AUROC of normal scores."""
  positive = rng.random(len(ids)) < 0.3
  scores = _normal(rng, ids, correlation) + 2**0.5 * special.ndtri(AUROC) * positive
  told = special.expit(scores)
  return auroc(
    [
      Likelihoods(("yes", "no"), np.array([p, 1 - p]), 0 if is_positive else 1)
      for p, is_positive in zip(told, positive, strict=True)
    ]
  )


MEAN_KINDS: dict[str, Draw] = {"binary": binary, "share": share, "loss": loss}
SET_KINDS: dict[str, tuple[Callable[..., Statistic], float]] = {
  "macro F1": (f1_of_classes, true_f1()),
  "share of words": (share_of_words, WORDS),
  "AUROC": (area, AUROC),
}


def of_mean(kind: str, n: int, mean: float, groups: Groups, rng: np.random.Generator, seed: int):
  """One evaluation's interval of a mean."""
  ids = groups.draw(rng, n)
  values = MEAN_KINDS[kind](rng, ids, mean, groups.correlation)
  weights = np.ones(n) if kind == "loss" else None
  return bootstrap(values, list(map(str, ids)), seed=seed, weights=weights, num_resamples=1000)


def of_set(kind: str, n: int, groups: Groups, rng: np.random.Generator, seed: int) -> Measurement:
  """One evaluation's interval of a number of the whole set; AUROCs need both classes."""
  ids = groups.draw(rng, n)
  statistic = SET_KINDS[kind][0](rng, ids, groups.correlation)
  while not np.isfinite(statistic(np.arange(n))):
    statistic = SET_KINDS[kind][0](rng, ids, groups.correlation)
  return jackknife(statistic, list(map(str, ids)), seed=seed)


def coverage(
  measure: Callable[[np.random.Generator, int], Measurement], truth: float, runs: int, seed: int
) -> dict[str, float]:
  """The share of intervals that have the truth, and their mean width."""
  found: dict[str, float] = defaultdict(float)
  for run in range(runs):
    low, high = measure(np.random.default_rng((seed, run)), run).ci95
    found["covered"] += (low <= truth <= high) / runs
    found["width"] += (high - low) / runs
  return dict(found)


def tests(n: int, mean: float, groups: Groups, runs: int, seed: int) -> dict[str, float]:
  """False positives and power at 5 %, and how many intervals have the true difference."""
  found: dict[str, float] = defaultdict(float)
  for run, better in itertools.product(range(runs), (0.0, BETTER)):
    rng = np.random.default_rng((seed, run))
    ids = groups.draw(rng, n)
    a, b = two_systems(rng, ids, (mean, mean + better), groups.correlation)
    measured = paired(a, b, list(map(str, ids)), seed=run, num_resamples=500)
    found["power" if better else "false positives"] += (measured.p <= 0.05) / runs
    found["covered"] += (measured.ci95[0] <= better <= measured.ci95[1]) / (2 * runs)
  return dict(found)


def two_systems(
  rng: np.random.Generator, ids: np.ndarray, means: tuple[float, float], correlation: float
) -> tuple[np.ndarray, np.ndarray]:
  """Binary scores of two systems that find the same questions hard, and the same groups."""
  hard = _normal(rng, ids, correlation)
  scores = []
  for mean in means:
    level = AGREEMENT**0.5 * hard + (1 - AGREEMENT) ** 0.5 * _normal(rng, ids, correlation)
    scores.append((level < special.ndtri(mean)).astype(np.float64))
  return scores[0], scores[1]


def _normal(rng: np.random.Generator, ids: np.ndarray, correlation: float) -> np.ndarray:
  """Standard normal, with that correlation within a group."""
  shared, own = rng.standard_normal((2, len(ids)))
  return np.sqrt(correlation) * shared[ids] + np.sqrt(1 - correlation) * own


Rows = Iterator[tuple[str, int, Groups, dict[str, float]]]
PLACES = list(itertools.product(SIZES, GROUPS))


def sets(runs: int, seed: int) -> Rows:
  """Numbers of the whole set: kind, questions, groups, and what was found."""
  for kind, (n, groups) in itertools.product(SET_KINDS, PLACES):
    measure = lambda rng, run, k=kind, n=n, g=groups: of_set(k, n, g, rng, run)
    yield kind, n, groups, coverage(measure, SET_KINDS[kind][1], runs, seed)


def means(runs: int, seed: int) -> Rows:
  """Means of questions' scores."""
  for kind, (n, groups) in itertools.product(MEAN_KINDS, PLACES):
    for mean in MEANS if kind != "loss" else (1.0,):
      measure = lambda rng, run, k=kind, n=n, m=mean, g=groups: of_mean(k, n, m, g, rng, run)
      yield f"{kind}, {mean}", n, groups, coverage(measure, mean, runs, seed)


def pairs(runs: int, seed: int) -> Rows:
  """Two systems."""
  for mean, (n, groups) in itertools.product(PAIRED_MEANS, PLACES):
    yield f"binary, {mean}", n, groups, tests(n, mean, groups, runs, seed)


PARTS: dict[str, Callable[[int, int], Rows]] = {"sets": sets, "means": means, "pairs": pairs}


def main() -> None:
  """Prints a row for every cell, then all numbers as a line of JSON."""
  parser = argparse.ArgumentParser(description="How often intervals cover the truth.")
  parser.add_argument("--runs", type=int, default=2000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
  flags = parser.parse_args()
  print("| scores | questions | groups | |\n|---|---|---|---|")
  results = []
  for part in flags.part or PARTS:
    for kind, n, groups, found in PARTS[part](flags.runs, flags.seed):
      told = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
      print(f"| {kind} | {n} | {groups} | {told} |", flush=True)
      results.append((part, kind, n, str(groups), found))
  print(json.dumps(results))


if __name__ == "__main__":
  main()
