"""What a run tells at its end: `report.html`, one self-contained file, and a terminal table.

Both are made from the workdir's files alone, so they can be made again at any time, for a
run that was interrupted, or on another machine.
"""

import pathlib
from collections import Counter
from typing import Any

from medflax.report import sections
from medflax.report.evaluation import write_page
from medflax.report.fewshot import few_shot_section, headline, slices_section
from medflax.report.gallery import answer_cards, gallery, script
from medflax.report.page import page
from medflax.report.results import IMAGE, Evaluation, FewShot, condition_name, few_shot
from medflax.report.run import Run, read_run
from medflax.utils import write_atomic

_WIDTH, _LABEL, _CELL = 100, 28, 13  # characters of the terminal table


def write_report(workdir: pathlib.Path) -> pathlib.Path:
  """Writes `workdir`/report.html, and a page beside each evaluation's files; returns the first.

  Needs config.json; whatever else is missing (no evaluation yet, no samples) is left out.

  Raises:
    UserError: if `workdir` is not a run's, or one of its files is damaged.
  """
  workdir = pathlib.Path(workdir)
  run = read_run(workdir)
  pages = [write_page(one, one.folder) for one in run.evaluations if one.answers]
  cards = [card for one in run.evaluations for card in answer_cards(one, _pictured(one))]
  parts = (
    few_shot_section(run.evaluations, every_metric=False),
    slices_section(run.evaluations, every_metric=False),
    sections.pages_section([path.relative_to(workdir) for path in pages]),
    sections.training_section(run),
    sections.metrics_section(run.evaluations),
    gallery(
      "Samples",
      cards,
      "The questions whose pictures were kept, as they come and not picked for looks. The examples "
      "that the model was shown stand before each question.",
    ),
    sections.data_section(run),
    sections.lists_section(run),
    sections.provenance_section(
      run.environment,
      notes=[f"Unreadable lines of metrics.jsonl, left out: {run.torn}."] if run.torn else [],
      config=run.config,
    ),
  )
  path = workdir / "report.html"
  content = page(
    sections.title(run) or workdir.name,
    kind="medflax run",
    lead=headline(run.evaluations),
    facts=sections.facts(run),
    parts=parts,
    script=script() if cards else "",
  )
  write_atomic(path, content)
  return path


def fewshot_table(workdir: pathlib.Path) -> str:
  """The few-shot results of all questions together, in at most 100 columns; "" without any.

  A line is an evaluator's score, one of its controls, or a baseline; a column is a number of
  shots; a cell is the value and half the width of its 95 % interval.
  """
  run = read_run(pathlib.Path(workdir))
  return "\n\n".join(_grid_text(grid) for grid in _grids(run))


def _pictured(evaluation: Evaluation) -> list[dict[str, Any]]:
  """The answers whose pictures were kept, in turn from each number of shots, most shots first."""
  turns: Counter[int] = Counter()
  kept = []
  for sample in evaluation.answers:
    if sample["condition"] == IMAGE and sample["media"]:
      shots = sample["num_shots"]
      kept.append((turns[shots], -shots, sample))
      turns[shots] += 1
  return [sample for _, _, sample in sorted(kept, key=lambda turn: turn[:2])]


def _grids(run: Run) -> list[FewShot]:
  grids = [grid for evaluation in run.evaluations for grid in few_shot(evaluation)]
  return [grid for grid in grids if not grid.slice]


def _grid_text(grid: FewShot) -> str:
  """A grid with more shot counts than fit a line goes on below."""
  per_block = (_WIDTH - _LABEL) // _CELL
  starts = range(0, len(grid.shots), per_block)
  return "\n\n".join(_block_text(grid, grid.shots[i : i + per_block]) for i in starts)


def _block_text(grid: FewShot, shots: list[int]) -> str:
  heading = f"{grid.name} ({grid.metric.replace('_', ' ')})"
  rows = [(heading, [f"{k} shot" + "s" * (k != 1) for k in shots])]
  for condition, values in grid.values.items():
    label = condition_name(condition)
    rows.append((f"  {label}", [_cell(values, k) for k in shots]))
  for name, values in grid.baselines.items():
    cells = [f"{values[k].value:.3f}" + " " * 6 if k in values else "" for k in shots]
    rows.append((f"  {name}", cells))
  lines = [
    f"{label[: _LABEL - 1]:<{_LABEL}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)
    for label, cells in rows
  ]
  return "\n".join(line.rstrip() for line in lines)


def _cell(values: dict, shots: int) -> str:
  if shots not in values:
    return ""
  low, high = values[shots].ci95
  return f"{values[shots].value:.3f} ±{(high - low) / 2:.3f}".replace("±0.", "±.")
