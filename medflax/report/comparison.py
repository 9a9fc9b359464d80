"""The page of a comparison: what systems score on the same questions, and how sure it differs."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from medflax.metrics.intervals import Measurement
from medflax.report import plots
from medflax.report.fewshot import cell, plural, series, shots_chart
from medflax.report.gallery import RIGHT, WRONG, Card, gallery, script
from medflax.report.page import page, section, text
from medflax.report.results import IMAGE, condition_name
from medflax.report.sections import provenance_section
from medflax.utils import write_atomic

STYLES = (
  (plots.BLUE, "circle"),
  (plots.ORANGE, "square"),
  (plots.GREEN, "triangle"),
  (plots.PURPLE, "diamond"),
  (plots.SKY, "circle"),
  (plots.GREY, "square"),
)
_OPEN_ROWS = 16  # a longer table is shown when it is asked for

Row = Mapping[str, Any]


def write_comparison(path: pathlib.Path, comparison: Mapping[str, Any]) -> pathlib.Path:
  """Writes the page of a comparison and returns its path.

  Args:
    path: of the HTML file.
    comparison: as in compare.json: `systems`, their names; `rows`, each with "name",
      "num_shots", "condition", "metric", "slice", "values" of the systems (None where one has
      none), "difference" of the second to the first {"value", "ci95", "p"} or None, and
      "mcnemar" {"only_a", "only_b", "p" (may be None)} or None; `left_out`, what could not be
      compared. And, not in the file, `disagreements`: questions not answered alike, each with
      "id", "task", "num_shots", "condition", "question", "answer", and of every system
      "predictions" and "correct".
  """
  path = pathlib.Path(path)
  systems, rows = comparison["systems"], comparison["rows"]
  cards = [_card(record, systems) for record in comparison.get("disagreements", ())]
  metrics = list(dict.fromkeys(row["metric"] for row in rows))
  parts = (
    section(
      "Differences",
      "".join(_metric([row for row in rows if row["metric"] == m], systems) for m in metrics),
      f"All on the same questions. A difference is {_minus(systems)}, with its 95 % interval "
      "over groups; blue where it is surely above 0, orange where below. "
      "McNemar's test counts the questions that only one of the two answers right; without a p of "
      "its own, groups have several questions, which p before it allows for.",
    ),
    section("By the number of shots", _curves(rows, systems)),
    gallery("One right, the other wrong", cards, "Questions that the systems do not answer alike."),
    provenance_section(comparison.get("left_out", {}), heading="Left out"),
  )
  content = page(
    " against ".join(systems),
    kind="medflax comparison",
    lead=_lead(rows, systems),
    facts=_facts(rows, systems),
    parts=parts,
    script=script() if cards else "",
  )
  write_atomic(path, content)
  return path


def _metric(rows: Sequence[Row], systems: Sequence[str]) -> str:
  """The differences in one metric as a chart, and all numbers as a table."""
  name = rows[0]["metric"].replace("_", " ")
  bars = [_bar(row) for row in rows if row["difference"] and row["condition"] == IMAGE]
  chart = (
    plots.forest_chart(
      bars, title=f"Difference in {name}", x_label=f"difference in {name}", reference=0.0
    )
    if bars
    else ""
  )
  return (
    f'<h3>{text(name)}</h3><div class="scroll">{chart}</div>'
    f"<details{' open' if len(rows) <= _OPEN_ROWS else ''}><summary>Numbers</summary>"
    f"{_table(rows, systems)}</details>"
  )


def _bar(row: Row) -> plots.Bar:
  difference = row["difference"]
  low, high = difference["ci95"]
  color = plots.BLUE if low > 0 else plots.ORANGE if high < 0 else plots.GREY
  told = f"{_signed(difference['value'])}, p {_p(difference['p'])}"
  return plots.Bar(_label(row), difference["value"], low, high, color, told)


def _table(rows: Sequence[Row], systems: Sequence[str]) -> str:
  paired = ("difference", "p", "McNemar") if any(row["difference"] for row in rows) else ()
  head = "".join(f"<th>{text(name)}</th>" for name in (*systems, *paired))
  body = ""
  for row in rows:
    values = [value and _measurement(value) for value in row["values"]]
    cells = "".join(cell(value) if value else "<td></td>" for value in values)
    n = next((value.n for value in values if value), 0)
    kind = "score" if row["condition"] == IMAGE else "control"
    body += (
      f'<tr class="{kind}"><th>{text(_label(row))}<small>n {n:,}</small></th>{cells}'
      f"{_paired(row) if paired else ''}</tr>"
    )
  return (
    f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def _paired(row: Row) -> str:
  difference, mcnemar = row["difference"], row.get("mcnemar")
  if not difference:
    return "<td></td><td></td><td></td>"
  low, high = difference["ci95"]
  counts = f"{mcnemar['only_a']:,} / {mcnemar['only_b']:,}" if mcnemar else ""
  if mcnemar and mcnemar["p"] is not None:  # groups of several questions have none
    counts += f"<small>p {_p(mcnemar['p'])}</small>"
  return (
    f"<td>{_signed(difference['value'])}<small>{_signed(low)} – {_signed(high)}</small></td>"
    f"<td>{_p(difference['p'])}</td><td>{counts}</td>"
  )


def _curves(rows: Sequence[Row], systems: Sequence[str]) -> str:
  """A chart for each evaluation and metric with two numbers of shots or more."""
  charts = []
  kept = [row for row in rows if not row["slice"] and row["condition"] == IMAGE]
  for name, metric in dict.fromkeys((row["name"], row["metric"]) for row in kept):
    chosen = [row for row in kept if (row["name"], row["metric"]) == (name, metric)]
    shots = sorted({row["num_shots"] for row in chosen})
    lines = []
    for place, system in enumerate(systems):
      points = {r["num_shots"]: _measurement(v) for r in chosen if (v := r["values"][place])}
      if points:
        lines.append(series(system, points, STYLES[place % len(STYLES)]))
    if len(shots) > 1:
      title = f"{name}: {metric.replace('_', ' ')}"
      charts.append(shots_chart(lines[::-1], title=title, y_label=title, shots=shots))
  return f'<div class="pair">{"".join(charts)}</div>' if charts else ""


def _card(record: Mapping[str, Any], systems: Sequence[str]) -> Card:
  kinds = [RIGHT if right else WRONG for right in record["correct"]]
  right = [name for name, kind in zip(systems, kinds, strict=True) if kind == RIGHT]
  verdict = f"right: {', '.join(right) or 'none'}"
  condition = condition_name(record["condition"])
  rows = [("question", record["question"], ""), ("answer", record["answer"], "")]
  rows += [
    (name, prediction or "(nothing)", kind)
    for name, prediction, kind in zip(systems, record["predictions"], kinds, strict=True)
  ]
  return Card(
    id=record["id"],
    verdict=("", verdict),
    fields={
      "verdict": verdict,
      "shots": str(record["num_shots"]),
      "condition": record["condition"],
      "task": record["task"],
      "answer": record["answer"],
    },
    head=f"{record['task']}, {plural(record['num_shots'])}, {condition}",
    rows=rows,
  )


def _lead(rows: Sequence[Row], systems: Sequence[str]) -> str:
  """What the first row says."""
  paired = [row for row in rows if row["difference"]]
  if not paired:
    return f"{len(rows):,} measurements of {len(systems)} systems on the same questions."
  first = paired[0]
  low, high = first["difference"]["ci95"]
  return (
    f"{_label(first)}: {first['metric'].replace('_', ' ')} of {systems[1]} differs by "
    f"{_signed(first['difference']['value'])} from that of {systems[0]} "
    f"({_signed(low)} to {_signed(high)}, p {_p(first['difference']['p'])})."
  )


def _facts(rows: Sequence[Row], systems: Sequence[str]) -> list[tuple[str, str, str]]:
  ends = [row["difference"]["ci95"] for row in rows if row["difference"]]
  facts = [("Systems", f"{len(systems)}", ""), ("Measurements", f"{len(rows):,}", "of each")]
  if ends:
    above, below = sum(low > 0 for low, _ in ends), sum(high < 0 for _, high in ends)
    facts += [
      ("Surely higher", f"{above:,}", f"of {len(ends):,}: {systems[1]}"),
      ("Surely lower", f"{below:,}", "by their 95 % intervals"),
    ]
  return facts


def _label(row: Row) -> str:
  """`vqa/Head, 4 shots, no image`."""
  name = f"{row['name']}/{row['slice']}" if row["slice"] else row["name"]
  condition = "" if row["condition"] == IMAGE else f", {condition_name(row['condition'])}"
  return f"{name}, {plural(row['num_shots'])}{condition}"


def _minus(systems: Sequence[str]) -> str:
  return " − ".join(systems[1::-1])


def _measurement(value: Mapping[str, Any]) -> Measurement:
  low, high = value["ci95"]
  return Measurement(value["value"], value["stderr"], (low, high), value["n"])


def _signed(value: int | float) -> str:
  return f"{round(value, 3) + 0.0:+.3f}"  # no -0.000


def _p(p: int | float) -> str:
  return "< 0.001" if p < 0.001 else f"{p:.3f}"
