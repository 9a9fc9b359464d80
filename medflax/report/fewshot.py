"""The sections of few-shot results: scores, controls and baselines by the number of shots."""

from collections.abc import Iterable, Sequence

from medflax.metrics.intervals import Measurement
from medflax.report import plots
from medflax.report.page import section, text
from medflax.report.results import (
  IMAGE,
  NO_IMAGE,
  SHUFFLED,
  TEXT_ONLY,
  Evaluation,
  FewShot,
  condition_name,
  few_shot,
)

STYLES = {
  IMAGE: (plots.BLUE, "circle"),
  SHUFFLED: (plots.ORANGE, "square"),
  NO_IMAGE: (plots.GREEN, "triangle"),
  TEXT_ONLY: (plots.PURPLE, "diamond"),
}
_OTHER = (plots.SKY, "square")
_DASHES = ("5 4", "1.5 3")


def headline(evaluations: Iterable[Evaluation]) -> str:
  """The score at the most shots of the first few-shot evaluation, beside its control."""
  for evaluation in evaluations:
    for grid in few_shot(evaluation):
      shots = grid.shots[-1]
      if score := grid.values.get(IMAGE, {}).get(shots):
        control = grid.values.get(SHUFFLED, {}).get(shots)
        return _sentence(grid, shots, score, control)
  return "No few-shot evaluation has finished yet."


def few_shot_section(evaluations: Iterable[Evaluation], *, every_metric: bool) -> str:
  """A chart and a table for each evaluation that asks with several numbers of shots.

  Args:
    evaluations: whose questions of all slices together are shown.
    every_metric: or the first one alone.
  """
  pairs = []
  for evaluation in evaluations:
    grids = [grid for grid in few_shot(evaluation) if not grid.slice]
    shown = grids if every_metric else grids[:1]
    # What was left out concerns every metric; once is enough.
    pairs += [_pair(grid, () if place else evaluation.notes) for place, grid in enumerate(shown)]
  return section(
    "Few-shot results",
    "".join(pairs),
    "Each question is asked after 0 to k worked examples; intervals hold at 95 %, with groups "
    "(patients, say) as what was sampled. Controls ask it with another image (one of the "
    "examples', or without any another question's), with blank images, or with the text alone: "
    "what remains there is not seen but guessed. Chance picks among the question's choices; "
    "majority always gives the most frequent answer.",
  )


def slices_section(evaluations: Iterable[Evaluation], *, every_metric: bool) -> str:
  """The scores of parts of the questions, and beside them those of the first control."""
  parts = []
  for evaluation in evaluations:
    grids = [grid for grid in few_shot(evaluation) if grid.slice]
    metrics = list(dict.fromkeys(grid.metric for grid in grids))
    for metric in metrics if every_metric else metrics[:1]:
      parts.append(_slices([grid for grid in grids if grid.metric == metric]))
  return section("By kind of question", "".join(parts))


def columns(rows: Iterable[tuple]) -> tuple[tuple, tuple]:
  """Pairs as two tuples."""
  first, second = zip(*rows, strict=True)
  return first, second


def cell(measurement: Measurement, seeds: Measurement | None = None) -> str:
  """A table's cell: the value, its interval, and how it spreads over draws of the examples."""
  low, high = measurement.ci95
  spread = f"<small>sd {seeds.stderr:.3f}, {seeds.n} seeds</small>" if seeds else ""
  return f"<td>{measurement.value:.3f}<small>{low:.3f} – {high:.3f}</small>{spread}</td>"


def plural(shots: int) -> str:
  """`1 shot`, `2 shots`."""
  return f"{shots} shot{'s' * (shots != 1)}"


def series(
  label: str,
  row: dict[int, Measurement],
  style: tuple[str, str],
  seeds: dict[int, Measurement] | None = None,
) -> plots.Series:
  """One line of a chart by shots, with intervals and the spread over seeds."""
  shots, measurements = columns(sorted(row.items()))
  low, high = columns([measurement.ci95 for measurement in measurements])
  values = [measurement.value for measurement in measurements]
  spread = [seeds[k].stderr if k in seeds else 0.0 for k in shots] if seeds else ()
  color, marker = style
  return plots.Series(label, shots, values, color, low, high, spread, marker)


def y_range(lines: Sequence[plots.Series]) -> tuple[int, int] | None:
  """From 0 to 1 if all is within; else as the numbers need."""
  ends = [y for one in lines for y in (*one.y, *one.low, *one.high)]
  return (0, 1) if min(ends) >= 0 and max(ends) <= 1 else None


def shots_chart(
  lines: Sequence[plots.Series], *, title: str, y_label: str, shots: Sequence[int]
) -> str:
  """A chart of lines by the number of shots, later ones above earlier ones."""
  return plots.line_chart(
    lines,
    title=title,
    x_label="examples shown (shots)",
    y_label=y_label,
    y_range=y_range(lines),
    x_ticks=shots,
  )


def _sentence(grid: FewShot, shots: int, score: Measurement, control: Measurement | None) -> str:
  name, metric = grid.title.split(": ")
  if grid.baselines:
    beside = f", and {control.value:.1%} when the images are shuffled" if control else ""
    return (
      f"{name}: after {shots} example{'s' * (shots != 1)} it answers {score.value:.1%} of "
      f"{score.n:,} held-out questions right{beside}."
    )
  beside = f", and {control.value:.3f} when the images are shuffled" if control else ""
  return (
    f"{name}: {metric} {score.value:.3f} at {plural(shots)} over {score.n:,} questions{beside}."
  )


def _pair(grid: FewShot, notes: Sequence[str]) -> str:
  chart = _lines(grid) if len(grid.shots) > 1 else _bars(grid)
  return (
    f"<h3>{text(grid.title)}, step {grid.step:,}</h3>"
    f'<div class="pair results">{chart}{_table(grid, notes)}</div>'
  )


def _lines(grid: FewShot) -> str:
  """A line for every condition and baseline, by shots."""
  lines = []
  for (name, row), dash in zip(grid.baselines.items(), _DASHES, strict=False):
    shots, measurements = columns(sorted(row.items()))
    values = [measurement.value for measurement in measurements]
    lines.append(plots.Series(name, shots, values, plots.GREY, dash=dash, width=1.5))
  for condition, row in reversed(grid.values.items()):
    style, seeds = STYLES.get(condition, _OTHER), grid.seeds.get(condition)
    lines.append(series(condition_name(condition), row, style, seeds))
  return shots_chart(
    lines,
    title=f"{grid.title} by the number of shots",
    y_label=grid.metric.replace("_", " "),
    shots=grid.shots,
  )


def _bars(grid: FewShot) -> str:
  """A row for every condition and baseline, at the one number of shots."""
  [shots] = grid.shots
  named = [(condition_name(c), row, *STYLES.get(c, _OTHER)) for c, row in grid.values.items()]
  named += [(name, row, plots.GREY, "circle") for name, row in grid.baselines.items()]
  metric = grid.metric.replace("_", " ")
  return plots.forest_chart(
    [
      plots.Bar(name, row[shots].value, *row[shots].ci95, color, marker=marker)
      for name, row, color, marker in named
    ],
    title=f"{grid.title} at {plural(shots)}",
    x_label=f"{metric}, {plural(shots)}",
    reference=0.0,
  )


def _table(grid: FewShot, notes: Sequence[str]) -> str:
  head = "".join(f"<th>{plural(k)}</th>" for k in grid.shots)
  rows = ""
  for condition, row in grid.values.items():
    seeds = grid.seeds.get(condition, {})
    cells = "".join(cell(row[k], seeds.get(k)) if k in row else "<td></td>" for k in grid.shots)
    kind = "score" if condition == IMAGE else "control"
    label = text(condition_name(condition))
    rows += f'<tr class="{kind}"><th>{label}</th>{cells}</tr>'
  for name, row in grid.baselines.items():
    cells = "".join(f"<td>{row[k].value:.3f}</td>" if k in row else "<td></td>" for k in grid.shots)
    rows += f'<tr class="control"><th>{text(name)}</th>{cells}</tr>'
  counts = sorted({m.n for row in grid.values.values() for m in row.values()})
  told = [f"n = {counts[0]:,}" + (f" to {counts[-1]:,}" if counts[1:] else "")]
  told[0] += " questions in each cell."
  if grid.seeds:
    told.append("Broad bars: standard deviation over draws of the examples (seeds).")
  below = "<br>".join(text(note) for note in (*told, *notes))
  return (
    f'<div><div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
    f'<tbody>{rows}</tbody></table></div><p class="note">{below}</p></div>'
  )


def _slices(grids: Sequence[FewShot]) -> str:
  """A forest chart of the score and the first control at the most shots, and the table of all."""
  shots = sorted({k for grid in grids for k in grid.shots})
  bars = []
  for grid in grids:
    for condition, row in list(grid.values.items())[:2]:
      if measurement := row.get(shots[-1]):
        color, marker = STYLES.get(condition, _OTHER)
        control = "" if condition == IMAGE else f", {condition_name(condition)}"
        told = f"{measurement.value:.3f}   n {measurement.n:,}"
        bars.append(
          plots.Bar(grid.slice + control, measurement.value, *measurement.ci95, color, told, marker)
        )
  metric = grids[0].metric.replace("_", " ")
  chart = plots.forest_chart(
    bars, title=f"{metric} by slice", x_label=f"{metric}, {plural(shots[-1])}"
  )
  rows = "".join(
    f"<tr><th>{text(grid.slice)}</th>"
    + "".join(cell(row[k]) if k in row else "<td></td>" for k in shots)
    + "</tr>"
    for grid in grids
    for row in [grid.values.get(IMAGE, {})]
  )
  head = "".join(f"<th>{plural(k)}</th>" for k in shots)
  return (
    f'<h3>{text(grids[0].title)}</h3><div class="scroll">{chart}</div>'
    "<details><summary>All numbers of shots</summary>"
    f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody>'
    "</table></div></details>"
  )
