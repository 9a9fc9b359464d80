"""The page of one evaluation: its scores, and every answer with what it was asked with."""

import pathlib
from collections.abc import Iterator

from medflax.report.answers import confusion_section, stops_section
from medflax.report.calibration import calibration_section
from medflax.report.fewshot import few_shot_section, headline, slices_section
from medflax.report.gallery import answer_cards, gallery, script
from medflax.report.page import page
from medflax.report.results import Evaluation, few_shot, read_evaluation
from medflax.report.sections import metrics_section, provenance_section
from medflax.utils import write_atomic


def write_evaluation(folder: pathlib.Path) -> pathlib.Path:
  """Writes report.html into `evals/<name>/<step>/` and returns its path.

  Needs results.json; without samples.jsonl there are no answers to show.

  Raises:
    UserError: if `folder` is not an evaluation's, or one of its files is damaged.
  """
  folder = pathlib.Path(folder)
  return write_page(read_evaluation(folder.resolve()), folder)


def write_page(evaluation: Evaluation, folder: pathlib.Path) -> pathlib.Path:
  """`write_evaluation` of an evaluation that is read already."""
  cards = answer_cards(evaluation, evaluation.answers)
  parts = (
    few_shot_section([evaluation], every_metric=True),
    slices_section([evaluation], every_metric=True),
    metrics_section([evaluation]),
    calibration_section(evaluation),
    confusion_section(evaluation),
    stops_section(evaluation),
    gallery(
      "Answers",
      cards,
      "Every answer, those with pictures first. Right means that it equals the expected answer but "
      "for case and punctuation. Before the question stand the examples that the model was shown; "
      "an answer's id shows all that was asked about it.",
    ),
    provenance_section(evaluation.provenance, notes=evaluation.notes),
  )
  path = folder / "report.html"
  content = page(
    evaluation.name,
    kind="medflax evaluation",
    lead=headline([evaluation]),
    facts=_facts(evaluation),
    parts=parts,
    script=script() if cards else "",
  )
  write_atomic(path, content)
  return path


def _facts(evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
  known = evaluation.provenance
  if protocol := known.get("protocol"):
    yield "Protocol", str(protocol["name"]), f"version {protocol['version']}"
  data = known.get("dataset") or {"name": known.get("task", ""), "version": ""}
  yield "Data", str(data["name"]), f"{known.get('split', '')} split" if known.get("split") else ""
  if grids := few_shot(evaluation):
    shots = grids[0].shots
    yield "Shots", ", ".join(map(str, shots)), "examples before each question"
  if answers := evaluation.answers:
    questions = len({sample["id"] for sample in answers})
    yield "Questions", f"{questions:,}", f"{len(answers):,} answers under all conditions"
  yield "Step", f"{evaluation.step:,}", f"commit {known['git'][:12]}" if known.get("git") else ""
