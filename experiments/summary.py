"""The results of a study for readers: CSV, Markdown, pictures as SVG, and a page of all."""

import csv
import importlib.resources
import io
from collections.abc import Mapping, Sequence

from experiments.measure import Results, Row
from medflax.metrics.intervals import Measurement
from medflax.report import plots
from medflax.report.comparison import STYLES
from medflax.report.fewshot import plural, series, shots_chart
from medflax.report.page import page, section, table

_HEAD = (
  "run",
  "score [95 %]",
  "over seeds",
  "− baseline [95 %]",
  "p (Holm)",
  "− baseline over seeds",
)
_COST = ("trained weights", "minutes")


def to_csv(results: Results) -> str:
  """A line for each row, all numbers in full; what is not there is empty."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(
    [
      *("run", "metric", "score", "low", "high", "questions"),
      *("num_seeds", "seeds_sd", "seeds_low", "seeds_high"),
      *("difference", "difference_low", "difference_high", "p", "p_holm"),
      *("difference_seeds", "difference_seeds_low", "difference_seeds_high"),
      *("trained_weights", "seconds"),
    ]
  )
  for row in results.rows:
    seeds, paired, again = row.seeds, row.difference, row.difference_seeds
    writer.writerow(
      [
        *(row.tag, row.metric, row.score.value, *row.score.ci95, row.score.n),
        *((seeds.n, seeds.stderr, *seeds.ci95) if seeds else (1, "", "", "")),
        *((paired.value, *paired.ci95, row.p, row.p_holm) if paired else ("",) * 5),
        *((again.value, *again.ci95) if again else ("",) * 3),
        *(row.trained, round(row.seconds, 1)),
      ]
    )
  return text.getvalue()


def to_markdown(results: Results) -> str:
  """A table for each metric, and what is missing."""
  study = results.study
  parts = [f"# {study.name}\n\n{study.about}\n\nBaseline: {study.baseline}.\n"]
  for metric, rows in _by(results.rows, "metric").items():
    head = ("| " + " | ".join((*_HEAD, *_COST)) + " |", "|---" * len((*_HEAD, *_COST)) + "|")
    lines = ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    parts.append("\n".join((f"## {metric}\n", *head, *lines, "")))
  if results.missing:
    parts.append("## Missing\n\n" + "".join(f"- {n}: {s}\n" for n, s in results.missing.items()))
  return "\n".join(parts)


def to_svg(results: Results) -> dict[str, str]:
  """By file name: scores of every evaluation and metric, and differences to the baseline."""
  pictures = {}
  for group, charts in _charts(results).items():
    for kind, chart in charts.items():
      pictures[f"{group.replace('/', '_')}{kind}.svg"] = _alone(chart)
  return pictures


def to_html(results: Results) -> str:
  """One page that needs no other file."""
  study = results.study
  parts = []
  for group, charts in _charts(results).items():
    rows = [row for row in results.rows if row.group == group]
    cells = [(row.metric, *_cells(row)) for row in rows]
    pictures = f'<div class="pair">{"".join(charts.values())}</div>'
    parts.append(section(group, pictures + table(("metric", *_HEAD, *_COST), cells)))
  missing = table(("run", "state"), results.missing.items(), plain=True)
  parts.append(section("Missing", missing, "Launch again to go on with these."))
  commands = table(
    ("run", "arguments"), [(r.name, " ".join(r.arguments)) for r in study.runs], plain=True
  )
  parts.append(section("Runs", commands))
  num_runs = len(study.runs)
  return page(
    study.name,
    kind="medflax study",
    lead=study.about,
    facts=(
      ("Runs", f"{num_runs - len(results.missing)}", f"of {num_runs} finished"),
      ("Compared", f"{len(study.tags)}", f"with {study.baseline}"),
      ("Seeds", f"{num_runs // len(study.tags)}", "of each"),
    ),
    parts=parts,
  )


def _charts(results: Results) -> dict[str, dict[str, str]]:
  """By group, the chart of scores as "" and that of differences as "_difference"."""
  return {
    group: {"": _scores(group, rows)} | _differences(group, rows, results.study.baseline)
    for group, rows in _by(results.rows, "group").items()
  }


def _scores(group: str, rows: Sequence[Row]) -> str:
  """Lines by the number of shots; with one number alone, a row for each tag."""
  shots = sorted({row.shots for row in rows if row.shots is not None})
  if len(shots) < 2:
    bars = [_bar(row.tag, row.score, plots.BLUE) for row in rows]
    return plots.forest_chart(bars, title=group, x_label=group)
  lines = []
  for (tag, of_tag), place in zip(_by(rows, "tag").items(), range(len(rows)), strict=False):
    points = {row.shots: row.score for row in of_tag}
    seeds = {row.shots: row.seeds for row in of_tag if row.seeds}
    lines.append(series(tag, points, STYLES[place % len(STYLES)], seeds))
  return shots_chart(lines[::-1], title=group, y_label=group, shots=shots)


def _differences(group: str, rows: Sequence[Row], baseline: str) -> dict[str, str]:
  """Over the questions, or, where these are not paired, over the seeds."""
  bars = []
  for row in rows:
    if difference := row.difference or row.difference_seeds:
      low, high = difference.ci95
      color = plots.BLUE if low > 0 else plots.ORANGE if high < 0 else plots.GREY
      label = row.tag if row.shots is None else f"{row.tag}, {plural(row.shots)}"
      bars.append(_bar(label, difference, color, "+"))
  if not bars:
    return {}
  x_label = f"{group}: difference to {baseline}"
  return {"_difference": plots.forest_chart(bars, title=x_label, x_label=x_label, reference=0.0)}


def _bar(label: str, m: Measurement, color: str, sign: str = "") -> plots.Bar:
  return plots.Bar(label, m.value, *m.ci95, color, f"{m.value:{sign}.3f}")


def _alone(chart: str) -> str:
  """A chart of the report as a file of its own, which brings its style along."""
  style = importlib.resources.files("medflax.report").joinpath("style.css").read_text()
  rules = f"<style>{style}svg {{ font-family: sans-serif; background: var(--paper); }}</style>"
  opening, rest = chart.removeprefix("<svg").split(">", 1)
  return f'<svg xmlns="http://www.w3.org/2000/svg"{opening}>{rules}{rest}\n'


def _cells(row: Row) -> tuple[str, ...]:
  paired, again = row.difference, row.difference_seeds
  return (
    row.tag,
    _told(row.score),
    f"sd {row.seeds.stderr:.3f} (n {row.seeds.n})" if row.seeds else "one seed",
    _told(paired, "+") if paired else "",
    "" if row.p_holm is None else "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}",
    _told(again, "+") if again else "",
    f"{row.trained:,}",
    f"{row.seconds / 60:.1f}",
  )


def _told(m: Measurement, sign: str = "") -> str:
  low, high = m.ci95
  return f"{m.value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _by(rows: Sequence[Row], field: str) -> Mapping[str, list[Row]]:
  """Rows by the value of a field, in order."""
  found: dict[str, list[Row]] = {}
  for row in rows:
    found.setdefault(getattr(row, field), []).append(row)
  return found
