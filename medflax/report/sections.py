"""The sections of a run's report.html; "" where there is nothing to show.

Everything that comes from a file passes through `page.text`, so that a question with markup in
it is shown, not run.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from medflax.report import fewshot, plots
from medflax.report.page import in_words, section, table, text
from medflax.report.results import Evaluation, few_shot, other_metrics
from medflax.report.run import Run

_SMOOTHING = 40  # the smoothed loss is a moving average over 1/40 of the run


def title(run: Run) -> str:
  """The run's name: the config's and its variant's."""
  return " · ".join(str(run.config[key]) for key in ("name", "variant") if run.config.get(key))


def facts(run: Run) -> Iterable[tuple[str, str, str]]:
  """The run's vital numbers as (name, value, detail)."""
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


def training_section(run: Run) -> str:
  """The loss, and every score over the run."""
  charts = []
  if loss := run.scalars.get("train/loss"):
    steps, values = fewshot.columns(loss)
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
      line = plots.Series("", *fewshot.columns(points), plots.BLUE, marker="circle")
      charts.append(plots.line_chart([line], title=name, x_label="step", y_label=name))
  return section("Training", f'<div class="pair">{"".join(charts)}</div>') if charts else ""


def metrics_section(evaluations: Iterable[Evaluation]) -> str:
  """Every measurement that is not a few-shot one."""
  rows = "".join(
    f"<tr><th>{text(name)}</th>{fewshot.cell(measurement)}<td>{measurement.n:,}</td>"
    f"<td>{evaluation.step:,}</td></tr>"
    for evaluation in evaluations
    for name, measurement in other_metrics(evaluation).items()
  )
  if not rows:
    return ""
  head = "<thead><tr><th>metric</th><th>value</th><th>n</th><th>step</th></tr></thead>"
  return section(
    "Other measurements",
    f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>',
  )


def pages_section(paths: Sequence[pathlib.Path]) -> str:
  """Links to the pages of evaluations, `evals/<name>/<step>/report.html`."""
  links = "".join(
    f'<li><a href="{text(quote(path.as_posix()))}">{text(path.parent.parent.name)}</a>, step '
    f"{text(path.parent.name)}</li>"
    for path in paths
  )
  return section(
    "Every answer",
    f'<ul class="links">{links}</ul>' if links else "",
    "Beside its files each evaluation has a page of all metrics and all answers.",
  )


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
  keys = list(dict.fromkeys(key for record in records for key in record))
  rows = [[record.get(key, "") for key in keys] for record in records]
  return section(f"{name}: {len(records):,}", table(keys, rows, plain=True))


def provenance_section(
  facts: Mapping[str, Any],
  *,
  heading: str = "Provenance",
  notes: Sequence[str] = (),
  config: Mapping[str, Any] | None = None,
) -> str:
  """Versions, settings and the commit: what it takes to do this again."""
  rows = "".join(
    f"<tr><th>{text(key.replace('_', ' '))}</th><td>{text(in_words(value))}</td></tr>"
    for key, value in facts.items()
    if value not in (None, "", [], {})
  )
  below = "".join(f"<p>{text(note)}</p>" for note in notes)
  if config is not None:
    resolved = text(json.dumps(config, indent=2, sort_keys=True))
    below += f"<details><summary>Resolved config</summary><pre>{resolved}</pre></details>"
  settings = f'<table class="plain"><tbody>{rows}</tbody></table>' if rows else ""
  return section(heading, settings + below)


def _few_shot_curves(run: Run) -> list[str]:
  """A chart of each few-shot metric that was measured twice or more: a line a number of shots."""
  charts = []
  grids = (grid for evaluation in run.evaluations for grid in few_shot(evaluation))
  for grid in (grid for grid in grids if not grid.slice):
    lines = []
    for shots, color in zip(grid.shots, plots.SHADES, strict=False):
      points = run.scalars.get(f"{grid.name}/{shots}shot/{grid.metric}", ())
      if len(points) > 1:
        label = f"{shots} shots" if shots == grid.shots[-1] else str(shots)
        lines.append(plots.Series(label, *fewshot.columns(points), color, marker="circle"))
    if lines:
      limits = fewshot.y_range(lines)
      charts.append(
        plots.line_chart(
          lines, title=grid.title, x_label="step", y_label=grid.title, y_range=limits
        )
      )
  return charts


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
