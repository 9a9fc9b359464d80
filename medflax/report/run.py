"""What a finished (or interrupted) run left in its workdir, read for the report."""

import dataclasses
import json
import math
import pathlib
from typing import Any

from medflax.report.results import Evaluation, lines, read_evaluation, read_json, read_lines
from medflax.utils import UserError


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
    config=read_json(workdir / "config.json"),
    environment=read_json(workdir / "environment.json"),
    scalars=scalars,
    torn=torn,
    evaluations=_read_evaluations(workdir / "evals"),
    skipped=read_lines(workdir / "skipped.jsonl"),
    noted=read_lines(workdir / "noted.jsonl"),
  )


def _read_evaluations(root: pathlib.Path) -> list[Evaluation]:
  """The newest evaluation of each name, by name."""
  folders: dict[str, pathlib.Path] = {}
  for path in sorted(root.glob("*/*/results.json"), key=lambda path: int(path.parent.name)):
    folders[path.parent.parent.name] = path.parent
  return [read_evaluation(folder) for _, folder in sorted(folders.items())]


def _read_scalars(path: pathlib.Path) -> tuple[dict[str, list[tuple[int, float]]], int]:
  table: dict[str, dict[int, float]] = {}
  torn = 0
  for _, line in lines(path):
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
