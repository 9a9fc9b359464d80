"""Answers of several runs to the same questions, read from the runs' folders."""

import dataclasses
import pathlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from medflax.metrics.likelihood import LIKELIHOOD_METRICS, from_candidates
from medflax.report.results import Evaluation, read_evaluation
from medflax.utils import UserError, nearest

Record = Mapping[str, Any]
Key = tuple[str, str, int, str]  # id, task, number of shots, condition
# The answers to one question by run and draw of the demonstrations.
Draws = dict[tuple[int, int], Record]


@dataclasses.dataclass(frozen=True)
class Asked:
  """One evaluation of every system: the questions that all were asked.

  `answers[key]` are each system's; `left_out` counts each system's other questions by its name.
  """

  name: str
  answers: dict[Key, list[Draws]]
  left_out: dict[str, int]


def parse_systems(given: Sequence[str], least: int = 2) -> dict[str, list[pathlib.Path]]:
  """`[NAME=]RUN[,RUN…]` each; a system without a name has its first run's.

  Raises:
    UserError: if there are fewer than `least`, or two have the same name.
  """
  systems: dict[str, list[pathlib.Path]] = {}
  for text in given:
    whole = pathlib.Path(text).exists()  # a folder may well be called lr=1e-4,seed=0
    name, equals, paths = ("", "", text) if whole else text.partition("=")
    folders = [pathlib.Path(path) for path in ([text] if whole else (paths or name).split(","))]
    name = name if equals else str(folders[0])
    if name in systems:
      raise UserError(f"two systems are called {name}; name them, as a={text}")
    systems[name] = folders
  if len(systems) < least:
    raise UserError(f"too few runs: {len(systems)}, not {least} or more")
  return systems


def matched(
  systems: Mapping[str, Sequence[pathlib.Path]], evals: Sequence[str], left_out: dict[str, Any]
) -> dict[str, list[list[Evaluation]]]:
  """By evaluation, what every system's runs have of it."""
  found = [[_evaluations(run, evals) for run in runs] for runs in systems.values()]
  runs = [run for of_system in found for run in of_system]
  if all(len(run) == 1 for run in runs):  # one of each: whatever they are called
    name = " / ".join(dict.fromkeys(name for run in runs for name in run))
    return {name: [[read_evaluation(*run.values()) for run in rs] for rs in found]}
  shared = [name for name in runs[0] if all(name in run for run in runs)]
  if not shared:
    raise UserError("the runs have no evaluation of the same name; give evaluations' folders")
  if others := sorted({name for run in runs for name in run} - set(shared)):
    left_out["evaluations that not all runs have"] = others
  return {name: [[read_evaluation(run[name]) for run in rs] for rs in found] for name in shared}


def _evaluations(run: pathlib.Path, names: Sequence[str]) -> dict[str, pathlib.Path]:
  """The folder of the newest evaluation of each name that has answers."""
  if not run.is_dir():
    raise UserError(f"{run} is no folder")
  if (run / "results.json").is_file():
    return {run.resolve().parent.name: run}
  paths = [path.parent for path in (run / "evals").glob("*/*/results.json")]
  paths = [path for path in paths if path.name.isdigit()]
  found = {path.parent.name: path for path in sorted(paths, key=lambda path: int(path.name))}
  for name in names:
    if name not in found:
      raise UserError(f"{run} has no evaluation {name!r}{nearest(name, found)}")
  answered = [name for name in names or sorted(found) if _has_answers(found[name])]
  if not answered:
    raise UserError(f"{run} has no evaluation with answers in evals/; is it the folder of a run?")
  return {name: found[name] for name in answered}


def _has_answers(folder: pathlib.Path) -> bool:
  path = folder / "samples.jsonl"
  if not path.exists():
    return False
  with path.open(encoding="utf-8") as file:
    return '"prediction"' in file.readline()


def pair(name: str, systems: Sequence[str], runs: Sequence[Sequence[Evaluation]]) -> Asked:
  """Pairs the answers, and checks that they are to the same questions."""
  every = [_by_question(evaluations) for evaluations in runs]
  shared = [key for key in every[0] if all(key in answers for answers in every[1:])]
  if not shared:
    raise UserError(f"{name}: {' and '.join(systems)} have no question in common")
  for key in shared:
    records = [next(iter(answers[key].values())) for answers in every]
    for field in ("question", "answer", "group"):
      told = [record[field] for record in records]
      if other := next((text for text in told if text != told[0]), None):
        raise UserError(
          f"{name}: {key[0]!r} of {key[1]} has not the same {field} in all runs: "
          f"{told[0]!r} and {other!r}; they were not asked the same"
        )
  kept = set(shared)
  left_out = {
    system: len(answers.keys() - kept) for system, answers in zip(systems, every, strict=True)
  }
  return Asked(name, {key: [answers[key] for answers in every] for key in shared}, left_out)


def _by_question(evaluations: Sequence[Evaluation]) -> dict[Key, Draws]:
  """Questions that all runs of a system were asked."""
  found: dict[Key, Draws] = defaultdict(dict)
  for run, evaluation in enumerate(evaluations):
    for record in evaluation.answers:
      key = (record["id"], record["task"], record["num_shots"], record["condition"])
      draw = run, record.get("seed", 0)
      if draw in found[key]:
        raise UserError(f"{evaluation.folder}: {key[0]!r} of {key[1]} was asked twice; give it ids")
      found[key][draw] = record | {"scores": _scores(record)}
  runs = set(range(len(evaluations)))
  return {key: draws for key, draws in found.items() if {run for run, _ in draws} == runs}


def _scores(record: Record) -> dict[str, float]:
  """Those in the line, and those of the candidates' likelihoods that a sample has by itself."""
  scores = dict(record.get("scores") or {"exact_match": float(record["correct"])})
  if candidates := record.get("candidates"):
    weighed = from_candidates(candidates, record["answer"])
    for name, metric in LIKELIHOOD_METRICS.items():
      if metric.per_sample is not None:
        scores[name] = float(metric.per_sample([weighed])[0])
  return scores
