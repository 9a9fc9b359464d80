"""What an evaluation left in its folder `evals/<name>/<step>/`, read for the report."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from medflax.metrics.intervals import Measurement
from medflax.utils import UserError

IMAGE, SHUFFLED, NO_IMAGE, TEXT_ONLY = "image", "shuffled", "no_image", "text_only"
CONDITIONS = {
  IMAGE: "images shown",
  SHUFFLED: "images shuffled",
  NO_IMAGE: "no image",
  TEXT_ONLY: "text only",
}
BASELINES = ("chance", "majority")
# What the baselines are measured in: the share of answers that are right.
SHARES_RIGHT = ("exact_match", "accuracy", "likelihood_accuracy")
_FEWSHOT = re.compile(
  r"(?P<name>.+)/(?P<shots>\d+)shot/(?P<metric>[^/@#]+)(@(?P<condition>\w+))?(?P<seeds>#seeds)?"
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One evals/<name>/<step>/.

  Attributes:
    provenance: what results.json tells besides its measurements, step and notes.
  """

  name: str
  step: int
  folder: pathlib.Path
  provenance: dict[str, Any]
  notes: list[str]
  metrics: dict[str, Measurement]
  samples: list[dict[str, Any]]

  @property
  def answers(self) -> list[dict[str, Any]]:
    """The samples that are questions with a model's answer."""
    return [sample for sample in self.samples if "prediction" in sample]


@dataclasses.dataclass(frozen=True)
class FewShot:
  """One metric of one evaluation by condition and number of shots.

  Attributes:
    slice: the value whose questions alone are counted; "": all questions.
    values: by condition and shots; the condition "image" is the score, others are its controls.
    seeds: the same of several draws of the demonstrations: mean, standard deviation over the
      draws, their interval, and how many.
    baselines: by name and shots: what takes no model, of `BASELINES`.
  """

  name: str
  slice: str
  metric: str
  step: int
  shots: list[int]
  values: dict[str, dict[int, Measurement]]
  seeds: dict[str, dict[int, Measurement]]
  baselines: dict[str, dict[int, Measurement]]

  @property
  def title(self) -> str:
    """`binding: exact match`."""
    return f"{self.name}: {self.metric.replace('_', ' ')}"


def condition_name(condition: str) -> str:
  """As it is told to a reader; one that is not known is told as it is."""
  return CONDITIONS.get(condition, condition)


def few_shot(evaluation: Evaluation) -> list[FewShot]:
  """The measurements that are named `<name>[/<slice>]/<k>shot/<metric>[@<condition>]`."""
  tables: dict[tuple[str, str], dict[str, dict[int, Measurement]]] = {}
  spreads: dict[tuple[str, str], dict[str, dict[int, Measurement]]] = {}
  for key, measurement in evaluation.metrics.items():
    if match := _FEWSHOT.fullmatch(key):
      into = spreads if match["seeds"] else tables
      table = into.setdefault((match["name"], match["metric"]), {})
      table.setdefault(match["condition"] or IMAGE, {})[int(match["shots"])] = measurement
  return [
    FewShot(
      name=evaluation.name,
      slice=name.removeprefix(evaluation.name).removeprefix("/"),
      metric=metric,
      step=evaluation.step,
      shots=sorted({shots for row in table.values() for shots in row}),
      values=table,
      seeds=spreads.get((name, metric), {}),
      baselines={
        baseline: tables[name, baseline][IMAGE]
        for baseline in BASELINES
        if metric in SHARES_RIGHT and (name, baseline) in tables
      },
    )
    for (name, metric), table in tables.items()
    if metric not in BASELINES
  ]


def other_metrics(evaluation: Evaluation) -> dict[str, Measurement]:
  """The measurements that are not few-shot ones."""
  return {name: m for name, m in evaluation.metrics.items() if not _FEWSHOT.fullmatch(name)}


def read_evaluation(folder: pathlib.Path) -> Evaluation:
  """Reads results.json and samples.jsonl of `evals/<name>/<step>/`; no samples are no error.

  Raises:
    UserError: if there is no results.json, or one of the two is damaged.
  """
  path = folder / "results.json"
  if not path.is_file():
    raise UserError(f"{folder} holds no results.json: not the folder of an evaluation")
  results = read_json(path)
  try:
    metrics = {key: _measurement(m) for key, m in results.pop("metrics").items()}
    step, notes = results.pop("step"), results.pop("notes", [])
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"{path}: not an evaluation's results ({error!r})") from None
  samples = read_lines(folder / "samples.jsonl")
  return Evaluation(folder.parent.name, step, folder, results, notes, metrics, samples)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file; empty if there is no file.

  Raises:
    UserError: if it is not JSON.
  """
  try:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
  except json.JSONDecodeError as error:
    raise UserError(f"{path}: not JSON ({error}); remove it or run the evaluation again") from None


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The objects in the lines of a file; empty if there is no file.

  Raises:
    UserError: if one is not JSON.
  """
  records = []
  for number, line in lines(path):
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError as error:
      raise UserError(f"{path}:{number}: not JSON ({error})") from None
  return records


def lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """The numbered lines of a file, if it exists; `splitlines` would also split at U+2028."""
  content = path.read_text("utf-8").split("\n") if path.exists() else []
  return ((number, line) for number, line in enumerate(content, start=1) if line)


def _measurement(record: dict[str, Any]) -> Measurement:
  low, high = map(float, record["ci95"])
  return Measurement(float(record["value"]), float(record["stderr"]), (low, high), record["n"])
