"""What a finished (or interrupted) run left in its workdir, read for the report."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from medflax.metrics.intervals import Measurement
from medflax.utils import UserError

IMAGE, SHUFFLED, NO_IMAGE = "image", "shuffled", "no_image"
BASELINES = ("chance", "majority")
_FEWSHOT = re.compile(r"(?P<name>.+)/(?P<shots>\d+)shot/(?P<metric>[^/@]+)(@(?P<condition>\w+))?")


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One evals/<name>/<step>/: its measurements, its samples, and what it left out."""

  name: str
  step: int
  folder: pathlib.Path
  git: str
  notes: list[str]
  metrics: dict[str, Measurement]
  samples: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class FewShot:
  """One metric of one evaluation by condition and number of shots.

  `values[condition][shots]`: the condition "image" is the score, others are its controls.
  `baselines[name][shots]`: what takes no model, of `BASELINES`.
  """

  name: str
  metric: str
  step: int
  shots: list[int]
  values: dict[str, dict[int, Measurement]]
  baselines: dict[str, dict[int, Measurement]]
  notes: list[str]


@dataclasses.dataclass(frozen=True)
class Run:
  """A workdir's files; what is missing is empty.

  `scalars[name]` are (step, value) pairs by rising step; where a resumed run wrote a step
  again, the later line holds. `torn` counts the lines of metrics.jsonl that a kill cut off.
  """

  workdir: pathlib.Path
  config: dict[str, Any]
  environment: dict[str, Any]
  scalars: dict[str, list[tuple[int, float]]]
  torn: int
  evaluations: list[Evaluation]
  skipped: list[dict[str, Any]]
  noted: list[dict[str, Any]]

  @property
  def step(self) -> int:
    """The last step that anything was recorded for."""
    logged = [points[-1][0] for points in self.scalars.values()]
    return max([*logged, *(evaluation.step for evaluation in self.evaluations)], default=0)

  def last(self, name: str) -> float | None:
    """The newest value of a scalar, if it was ever logged."""
    return self.scalars[name][-1][1] if name in self.scalars else None


def read_run(workdir: pathlib.Path) -> Run:
  """Reads everything that the report shows.

  Raises:
    UserError: if `workdir` is not a run's, or one of its files is damaged.
  """
  if not (workdir / "config.json").is_file():
    raise UserError(f"{workdir} holds no config.json: not the workdir of a run")
  scalars, torn = _read_scalars(workdir / "metrics.jsonl")
  return Run(
    workdir=workdir,
    config=_read_json(workdir / "config.json"),
    environment=_read_json(workdir / "environment.json"),
    scalars=scalars,
    torn=torn,
    evaluations=_read_evaluations(workdir / "evals"),
    skipped=_read_lines(workdir / "skipped.jsonl"),
    noted=_read_lines(workdir / "noted.jsonl"),
  )


def few_shot(evaluation: Evaluation) -> list[FewShot]:
  """The evaluation's measurements that are named `<name>/<k>shot/<metric>[@<condition>]`."""
  tables: dict[tuple[str, str], dict[str, dict[int, Measurement]]] = {}
  for key, measurement in evaluation.metrics.items():
    if match := _FEWSHOT.fullmatch(key):
      table = tables.setdefault((match["name"], match["metric"]), {})
      table.setdefault(match["condition"] or IMAGE, {})[int(match["shots"])] = measurement
  return [
    FewShot(
      name=name,
      metric=metric,
      step=evaluation.step,
      shots=sorted({shots for row in table.values() for shots in row}),
      values=table,
      baselines={b: tables[name, b][IMAGE] for b in BASELINES if (name, b) in tables},
      notes=evaluation.notes,
    )
    for (name, metric), table in tables.items()
    if metric not in BASELINES
  ]


def other_metrics(evaluation: Evaluation) -> dict[str, Measurement]:
  """The measurements that are not few-shot ones."""
  return {name: m for name, m in evaluation.metrics.items() if not _FEWSHOT.fullmatch(name)}


def _read_evaluations(root: pathlib.Path) -> list[Evaluation]:
  """The newest evaluation of each name, by name."""
  folders: dict[str, pathlib.Path] = {}
  for path in sorted(root.glob("*/*/results.json"), key=lambda path: int(path.parent.name)):
    folders[path.parent.parent.name] = path.parent
  return [_read_evaluation(name, folder) for name, folder in sorted(folders.items())]


def _read_evaluation(name: str, folder: pathlib.Path) -> Evaluation:
  results = _read_json(folder / "results.json")
  try:
    metrics = {key: _measurement(m) for key, m in results["metrics"].items()}
    step, git = results["step"], results["git"]
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"{folder / 'results.json'}: not an evaluation's results ({error!r})") from None
  samples = _read_lines(folder / "samples.jsonl")
  return Evaluation(name, step, folder, git, results.get("notes", []), metrics, samples)


def _measurement(record: dict[str, Any]) -> Measurement:
  low, high = map(float, record["ci95"])
  return Measurement(float(record["value"]), float(record["stderr"]), (low, high), record["n"])


def _read_scalars(path: pathlib.Path) -> tuple[dict[str, list[tuple[int, float]]], int]:
  table: dict[str, dict[int, float]] = {}
  torn = 0
  for _, line in _lines(path):
    try:
      record = json.loads(line)
      step = record.pop("step")
    except (json.JSONDecodeError, AttributeError, KeyError):
      torn += 1
      continue
    for name, value in record.items():
      if isinstance(value, int | float) and math.isfinite(value):
        table.setdefault(name, {})[step] = float(value)
  return {name: sorted(points.items()) for name, points in table.items()}, torn


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
  except json.JSONDecodeError as error:
    raise UserError(f"{path}: not JSON ({error}); remove it or run the evaluation again") from None


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  records = []
  for number, line in _lines(path):
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError as error:
      raise UserError(f"{path}:{number}: not JSON ({error})") from None
  return records


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """The numbered lines of a file, if it exists; `splitlines` would also split at U+2028."""
  lines = path.read_text("utf-8").split("\n") if path.exists() else []
  return ((number, line) for number, line in enumerate(lines, start=1) if line)
