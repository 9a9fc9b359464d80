"""How far scored answers can be trusted: a reliability diagram, and a risk-coverage curve.

The confidence in an answer is the probability of the likeliest candidate; it is right if that
candidate is the answer.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from medflax.metrics.intervals import bootstrap
from medflax.metrics.text import exact_match
from medflax.report import plots
from medflax.report.fewshot import plural
from medflax.report.page import section, table
from medflax.report.results import IMAGE, Evaluation

_BINS = 10
_POINTS = 100  # of a risk-coverage curve


class Scored(NamedTuple):
  """The likeliest candidates of some questions: probability, whether right, group."""

  confidence: Float[np.ndarray, " n"]
  right: Bool[np.ndarray, " n"]
  groups: list[str]


class Bins(NamedTuple):
  """Questions by confidence, in bins of equal width that hold any: means and counts."""

  confidence: Float[np.ndarray, " k"]
  accuracy: Float[np.ndarray, " k"]
  counts: Float[np.ndarray, " k"]
  members: list[Bool[np.ndarray, " n"]]

  @property
  def error(self) -> float:
    """The expected calibration error (Naeini et al. 2015; Guo et al. 2017, eq. 3)."""
    gaps = np.abs(self.accuracy - self.confidence)
    return float((gaps * self.counts).sum() / self.counts.sum())


def calibration_section(evaluation: Evaluation) -> str:
  """Both charts with a line for each number of shots, and their numbers; "" if none is scored."""
  scored = _scored(evaluation)
  if not scored:
    return ""
  bins = {shots: reliability(of.confidence, of.right) for shots, of in scored.items()}
  curves = {shots: risk_coverage(of.confidence, of.right) for shots, of in scored.items()}
  rows = [
    (
      plural(shots),
      f"{len(of.right):,}",
      f"{of.right.mean():.3f}",
      f"{of.confidence.mean():.3f}",
      f"{bins[shots].error:.3f}",
      f"{curves[shots][1].mean():.3f}",
    )
    for shots, of in scored.items()
  ]
  head = ("", "n", "right", "mean confidence", "calibration error", "mean risk")
  return section(
    "Confidence",
    f'<div class="pair">{_diagram(scored, bins)}{_risk(curves)}</div>{table(head, rows)}',
    "The confidence is the probability of the likeliest candidate answer. Left: how often answers "
    f"of a confidence are right, in {_BINS} bins, with 95 % intervals; on the dashed line it is "
    "as sure as it is right, and the calibration error is the mean distance from there. Right: "
    "the share of wrong answers among the surest ones; the mean risk is the area below.",
  )


def reliability(
  confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], num_bins: int = _BINS
) -> Bins:
  """Sorts answers into bins (low, high] of their confidence; 0 goes into the first."""
  index = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
  members = [index == number for number in range(num_bins) if (index == number).any()]
  return Bins(
    np.array([confidence[chosen].mean() for chosen in members]),
    np.array([right[chosen].mean() for chosen in members]),
    np.array([float(chosen.sum()) for chosen in members]),
    members,
  )


def risk_coverage(
  confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
  """The shares answered and, of those, wrong, when only the surest 1, 2, … n are answered.

  Equally sure answers are taken together, each counting as their mean (El-Yaniv & Wiener 2010).
  """
  _, tied = np.unique(-confidence, return_inverse=True)
  wrong = np.bincount(tied, ~right) / np.bincount(tied)
  answered = np.arange(1, len(right) + 1)
  return answered / len(right), np.cumsum(wrong[np.sort(tied)]) / answered


def _scored(evaluation: Evaluation) -> dict[int, Scored]:
  """By the number of shots, of the answers to questions as they are."""
  by_shots: dict[int, list[tuple[float, bool, str]]] = defaultdict(list)
  for sample in evaluation.answers:
    if sample["condition"] == IMAGE and (candidates := sample.get("candidates")):
      best = max(candidates, key=lambda one: one["probability"])
      right = exact_match(best["text"], sample["answer"])
      by_shots[sample["num_shots"]].append((best["probability"], right, sample["group"]))
  return {
    shots: Scored(
      np.array([confidence for confidence, _, _ in rows], np.float64),
      np.array([right for _, right, _ in rows], bool),
      [group for _, _, group in rows],
    )
    for shots, rows in sorted(by_shots.items())
  }


def _diagram(scored: dict[int, Scored], bins: dict[int, Bins]) -> str:
  lines = [plots.Series("calibrated", (0, 1), (0, 1), plots.GREY, dash="5 4", width=1.5)]
  for shots, color in zip(scored, _shades(len(scored)), strict=True):
    found, of = bins[shots], scored[shots]
    ends = [
      bootstrap(of.right[chosen], [g for g, c in zip(of.groups, chosen, strict=True) if c], seed=0)
      for chosen in (found.members if shots == max(scored) else ())
    ]
    low, high = [end.ci95[0] for end in ends], [end.ci95[1] for end in ends]
    points = found.confidence.tolist(), found.accuracy.tolist()
    lines.append(plots.Series(plural(shots), *points, color, low, high, marker="circle"))
  return plots.line_chart(
    lines,
    title="Reliability diagram",
    x_label="confidence",
    y_label="share of right answers",
    y_range=(0, 1),
  )


def _risk(curves: dict[int, tuple[np.ndarray, np.ndarray]]) -> str:
  lines = []
  for (shots, (coverage, risk)), color in zip(curves.items(), _shades(len(curves)), strict=True):
    kept = np.unique(np.linspace(0, len(risk) - 1, _POINTS).round().astype(int))
    points = coverage[kept].tolist(), risk[kept].tolist()
    lines.append(plots.Series(plural(shots), *points, color))
  return plots.line_chart(
    lines,
    title="Risk by coverage",
    x_label="coverage: share of questions answered, surest first",
    y_label="risk: share of wrong answers",
    y_range=(0, 1),
  )


def _shades(count: int) -> list[str]:
  """One colour for the only line; else from light to dark, repeated if there are too many."""
  if count == 1:
    return [plots.BLUE]
  places = np.linspace(0, len(plots.SHADES) - 1, count).round().astype(int)
  return [plots.SHADES[place] for place in places]
