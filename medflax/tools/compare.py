"""Compares runs on the questions they were all asked.

python -m medflax.tools.compare runs/a runs/b --eval binding --to comparison
python -m medflax.tools.compare a=runs/a0,runs/a1,runs/a2 b=runs/b0,runs/b1,runs/b2

A run is its folder, of which the newest evaluation of every name counts, or the folder of one
evaluation. Several runs of one system, such as seeds, are given with commas between them, and a
name before an equals sign. Answers of several runs, or with several draws of the demonstrations,
are averaged for every question. Differences are those to the first system; a p-value is that of
swapping the systems' answers by group, "Holm" that with all rows looked at. McNemar's counts, where
scores are 0 or 1, are the questions that one of the two alone has right; its own test is told where
every question is a group of its own, as it would take those of one patient for independent.
"""

import argparse
import json
import pathlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medflax.metrics.intervals import Measurement, across_seeds, bootstrap
from medflax.metrics.pairs import holm, mcnemar, paired
from medflax.report.comparison import write_comparison
from medflax.report.results import IMAGE, Evaluation
from medflax.tools.paired_runs import Asked, Draws, Key, matched, pair, parse_systems
from medflax.utils import UserError, nearest, write_atomic

JSON, TABLE, PAGE = "compare.json", "compare.md", "compare.html"
MAX_SLICES = 20
MAX_DISAGREEMENTS = 500  # shown on the page


def compare(
  systems: Mapping[str, Sequence[pathlib.Path]],
  *,
  evals: Sequence[str] = (),
  metrics: Sequence[str] = (),
  conditions: Sequence[str] = (IMAGE,),
  slice_by: Sequence[str] = (),
  seed: int = 0,
) -> dict[str, Any]:
  """The content of compare.json, and `disagreements` for the page; see `write_comparison`.

  Every row also has "differences" to the first system (None of itself), each with its own
  "mcnemar" and "p_holm", which holds with all rows looked at; and "seeds", `across_seeds` of each
  system's runs and draws (None of a single one).

  Args:
    systems: by name, the folders of their runs.
    evals: names of evaluations; none: all that every run has.
    metrics: names of scores; none: all that every answer has.
    slice_by: keys, "task" or those of a sample's `meta`, whose values are compared one by one too.
    seed: of resampling and swapping.

  Raises:
    UserError: if something is missing, or the systems were not asked the same.
  """
  left_out: dict[str, Any] = {}
  rows, disagreements = [], []
  for name, runs in matched(systems, evals, left_out).items():
    asked = pair(name, list(systems), runs)
    if any(asked.left_out.values()):
      left_out[f"{name}: answers to questions that not all were asked"] = asked.left_out
    chosen = _metrics(asked, metrics, left_out)
    _check_scorers(name, runs, chosen)
    kept = {key: answers for key, answers in asked.answers.items() if key[3] in conditions}
    if not kept:
      raise UserError(f"{name} has no answers under {', '.join(conditions)}")
    for (shots, condition, part), keys in _cells(kept, slice_by).items():
      place = dict(name=name, num_shots=shots, condition=condition, slice=part)
      answers = [kept[key] for key in keys]
      rows += [place | {"metric": m} | _row(answers, m, len(systems), seed) for m in chosen]
    disagreements += _disagreements(kept)
  _add_holm(rows)
  if len(disagreements) > MAX_DISAGREEMENTS:
    left_out["answers that differ, beyond those shown"] = len(disagreements) - MAX_DISAGREEMENTS
  return {
    "systems": list(systems),
    "rows": rows,
    "left_out": left_out,
    "disagreements": disagreements[:MAX_DISAGREEMENTS],
  }


def table(comparison: Mapping[str, Any]) -> str:
  """The rows as a table in Markdown."""
  systems = comparison["systems"]
  head = ["evaluation", "shots", "condition", "metric", "n", *systems]
  for system in systems[1:]:
    head += [f"{system} − {systems[0]}", "p", "p (Holm)", "McNemar"]
  lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
  for row in comparison["rows"]:
    name = f"{row['name']}, {row['slice']}" if row["slice"] else row["name"]
    cells = [name, f"{row['num_shots']}", row["condition"], row["metric"]]
    cells += [f"{row['values'][0]['n']}", *map(_told, row["values"])]
    for difference in row["differences"][1:]:
      test = difference["mcnemar"]
      cells += [_told(difference, "+"), _p(difference["p"]), _p(difference["p_holm"])]
      cells.append(_mcnemar(test) if test else "")
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def write(comparison: Mapping[str, Any], folder: pathlib.Path) -> None:
  """Writes compare.json, compare.md and compare.html.

  Raises:
    UserError: if the folder holds a comparison.
  """
  if (folder / JSON).exists():
    raise UserError(f"{folder} holds a comparison; name another folder")
  write_comparison(folder / PAGE, comparison)
  write_atomic(folder / TABLE, table(comparison))
  kept = {key: value for key, value in comparison.items() if key != "disagreements"}
  text = json.dumps(kept, indent=2, ensure_ascii=False, allow_nan=False)
  write_atomic(folder / JSON, text + "\n")


def _metrics(asked: Asked, wanted: Sequence[str], left_out: dict[str, Any]) -> list[str]:
  records = [r for answers in asked.answers.values() for draws in answers for r in draws.values()]
  every = list(dict.fromkeys(name for record in records for name in record["scores"]))
  shared = [name for name in every if all(name in record["scores"] for record in records)]
  for name in wanted:
    if name not in shared:
      raise UserError(
        f"{asked.name}: not all answers have the score {name!r}{nearest(name, shared)}"
      )
  if not wanted and (others := sorted(set(every) - set(shared))):
    left_out[f"{asked.name}: scores that not all answers have"] = others
  return list(wanted or shared)


def _check_scorers(name: str, runs: Sequence[Sequence[Evaluation]], metrics: Iterable[str]) -> None:
  for metric in metrics:
    told = [e.provenance.get("scorers", {}).get(metric) for rs in runs for e in rs]
    versions = list(dict.fromkeys(filter(None, told)))
    if len(versions) > 1:
      raise UserError(
        f"{name}: {metric} is {versions[0]} in one run and {versions[1]} in another; "
        "evaluate them with the same version"
      )


def _cells(
  answers: Mapping[Key, list[Draws]], slice_by: Sequence[str]
) -> dict[tuple[int, str, str], list[Key]]:
  """The questions of each number of shots, condition and slice, "" being all of them."""
  cells: dict[tuple[int, str, str], list[Key]] = defaultdict(list)
  for by in ("", *slice_by):
    values = set()
    for key, systems in answers.items():
      _, task, shots, condition = key
      meta = next(iter(systems[0].values())).get("meta", {})
      value = f"{by}={ {**meta, 'task': task}.get(by, 'none') }" if by else ""
      values.add(value)
      cells[shots, condition, value].append(key)
    if len(values) > MAX_SLICES:
      raise UserError(f"--slice-by {by}: {len(values)} values are too many, at most {MAX_SLICES}")
  return dict(sorted(cells.items(), key=lambda cell: (cell[0][2], cell[0][1] != IMAGE, cell[0])))


def _row(
  answers: Sequence[list[Draws]], metric: str, num_systems: int, seed: int
) -> dict[str, Any]:
  """One metric of the same questions by every system."""
  first = [next(iter(systems[0].values())) for systems in answers]
  groups = [record["group"] or f"sample {record['id']}" for record in first]
  means, values, seeds = [], [], []
  for system in range(num_systems):
    draws = [systems[system] for systems in answers]
    scores = [[record["scores"][metric] for record in draw.values()] for draw in draws]
    means.append(np.array([np.mean(given) for given in scores]))
    values.append(bootstrap(means[-1], groups, seed=seed).to_json())
    seeds.append(_seeds(draws, metric))
  differences: list[dict[str, Any] | None] = [None]
  for mean in means[1:]:
    binary = np.isin([means[0], mean], (0, 1)).all()
    test = mcnemar(means[0], mean, groups).to_json() if binary else None
    difference = paired(means[0], mean, groups, seed=seed).to_json()
    differences.append(difference | {"mcnemar": test})
  second = differences[1] or {}
  return {
    "values": values,
    "seeds": seeds,
    "differences": differences,
    "difference": second,
    "mcnemar": second["mcnemar"],
  }


def _seeds(answers: Sequence[Draws], metric: str) -> dict[str, Any] | None:
  """How far a system's runs and draws differ."""
  by_draw: dict[tuple[int, int], list[float]] = defaultdict(list)
  for draws in answers:
    for draw, record in draws.items():
      by_draw[draw].append(record["scores"][metric])
  if len(by_draw) < 2:
    return None
  means = [float(np.mean(scores)) for scores in by_draw.values()]
  runs = [{metric: Measurement(mean, 0.0, (mean, mean), len(answers))} for mean in means]
  return across_seeds(runs)[metric].to_json()


def _add_holm(rows: Sequence[Mapping[str, Any]]) -> None:
  differences = [d for row in rows for d in row["differences"] if d]
  for difference, p in zip(differences, holm([d["p"] for d in differences]), strict=True):
    difference["p_holm"] = p


def _disagreements(answers: Mapping[Key, list[Draws]]) -> list[dict[str, Any]]:
  """Questions that one system has right in its first run and another has not."""
  found = []
  for (name, task, shots, condition), systems in answers.items():
    records = [next(iter(draws.values())) for draws in systems]
    correct = [bool(record["correct"]) for record in records]
    if len(set(correct)) > 1:
      found.append(
        {
          "id": name,
          "task": task,
          "num_shots": shots,
          "condition": condition,
          "question": records[0]["question"],
          "answer": records[0]["answer"],
          "predictions": [record["prediction"] for record in records],
          "correct": correct,
        }
      )
  return found


def _told(value: Mapping[str, Any], sign: str = "") -> str:
  low, high = value["ci95"]
  return f"{value['value']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _mcnemar(test: Mapping[str, Any]) -> str:
  p = "" if test["p"] is None else f", {_p(test['p'])}"
  return f"{test['only_a']} / {test['only_b']}{p}"


def _p(p: float) -> str:
  return "< 0.001" if p < 0.001 else f"{p:.3f}"


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = argparse.ArgumentParser(
    prog="python -m medflax.tools.compare",
    description="Compares runs on the questions they were all asked.",
  )
  add = parser.add_argument
  add("systems", nargs="+", metavar="[NAME=]RUN[,RUN…]", help="folders of runs or evaluations")
  add("--eval", action="append", default=[], help="default: all; may be repeated")
  add("--metric", action="append", default=[], help="default: all; may be repeated")
  add("--condition", action="append", default=[], help=f"default: {IMAGE}; may be repeated")
  add("--slice-by", action="append", default=[], help="task, or a key of meta; may be repeated")
  add("--seed", type=int, default=0, help="of resampling, default 0")
  add("--to", type=pathlib.Path, help="the folder to write, with a page")
  flags = parser.parse_args(argv)
  try:
    comparison = compare(
      parse_systems(flags.systems),
      evals=flags.eval,
      metrics=flags.metric,
      conditions=flags.condition or (IMAGE,),
      slice_by=flags.slice_by,
      seed=flags.seed,
    )
    print(table(comparison), end="")
    for what, count in comparison["left_out"].items():
      print(f"left out: {what}: {json.dumps(count)}")
    if flags.to:
      write(comparison, flags.to)
      print(f"report: {flags.to / PAGE}")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
