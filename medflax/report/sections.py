"""The sections of report.html, each a function of the run; "" where there is nothing to show.

Everything that comes from a file passes through `page.text`, so that a question with markup in
it is shown, not run.
"""

import base64
import json
import pathlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medflax.metrics.intervals import Measurement
from medflax.report import plots
from medflax.report.page import section, text
from medflax.report.run import (
  IMAGE,
  NO_IMAGE,
  SHUFFLED,
  Evaluation,
  FewShot,
  Run,
  few_shot,
  other_metrics,
)

CONDITIONS = {IMAGE: "images shown", SHUFFLED: "images shuffled", NO_IMAGE: "no image"}
_STYLES = {
  IMAGE: (plots.BLUE, "circle"),
  SHUFFLED: (plots.ORANGE, "square"),
  NO_IMAGE: (plots.GREEN, "triangle"),
}
_SAMPLES_OF_A_VERDICT = 6  # per evaluator: at most so many right ones, and so many wrong ones
_SMOOTHING = 40  # the smoothed loss is a moving average over 1/40 of the run


def title(run: Run) -> str:
  """The run's name: the config's and its variant's."""
  return " · ".join(str(run.config[key]) for key in ("name", "variant") if run.config.get(key))


def header(run: Run) -> str:
  """The name, the main result in a sentence, and the run's vital numbers."""
  facts = "".join(
    f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(detail)}</small></dd></div>"
    for name, value, detail in _facts(run)
  )
  return (
    '<header class="masthead"><div><div class="kind">medflax run</div>'
    f"<h1>{text(title(run) or run.workdir.name)}</h1>"
    f'<p>{text(_headline(run))}</p><dl class="facts">{facts}</dl></div></header>'
  )


def few_shot_section(run: Run) -> str:
  """A chart and a table for each evaluator that asks with several numbers of shots."""
  grids = [grid for evaluation in run.evaluations for grid in few_shot(evaluation)]
  if not grids:
    return ""
  return section(
    "Few-shot results",
    '<p class="note">Each question is asked after 0 to k worked examples; intervals are 95 % '
    "bootstrap intervals. Two controls ask it with the image of one of the examples (without "
    "any, of another question), and with no image at all: what remains there is not seen but "
    "guessed. Chance picks among the question's "
    "choices; majority always gives the most frequent answer.</p>"
    + "".join(_few_shot_pair(grid) for grid in grids),
  )


def training_section(run: Run) -> str:
  """The loss, and every score over the run."""
  charts = []
  if loss := run.scalars.get("train/loss"):
    steps, values = _columns(loss)
    window = max(1, len(values) // _SMOOTHING)
    marker = "circle" if len(values) == 1 else ""
    smooth = plots.Series(
      "smoothed", steps, _moving_average(values, window), plots.BLUE, marker=marker
    )
    raw = plots.Series("as logged", steps, values, plots.SKY, width=1.0, opacity=0.45)
    charts.append(
      plots.line_chart([raw, smooth], title="Training loss", x_label="step", y_label="train loss")
    )
  charts += _few_shot_curves(run)
  for name in (name for evaluation in run.evaluations for name in other_metrics(evaluation)):
    if len(points := run.scalars.get(name, ())) > 1:
      line = plots.Series("", *_columns(points), plots.BLUE, marker="circle")
      charts.append(plots.line_chart([line], title=name, x_label="step", y_label=name))
  return section("Training", f'<div class="pair">{"".join(charts)}</div>') if charts else ""


def metrics_section(run: Run) -> str:
  """Every measurement that is not a few-shot one."""
  rows = "".join(
    f"<tr><th>{text(name)}</th>{_cell(measurement)}<td>{measurement.n:,}</td>"
    f"<td>{evaluation.step:,}</td></tr>"
    for evaluation in run.evaluations
    for name, measurement in other_metrics(evaluation).items()
  )
  if not rows:
    return ""
  head = "<thead><tr><th>metric</th><th>value</th><th>n</th><th>step</th></tr></thead>"
  return section("Other measurements", f"<table>{head}<tbody>{rows}</tbody></table>")


def samples_section(run: Run) -> str:
  """Questions with their pictures, right and wrong answers of each evaluator."""
  parts = []
  for evaluation in run.evaluations:
    pictured = [s for s in evaluation.samples if s.get("condition") == IMAGE and s["media"]]
    chosen = [
      *_spread(s for s in pictured if not s["correct"]),
      *_spread(s for s in pictured if s["correct"]),
    ]
    if chosen:
      cards = "".join(_sample(sample, evaluation) for sample in chosen)
      parts.append(f"<h3>{text(evaluation.name)}, step {evaluation.step:,}</h3>")
      parts.append(f'<div class="samples">{cards}</div>')
  note = (
    '<p class="note">Wrong answers first, then right ones, as they come and not picked for looks.'
    " The examples that the model was shown stand before each question; the shares of right and"
    " wrong cards say nothing about the score.</p>"
  )
  return section("Samples", note + "".join(parts)) if parts else ""


def data_section(run: Run) -> str:
  """What training has seen of each entry of the mixture, and what truncation took of it."""
  counts: dict[str, dict[str, int]] = {}
  for name in run.scalars:
    if name.startswith("data/") and name.count("/") == 2:
      _, entry, what = name.split("/")
      counts.setdefault(entry, {})[what] = int(run.last(name) or 0)
  if not counts:
    return ""
  columns = list(next(iter(counts.values())))
  head = "".join(f"<th>{text(column.replace('_', ' '))}</th>" for column in columns)
  rows = "".join(
    f"<tr><th>{text(entry)}</th>"
    + "".join(f"<td>{row.get(column, 0):,}</td>" for column in columns)
    + "</tr>"
    for entry, row in counts.items()
  )
  used = " and ".join(
    f"{(run.last(f'data/{kind}') or 0) / slots:.1%} of its {kind}"
    for kind, room in (("tokens", "data/token_slots"), ("media", "data/media_slots"))
    if (slots := run.last(room))
  )
  return section(
    "Training data",
    f'<p class="note">What the batches of the first process held; packing filled {used}.</p>'
    f"<table><thead><tr><th>entry</th>{head}</tr></thead><tbody>{rows}</tbody></table>",
  )


def lists_section(run: Run) -> str:
  """The samples that were left out, and the files that were read though something is odd."""
  return _listing("Skipped samples", run.skipped) + _listing("Odd files", run.noted)


def _listing(name: str, records: Sequence[Mapping[str, Any]]) -> str:
  if not records:
    return ""
  keys = list(dict.fromkeys(key for record in records for key in record))
  head = "".join(f"<th>{text(key)}</th>" for key in keys)
  rows = "".join(
    "<tr>" + "".join(f"<td>{text(record.get(key, ''))}</td>" for key in keys) + "</tr>"
    for record in records
  )
  return section(
    f"{name}: {len(records):,}",
    f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>',
  )


def provenance_section(run: Run) -> str:
  """Config, versions and the commit: what it takes to run this again."""
  rows = "".join(
    f"<tr><th>{text(key)}</th><td>{text(value)}</td></tr>" for key, value in run.environment.items()
  )
  torn = f"<p>Unreadable lines of metrics.jsonl, left out: {run.torn}.</p>" if run.torn else ""
  config = text(json.dumps(run.config, indent=2, sort_keys=True))
  return section(
    "Provenance",
    f'<table class="plain"><tbody>{rows}</tbody></table>{torn}'
    f"<details><summary>Resolved config</summary><pre>{config}</pre></details>",
  )


def _facts(run: Run) -> Iterable[tuple[str, str, str]]:
  total = run.config.get("train", {}).get("num_steps")
  yield "Step", f"{run.step:,}", f"of {total:,}" if total else ""
  environment = run.environment
  if "parameters" in environment:
    trainable = environment["trainable_parameters"]
    yield "Parameters", _count(environment["parameters"]), f"{_count(trainable)} trained"
  if (seconds := run.last("train/seconds")) is not None:
    yield "Time", _duration(seconds), "to the last step"
  if (speed := run.last("train/samples_per_s")) is not None:
    wait = run.last("train/data_wait")
    yield "Speed", f"{speed:,.0f}/s", "samples" + (f", {wait:.1%} waiting for data" if wait else "")
  if "device" in environment:
    yield "Device", environment["device"], f"{environment['num_devices']} in the mesh"
  if bad := run.last("train/bad_steps"):
    yield "Bad steps", f"{bad:,.0f}", "non-finite, left out"


def _headline(run: Run) -> str:
  """The score at the most shots of the first few-shot evaluator, beside its control."""
  for evaluation in run.evaluations:
    for grid in few_shot(evaluation):
      shots = grid.shots[-1]
      if score := grid.values.get(IMAGE, {}).get(shots):
        control = grid.values.get(SHUFFLED, {}).get(shots)
        beside = f", and {control.value:.0%} when the images are shuffled" if control else ""
        return (
          f"{grid.name}: after {shots} examples it answers {score.value:.0%} of {score.n:,} "
          f"held-out questions right{beside}."
        )
  return "No few-shot evaluation has finished yet."


def _few_shot_pair(grid: FewShot) -> str:
  lines = []
  for (name, row), dash in zip(grid.baselines.items(), ("5 4", "1.5 3"), strict=False):
    shots, measurements = _columns(sorted(row.items()))
    values = [measurement.value for measurement in measurements]
    lines.append(plots.Series(name, shots, values, plots.GREY, dash=dash, width=1.5))
  for condition, row in reversed(grid.values.items()):
    color, marker = _STYLES.get(condition, (plots.PURPLE, "square"))
    shots, measurements = _columns(sorted(row.items()))
    low, high = _columns([measurement.ci95 for measurement in measurements])
    values = [measurement.value for measurement in measurements]
    label = CONDITIONS.get(condition, condition)
    lines.append(plots.Series(label, shots, values, color, low, high, marker))
  metric = grid.metric.replace("_", " ")
  chart = plots.line_chart(
    lines,
    title=f"{grid.name}: {metric} by the number of shots",
    x_label="examples shown (shots)",
    y_label=metric,
    y_range=(0, 1),
    x_ticks=grid.shots,
  )
  return (
    f"<h3>{text(grid.name)}: {text(metric)}, step {grid.step:,}</h3>"
    f'<div class="pair results">{chart}{_few_shot_table(grid)}</div>'
  )


def _few_shot_table(grid: FewShot) -> str:
  head = "".join(f"<th>{k} shot{'s' * (k != 1)}</th>" for k in grid.shots)
  rows = ""
  for condition, row in grid.values.items():
    cells = "".join(_cell(row[k]) if k in row else "<td></td>" for k in grid.shots)
    kind = "score" if condition == IMAGE else "control"
    label = text(CONDITIONS.get(condition, condition))
    rows += f'<tr class="{kind}"><th>{label}</th>{cells}</tr>'
  for name, row in grid.baselines.items():
    cells = "".join(f"<td>{row[k].value:.3f}</td>" if k in row else "<td></td>" for k in grid.shots)
    rows += f'<tr class="control"><th>{text(name)}</th>{cells}</tr>'
  counts = sorted({m.n for row in grid.values.values() for m in row.values()})
  notes = "".join(f"<br>{text(note)}" for note in grid.notes)
  size = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
  return (
    f"<div><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    f'<p class="note">n = {size} questions in each cell.{notes}</p></div>'
  )


def _few_shot_curves(run: Run) -> list[str]:
  """A chart of each few-shot metric that was measured twice or more: a line a number of shots."""
  charts = []
  for grid in (grid for evaluation in run.evaluations for grid in few_shot(evaluation)):
    lines = []
    for shots, color in zip(grid.shots, plots.SHADES, strict=False):
      points = run.scalars.get(f"{grid.name}/{shots}shot/{grid.metric}", ())
      if len(points) > 1:
        label = f"{shots} shots" if shots == grid.shots[-1] else str(shots)
        lines.append(plots.Series(label, *_columns(points), color, marker="circle"))
    if lines:
      name = f"{grid.name}: {grid.metric.replace('_', ' ')}"
      chart = plots.line_chart(lines, title=name, x_label="step", y_label=name, y_range=(0, 1))
      charts.append(chart)
  return charts


def _spread(samples: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
  """The first few samples, taken in turn from each number of shots, most shots first."""
  by_shots: dict[int, list[dict[str, Any]]] = {}
  for sample in samples:
    by_shots.setdefault(sample["num_shots"], []).append(sample)
  turns = [(turn, -shots, s) for shots, row in by_shots.items() for turn, s in enumerate(row)]
  turns.sort(key=lambda item: item[:2])
  return [sample for _, _, sample in turns[:_SAMPLES_OF_A_VERDICT]]


def _sample(sample: dict[str, Any], evaluation: Evaluation) -> str:
  """A card that reads as the model did: the examples, then the question."""
  folder, count = evaluation.folder, sample["num_shots"]
  verdict, mark = ("right", "✓ right") if sample["correct"] else ("wrong", "✗ wrong")
  wide = _wide(sample["media"], folder)
  shots = "".join(
    f'<div class="shot{_wide(shot["media"], folder)}">{_images(shot["media"], folder)}'
    f"{text(shot['question'])} <b>{text(shot['answer'])}</b></div>"
    for shot in sample["support"]
  )
  rows = {"question": sample["question"], "choices": ", ".join(map(str, sample["choices"]))}
  rows |= {"answer": sample["answer"]}
  lines = "".join(f"<dt>{name}</dt><dd>{text(row)}</dd>" for name, row in rows.items() if row)
  return (
    f'<article class="sample{" full" if wide or count > 1 else ""}">'
    f'<div class="head"><span class="verdict {verdict}">{mark}</span>'
    f"<span>{text(sample['task'])}, {count} shot{'s' * (count != 1)}</span>"
    f'<span class="id">{text(sample["id"])}</span></div><div class="reading">{shots}'
    f'<div class="query"><div class="media{wide}">{_images(sample["media"], folder)}</div>'
    f'<dl>{lines}<dt>model</dt><dd class="{verdict}">'
    f"{text(sample['prediction'] or '(nothing)')}</dd></dl></div></div></article>"
  )


def _images(paths: list[str], folder: pathlib.Path) -> str:
  return "".join(
    f'<img alt="" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
    for data in _pictures(paths, folder)
  )


def _wide(paths: list[str], folder: pathlib.Path) -> str:
  """The class of strips of slices; a PNG's width and height are its bytes 16 to 24."""
  sizes = [struct.unpack(">II", data[16:24]) for data in _pictures(paths, folder)]
  return " wide" if any(width > 2 * height for width, height in sizes) else ""


def _pictures(paths: list[str], folder: pathlib.Path) -> list[bytes]:
  """PNG files; none for those that somebody has tidied away since."""
  return [(folder / path).read_bytes() for path in paths if (folder / path).is_file()]


def _cell(measurement: Measurement) -> str:
  low, high = measurement.ci95
  return f"<td>{measurement.value:.3f}<small>{low:.3f} – {high:.3f}</small></td>"


def _columns(rows: Iterable[tuple]) -> tuple[tuple, tuple]:
  first, second = zip(*rows, strict=True)
  return first, second


def _moving_average(values: tuple[float, ...], window: int) -> list[float]:
  """Of each value and the up to `window` - 1 before it."""
  spans = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
  return [sum(span) / len(span) for span in spans]


def _count(number: int) -> str:
  for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
    if number >= size:
      return f"{number / size:.3g} {unit}"
  return str(number)


def _duration(seconds: float) -> str:
  hours, minutes = divmod(round(seconds) // 60, 60)
  return f"{hours} h {minutes} min" if hours else f"{minutes} min {round(seconds) % 60} s"
