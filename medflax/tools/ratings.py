r"""Has clinicians rate the answers of runs, who do not learn which is whose.

python -m medflax.tools.ratings make a=runs/a b=runs/b --eval slake --shots 4 --number 50 --to DIR
python -m medflax.tools.ratings read DIR/key.json ratings-ann.json ratings-bob.json --to out.json

`make` writes DIR/ratings.html, which is sent to the raters: a page that needs no server, with the
pictures, the question, the reference answer and every run's answer in random order, to be rated
from 0 to 10 (as in the evaluation of Moor et al. 2023, "Med-Flamingo"). Answers of the same words
are rated once. DIR/key.json, which is kept, tells whose they are.

`read` prints each run's mean with its interval, the differences to the first with the p-values of
swapping by group, and how far raters agree. Raters' ratings of an answer are averaged.
"""

import argparse
import hashlib
import json
import pathlib
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medflax.metrics.agreement import krippendorff_alpha
from medflax.metrics.intervals import bootstrap
from medflax.metrics.pairs import paired
from medflax.report.ratings import SCORES, write_ratings_page
from medflax.report.results import IMAGE, Evaluation
from medflax.tools.paired_runs import Draws, Key, matched, pair, parse_systems
from medflax.utils import UserError, write_atomic

PAGE, KEY = "ratings.html", "key.json"
TOP = max(SCORES)


def make(
  systems: Mapping[str, Sequence[pathlib.Path]],
  to: pathlib.Path,
  *,
  evals: Sequence[str] = (),
  shots: int | None = None,
  number: int = 0,
  seed: int = 0,
) -> dict[str, Any]:
  """Writes the page and its key; returns what is on it, and what was left out, by name.

  Of several runs of a system and several draws of support the first counts.

  Args:
    systems: by name, the folders of their runs.
    to: a folder that has neither file.
    evals: names of evaluations; none: all that every run has.
    shots: the number of support examples; None: the most that there are.
    number: of questions, drawn at random; 0: all.
    seed: of the draw and of the order of answers.

  Raises:
    UserError: if the systems have no question in common, or `to` holds ratings.
  """
  if taken := [name for name in (PAGE, KEY) if (to / name).exists()]:
    raise UserError(f"{to / taken[0]} is there already; name another folder")
  asked: list[tuple[list[Evaluation], list[Draws]]] = []
  left_out: dict[str, Any] = {}
  for name, runs in matched(systems, evals, left_out).items():
    paired_up = pair(name, list(systems), runs)
    if any(paired_up.left_out.values()):
      left_out[f"{name}: answers to questions that not all were asked"] = paired_up.left_out
    keys = _chosen(name, paired_up.answers, shots)
    asked += [([rs[0] for rs in runs], paired_up.answers[key]) for key in keys]
  rng = np.random.default_rng(seed)
  drawn = rng.permutation(len(asked))[: number or None]
  questions, key = [], []
  for evaluations, draws in (asked[int(i)] for i in drawn):
    records = [draw[min(draw)] for draw in draws]
    texts = list(dict.fromkeys(record["prediction"].strip() for record in records))
    shown = [texts[i] for i in rng.permutation(len(texts))]
    places = [shown.index(record["prediction"].strip()) for record in records]
    first = records[0]
    questions.append(
      {
        "question": first["question"],
        "reference": first["answer"],
        "answers": shown,
        "media": _pictures(evaluations, records),
      }
    )
    key.append({"id": first["id"], "group": first["group"], "places": places})
  made_of = json.dumps([list(systems), seed, key, [q["answers"] for q in questions]])
  name = hashlib.sha256(made_of.encode()).hexdigest()[:16]
  write_ratings_page(to / PAGE, name, questions)
  content = {"ratings": name, "systems": list(systems), "questions": key}
  write_atomic(to / KEY, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
  return {
    "questions": len(questions),
    "answers": sum(len(q["answers"]) for q in questions),
    "questions without a picture": sum(not q["media"] for q in questions),
    **{f"left out: {what}": count for what, count in left_out.items()},
  }


def _chosen(name: str, answers: Mapping[Key, Any], shots: int | None) -> list[Key]:
  """The questions at a number of shots, as they were asked."""
  there = sorted({key[2] for key in answers if key[3] == IMAGE})
  wanted = there[-1] if shots is None and there else shots
  if wanted not in there:
    told = ", ".join(map(str, there)) or "no"
    raise UserError(f"{name} has answers with {told} examples, not with {wanted}")
  return [key for key in answers if key[2:] == (wanted, IMAGE)]


def _pictures(
  evaluations: Sequence[Evaluation], records: Sequence[Mapping[str, Any]]
) -> list[pathlib.Path]:
  """Those of the first run that kept them."""
  for evaluation, record in zip(evaluations, records, strict=True):
    paths = [evaluation.folder / path for path in record.get("media", ())]
    if paths and all(path.is_file() for path in paths):
      return paths
  return []


def read(key: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """What raters said: `systems`, `differences`, `raters` and `agreement`.

  Args:
    key: of `make`.
    files: by their names, what raters have saved.

  Raises:
    UserError: if a file is of another page or is no ratings, or nothing was rated.
  """
  found: dict[tuple[int, int], list[int]] = defaultdict(list)  # by question and place
  raters: dict[str, list[int]] = {}
  for name, content in files.items():
    rater, scores = _checked(name, content, key)
    if rater in raters:
      raise UserError(f"{name}: there are two files of {rater!r}; leave one out")
    raters[rater] = list(scores.values())
    for place, score in scores.items():
      found[place].append(score)
  asked = key["questions"]
  whose = [[(q, place) for place in question["places"]] for q, question in enumerate(asked)]
  rated = [q for q, places in enumerate(whose) if all(place in found for place in places)]
  if not rated:
    raise UserError("no question has all its answers rated")
  groups = [asked[q]["group"] or f"sample {q}" for q in rated]
  means = np.array([[np.mean(found[place]) for place in whose[q]] for q in rated]) / TOP
  systems = {
    name: _scaled(bootstrap(values, groups, seed=0).to_json())
    for name, values in zip(key["systems"], means.T, strict=True)
  }
  first = key["systems"][0]
  return {
    "systems": systems,
    "differences": {
      f"{name} − {first}": _scaled(paired(means[:, 0], means[:, i], groups, seed=0).to_json())
      for i, name in enumerate(key["systems"])
      if i
    },
    "raters": {
      name: {"answers": len(scores), "mean": float(np.mean(scores))}
      for name, scores in raters.items()
    },
    "agreement": krippendorff_alpha(list(found.values())),
    "left out": {"questions not rated in full": len(whose) - len(rated)},
  }


def _checked(
  name: str, content: Mapping[str, Any], key: Mapping[str, Any]
) -> tuple[str, dict[tuple[int, int], int]]:
  """The rater, and the scores by question and place."""
  if not isinstance(content, Mapping) or content.get("ratings") != key["ratings"]:
    raise UserError(f"{name} is not of the page that this key is of")
  rater, scores = content.get("rater"), content.get("scores")
  if not isinstance(rater, str) or not isinstance(scores, Mapping) or not scores:
    raise UserError(f"{name}: no rater's name or no scores; save it from the page again")
  answers = {
    f"{q}.{place}": (q, place)
    for q, question in enumerate(key["questions"])
    for place in question["places"]
  }
  for answer, score in scores.items():
    if answer not in answers or type(score) is not int or score not in SCORES:
      raise UserError(f"{name}: {answer}={score!r} is no answer of the page with 0 to {TOP}")
  return rater, {answers[answer]: score for answer, score in scores.items()}


def _scaled(measured: dict[str, Any]) -> dict[str, Any]:
  """A measurement of scores that were divided by the highest."""
  scaled = {name: measured[name] * TOP for name in ("value", "stderr")}
  return measured | scaled | {"ci95": [end * TOP for end in measured["ci95"]]}


def table(found: Mapping[str, Any]) -> str:
  """The ratings as lines of text."""
  lines = []
  for name, value in (found["systems"] | found["differences"]).items():
    low, high = value["ci95"]
    p = f", p {value['p']:.3f}" if "p" in value else ""
    lines.append(f"{name}: {value['value']:.2f} [{low:.2f}, {high:.2f}] n={value['n']}{p}")
  for name, rater in found["raters"].items():
    lines.append(f"rater {name}: {rater['answers']} answers, {rater['mean']:.2f}")
  alpha = "none to tell" if found["agreement"] is None else f"{found['agreement']:.2f}"
  lines.append(f"agreement (Krippendorff's alpha): {alpha}")
  lines += [f"left out: {count} {what}" for what, count in found["left out"].items() if count]
  return "\n".join(lines)


def _read_json(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text("utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: cannot be read as JSON ({error})") from None


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = argparse.ArgumentParser(
    prog="python -m medflax.tools.ratings", description="Has answers of runs rated, blindly."
  )
  commands = parser.add_subparsers(dest="command", required=True)
  add = commands.add_parser("make", help="the page and its key").add_argument
  add("systems", nargs="+", metavar="[NAME=]RUN", help="folders of runs or evaluations")
  add("--eval", action="append", default=[], help="default: all; may be repeated")
  add("--shots", type=int, help="support examples; default: the most there are")
  add("--number", type=int, default=0, help="questions, drawn at random; default: all")
  add("--seed", type=int, default=0)
  add("--to", type=pathlib.Path, required=True, help="the folder to write")
  add = commands.add_parser("read", help="what raters have saved").add_argument
  add("key", type=pathlib.Path)
  add("ratings", nargs="+", type=pathlib.Path)
  add("--to", type=pathlib.Path, help="a JSON file to write")
  flags = parser.parse_args(argv)
  try:
    if flags.command == "make":
      systems = parse_systems(flags.systems, least=1)
      options = dict(evals=flags.eval, shots=flags.shots, number=flags.number, seed=flags.seed)
      for what, count in make(systems, flags.to, **options).items():
        print(f"{what}: {count}")
      print(f"for the raters: {flags.to / PAGE}\nto keep: {flags.to / KEY}")
      return 0
    found = read(_read_json(flags.key), {str(path): _read_json(path) for path in flags.ratings})
    print(table(found))
    if flags.to:
      if flags.to.exists():
        raise UserError(f"{flags.to} is there already; name another file")
      write_atomic(flags.to, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
