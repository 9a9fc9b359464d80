"""What the model answers: the confusion of closed answers, and how answers end."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from medflax.report.fewshot import plural
from medflax.report.gallery import MOST_LABELS, OTHER, Labels
from medflax.report.page import section, text
from medflax.report.results import IMAGE, Evaluation

_FEW_LABELS = 6  # more take the whole width, and their names stand upright
Samples = Sequence[Mapping[str, Any]]


def confusion_section(evaluation: Evaluation) -> str:
  """A table of right answers by predictions for each task that has few; cells are links.

  Each number of shots has its own; the most shots are open. Draws of the examples are counted
  together.
  """
  by_task: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
  for sample in evaluation.answers:
    if sample["condition"] == IMAGE:
      by_task[sample["task"]].append(sample)
  names = Labels(evaluation.answers)
  parts = []
  for task, samples in sorted(by_task.items()):
    labels = sorted({names.of(sample["answer"]) for sample in samples})
    if 1 < len(labels) <= MOST_LABELS:
      size = "many" if len(labels) > _FEW_LABELS else "few"
      matrices = _matrices(task, samples, labels, names)
      parts.append(f'<div class="confusion {size}">{matrices}</div>')
  return section(
    "Confusion",
    f'<div class="pair">{"".join(parts)}</div>' if parts else "",
    "Rows are the right answers, columns what the model said; the shade is the share of the row. "
    f"{OTHER}: none of the answers that are ever right. A number opens its answers below.",
  )


def stops_section(evaluation: Evaluation) -> str:
  """How often answers end for each reason, by the number of shots."""
  counts: dict[int, Counter[str]] = defaultdict(Counter)
  for sample in evaluation.answers:
    if sample["condition"] == IMAGE:
      counts[sample["num_shots"]][sample["stop"]] += 1
  if not counts:
    return ""
  reasons = [reason for reason, _ in sum(counts.values(), Counter()).most_common()]
  head = "".join(f"<th>{plural(shots)}</th>" for shots in sorted(counts))
  rows = "".join(
    f"<tr><th>{text(reason.replace('_', ' ') or '(unknown)')}</th>"
    + "".join(_share(counts[shots], reason, shots) for shots in sorted(counts))
    + "</tr>"
    for reason in reasons
  )
  return section(
    "How answers end",
    f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody>'
    "</table></div>",
    "An answer that ends by its length was cut off: the model would have gone on.",
  )


def _matrices(task: str, samples: Samples, labels: Sequence[str], names: Labels) -> str:
  parts = []
  for place, shots in enumerate(sorted({s["num_shots"] for s in samples}, reverse=True)):
    chosen = [sample for sample in samples if sample["num_shots"] == shots]
    parts.append(
      f"<details{'' if place else ' open'}><summary>{text(task)}, {plural(shots)}</summary>"
      f"{_matrix(chosen, labels, names, {'task': task, 'shots': shots})}</details>"
    )
  return "".join(parts)


def _matrix(samples: Samples, labels: Sequence[str], names: Labels, where: dict) -> str:
  counts = Counter((names.of(s["answer"]), names.of(s["prediction"])) for s in samples)
  columns = [*labels, OTHER]
  head = "".join(f"<th><span>{text(label or '(empty)')}</span></th>" for label in columns)
  rows = ""
  for label in labels:
    total = sum(counts[label, column] for column in columns)
    cells = ""
    for column in columns:
      count = counts[label, column]
      fields = {**where, "condition": IMAGE, "answer": label, "prediction": column}
      shade = f"--share:{count / total if total else 0:.3f}"
      linked = f'<a href="#{text(urlencode(fields))}">{count:,}</a>' if count else "·"
      kind = "hit" if column == label else "miss"
      cells += f'<td class="{kind}" style="{shade}">{linked}</td>'
    rows += f"<tr><th>{text(label or '(empty)')}</th>{cells}<td>{total:,}</td></tr>"
  return (
    f'<div class="scroll"><table><thead><tr><th></th>{head}<th>n</th></tr>'
    f"</thead><tbody>{rows}</tbody></table></div>"
  )


def _share(counts: Counter[str], reason: str, shots: int) -> str:
  count = counts[reason]
  fields = urlencode({"shots": shots, "condition": IMAGE, "stop": reason})
  return (
    f'<td><a href="#{text(fields)}">{count:,}</a><small>{count / counts.total():.1%}</small></td>'
  )
