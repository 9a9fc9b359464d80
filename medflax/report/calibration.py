"""How far scored answers can be trusted: a reliability diagram, and a risk-coverage curve."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from medflax.metrics import likelihood
from medflax.metrics.intervals import bootstrap
from medflax.metrics.likelihood import LIKELIHOOD_METRICS, Likelihoods, from_candidates
from medflax.report import plots
from medflax.report.fewshot import plural
from medflax.report.page import section, table
from medflax.report.results import IMAGE, Evaluation

_POINTS = 100  # of a risk-coverage curve
_NUMBERS = {
  "likelihood_accuracy": "right",
  "ece": "calibration error",
  "brier": "Brier score",
  "auroc": "AUROC",
  "aurc": "mean risk",
}


class _Scored(NamedTuple):
  """The questions at one number of shots whose candidates were scored, and their groups."""

  questions: list[Likelihoods]
  groups: list[str]


def calibration_section(evaluation: Evaluation) -> str:
  """Both charts with a line for each number of shots, and their numbers; "" if none is scored."""
  scored = _scored(evaluation)
  if not scored:
    return ""
  rows = [
    [plural(shots), f"{len(of.questions):,}", *(_number(name, of) for name in _NUMBERS)]
    for shots, of in scored.items()
  ]
  return section(
    "Confidence",
    f'<div class="pair">{_diagram(scored)}{_risk(scored)}</div>'
    f"{table(('', 'n', *_NUMBERS.values()), rows)}",
    "The confidence is the probability of the likeliest candidate answer, which is right if it is "
    f"the answer. Left: how often answers of a confidence are right, in {likelihood.BINS} bins, "
    "with 95 % intervals at the most shots; on the dashed line the model is as sure as it is "
    "right, and the calibration error is the mean distance from there. Right: the share of wrong "
    "answers among the surest ones; the mean risk is the area below.",
  )


def _scored(evaluation: Evaluation) -> dict[int, _Scored]:
  """By the number of shots, of the answers to questions as they are."""
  by_shots: dict[int, _Scored] = defaultdict(lambda: _Scored([], []))
  for sample in evaluation.answers:
    if sample["condition"] == IMAGE and sample.get("candidates"):
      of = by_shots[sample["num_shots"]]
      of.questions.append(from_candidates(sample["candidates"], sample["answer"]))
      of.groups.append(sample["group"])
  return dict(sorted(by_shots.items()))


def _number(name: str, of: _Scored) -> str:
  """Without its interval, which takes long and which the evaluation measures if it is asked to."""
  metric, questions = LIKELIHOOD_METRICS[name], of.questions
  if metric.per_sample is not None:
    return f"{metric.per_sample(questions).mean():.3f}"
  assert metric.of_set is not None
  value = metric.of_set(questions)(np.arange(len(questions)))
  return f"{value:.3f}" if np.isfinite(value) else "–"


def _diagram(scored: Mapping[int, _Scored]) -> str:
  lines = [plots.Series("calibrated", (0, 1), (0, 1), plots.GREY, dash="5 4", width=1.5)]
  for (shots, of), color in zip(scored.items(), _shades(len(scored)), strict=True):
    bins = likelihood.reliability(of.questions)
    ends = _intervals(of, bins) if shots == max(scored) else []
    lines.append(
      plots.Series(
        plural(shots),
        [found.confidence for found in bins],
        [found.accuracy for found in bins],
        color,
        [low for low, _ in ends],
        [high for _, high in ends],
        marker="circle",
      )
    )
  return plots.line_chart(
    lines,
    title="Reliability diagram",
    x_label="confidence",
    y_label="share of right answers",
    y_range=(0, 1),
  )


def _intervals(of: _Scored, bins: Sequence[likelihood.Bin]) -> list[tuple[float, float]]:
  """Of the share of right answers in each bin; by rising confidence the bins follow each other."""
  right = likelihood.right(of.questions)
  order = np.argsort([question.probabilities.max() for question in of.questions])
  ends = np.cumsum([found.n for found in bins])[:-1]
  return [
    bootstrap(right[inside], [of.groups[row] for row in inside], seed=0).ci95
    for inside in np.split(order, ends)
  ]


def _risk(scored: Mapping[int, _Scored]) -> str:
  lines = []
  for (shots, of), color in zip(scored.items(), _shades(len(scored)), strict=True):
    coverage, risk = likelihood.risk_coverage(of.questions)
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
  """One colour for the only line; else from light to dark."""
  if count == 1:
    return [plots.BLUE]
  places = np.linspace(0, len(plots.SHADES) - 1, count).round().astype(int)
  return [plots.SHADES[place] for place in places]
