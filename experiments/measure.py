"""What the finished runs of a study have measured, and how surely it differs from the baseline.

Two things are uncertain. The questions are a sample: intervals and p-values over them are those of
`medflax.tools.compare`, with the seeds' answers to a question averaged, and hold for these very
runs. And training again gives another model: intervals over seeds are Student's of the mean, wide
for few seeds, and the only ones that tell of the method. For a single seed there is none.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.study import FINISHED, Run, Study
from medflax import selection
from medflax import workdir as workdir_lib
from medflax.metrics.intervals import Measurement, across_seeds
from medflax.metrics.pairs import holm
from medflax.report.results import IMAGE, read_evaluation, read_json, read_lines
from medflax.tools.compare import compare
from medflax.utils import UserError, pick

_SHOTS = re.compile(r"(?P<evaluation>[^/]+)/(?P<shots>\d+)shot/(?P<metric>[^/@#]+)")


@dataclasses.dataclass(frozen=True)
class Row:
  """One metric of one tag.

  Attributes:
    score: the mean over the seeds, with the interval over the questions.
    seeds: the same mean, the standard deviation over seeds as `stderr`, and Student's interval;
      None with a single one.
    difference: to the baseline, with its interval over the questions; None of the baseline, and
      where the metric is no mean over answers.
    p: that of swapping the two runs' answers; `p_holm` holds with all rows looked at.
    difference_seeds: the same difference, with Student's interval over the seeds that both have.
    trained: trained weights of a run.
    seconds: training time of a run, the mean over seeds.
  """

  tag: str
  metric: str
  score: Measurement
  seeds: Measurement | None
  difference: Measurement | None = None
  p: float | None = None
  p_holm: float | None = None
  difference_seeds: Measurement | None = None
  trained: int = 0
  seconds: float = 0.0

  @property
  def group(self) -> str:
    """The evaluation and the score, whatever the number of shots."""
    match = _SHOTS.fullmatch(self.metric)
    return f"{match['evaluation']}/{match['metric']}" if match else self.metric

  @property
  def shots(self) -> int | None:
    """How many examples were shown; None where that is not told."""
    match = _SHOTS.fullmatch(self.metric)
    return int(match["shots"]) if match else None


@dataclasses.dataclass(frozen=True)
class Results:
  """The rows of a study, metric by metric, and `missing`: the state of runs that are not in."""

  study: Study
  rows: tuple[Row, ...]
  missing: dict[str, str]


def measure(study: Study) -> Results:
  """Reads the finished runs.

  Raises:
    UserError: if no run is finished, or one has no such metric.
  """
  states = {run.name: run.state() for run in study.runs}
  missing = {name: state for name, state in states.items() if state != FINISHED}
  finished: dict[str, dict[int, Run]] = {}
  for tag in study.tags:
    runs = {r.seed: r for r in study.runs if r.tag == tag and r.name not in missing}
    finished |= {tag: runs} if runs else {}
  if not finished:
    raise UserError(f"{study.name}: none of {len(states)} runs in {study.folder} is finished")
  values = {tag: {s: _metrics(r) for s, r in runs.items()} for tag, runs in finished.items()}
  paired = _paired(study, finished)
  rows = []
  for metric in study.metrics:
    for tag, runs in finished.items():
      measured = {s: pick(values[tag][s], metric, f"metric of {runs[s].workdir}") for s in runs}
      before = {s: m[metric] for s, m in values.get(study.baseline, {}).items() if metric in m}
      tested = paired.get((tag, metric), {})
      rows.append(
        _row(tag, metric, measured, {} if tag == study.baseline else before, tested, runs)
      )
  return Results(study, tuple(_with_holm(rows)), missing)


def _row(
  tag: str,
  metric: str,
  measured: Mapping[int, Measurement],
  before: Mapping[int, Measurement],
  tested: Mapping[str, Any],
  runs: Mapping[int, Run],
) -> Row:
  seeds = _over_seeds([m.value for m in measured.values()])
  single = next(iter(measured.values()))
  differences = [measured[s].value - before[s].value for s in measured if s in before]
  difference = tested.get("difference")
  return Row(
    tag,
    metric,
    score=tested.get("score") or seeds or single,
    seeds=seeds,
    difference=difference and _measurement(difference),
    p=difference and difference["p"],
    difference_seeds=_over_seeds(differences),
    trained=max(_facts(run).get("trainable_parameters", 0) for run in runs.values()),
    seconds=sum(map(_seconds, runs.values())) / len(runs),
  )


def _metrics(run: Run) -> dict[str, Measurement]:
  """Of all its evaluations, as they judged the run."""
  found: dict[str, Measurement] = {}
  for name in run.config.evals:
    found |= read_evaluation(_judged(run, name)).metrics
  return found


def _judged(run: Run, name: str) -> pathlib.Path:
  """The folder of an evaluation: of the best step where a finished run chooses one, else the last.

  Evaluations of other steps, also of later ones, told how training went.
  """
  step, best = run.config.train.num_steps, run.config.best
  if best.metric:
    step = selection.best_step(selection.read_values(run.workdir, best.metric), best.mode)
  return workdir_lib.results_path(run.workdir, name, step).parent


def _paired(
  study: Study, finished: Mapping[str, Mapping[int, Run]]
) -> dict[tuple[str, str], dict[str, Any]]:
  """By tag and metric, the `score` over all questions and the `difference` to the baseline's."""
  if study.baseline not in finished or len(finished) < 2:
    return {}
  wanted: dict[str, dict[str, None]] = {}  # metrics of each evaluation, in order
  for match in filter(None, map(_SHOTS.fullmatch, study.metrics)):
    wanted.setdefault(match["evaluation"], {})[match["metric"]] = None
  order, found = sorted(finished, key=lambda tag: tag != study.baseline), {}
  for name, metrics in wanted.items():
    systems = {tag: [_judged(run, name) for run in finished[tag].values()] for tag in order}
    for row in compare(systems, metrics=list(metrics))["rows"]:
      metric = f"{name}/{row['num_shots']}shot/{row['metric']}"
      for tag, value, difference in zip(order, row["values"], row["differences"], strict=True):
        if metric in study.metrics and row["condition"] == IMAGE:
          found[tag, metric] = {"score": _measurement(value), "difference": difference}
  return found


def _with_holm(rows: Sequence[Row]) -> list[Row]:
  """Holm's correction for the rows that are told, whatever else could be compared."""
  tested = [row for row in rows if row.p is not None]
  corrected = dict(zip(map(id, tested), holm([row.p for row in tested]), strict=True))
  return [dataclasses.replace(row, p_holm=corrected.get(id(row))) for row in rows]


def _over_seeds(values: Sequence[float]) -> Measurement | None:
  if len(values) < 2:
    return None
  return across_seeds([{"": Measurement(v, 0.0, (v, v), 1)} for v in values])[""]


def _measurement(found: Mapping[str, Any]) -> Measurement:
  low, high = found["ci95"]
  return Measurement(found["value"], found["stderr"], (low, high), found["n"])


def _facts(run: Run) -> dict[str, Any]:
  return read_json(run.workdir / workdir_lib.ENVIRONMENT)


def _seconds(run: Run) -> float:
  lines = read_lines(run.workdir / "metrics.jsonl")
  return next((x["train/seconds"] for x in reversed(lines) if "train/seconds" in x), 0.0)
