"""Making a folder data set: used by the scripts in examples/, and by yours."""

import argparse
import collections
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from medflax.data.manifest import SPLITS
from medflax.utils import UserError, write_atomic


def start_folder(source: str | os.PathLike, target: str | os.PathLike) -> pathlib.Path:
  """Makes the folder `target` for data derived from `source`.

  Raises:
    UserError: if `target` lies inside `source` or already holds something.
  """
  source, target = pathlib.Path(source).resolve(), pathlib.Path(target).resolve()
  if target.is_relative_to(source):
    raise UserError(f"{str(target)!r} lies inside the source, which stays as it is; choose another")
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise UserError(f"{str(target)!r} is not an empty folder; choose another or remove it")
  target.mkdir(parents=True, exist_ok=True)
  return target


def write_manifest(root: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
  """Writes `root`/manifest.jsonl, whole or not at all."""
  lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
  write_atomic(root / "manifest.jsonl", "".join(lines))


_WIDTH = 64  # characters of answers in a line; captions take more


def answer_table(records: Sequence[Mapping[str, Any]]) -> str:
  """How often each answer occurs, by task and split, with the majority answer's share."""
  counts: dict[tuple[str, str], collections.Counter[str]] = {}
  for record in records:
    key = record["task"], record["split"]
    counts.setdefault(key, collections.Counter())[record["answer"]] += 1
  lines = [f"{'task':12} {'split':6} {'n':>5} {'majority':>8}  answers"]
  for (task, split), answers in sorted(
    counts.items(), key=lambda item: (item[0][0], SPLITS.index(item[0][1]))
  ):
    total = answers.total()
    listed = ", ".join(f"{answer} {count}" for answer, count in sorted(answers.items()))
    if len(listed) > _WIDTH:
      listed = f"{len(answers):,} different ones"
    share = max(answers.values()) / total
    lines.append(f"{task:12} {split:6} {total:5} {share:8.1%}  {listed}")
  return "\n".join(lines)


def convert_main(
  doc: str, convert: Callable[[pathlib.Path, pathlib.Path], Sequence[Mapping[str, Any]]]
) -> None:
  """The command line `--from DIR --to DIR` of a script whose docstring is `doc`.

  `convert(source, target)` writes the folder and returns the manifest's rows, whose answers are
  then counted. A UserError is printed in one line, with exit code 2.
  """
  parser = argparse.ArgumentParser(description=doc.splitlines()[0])
  parser.add_argument("--from", dest="source", type=pathlib.Path, required=True)
  parser.add_argument("--to", dest="target", type=pathlib.Path, required=True)
  args = parser.parse_args()
  try:
    print(answer_table(convert(args.source, args.target)))
  except UserError as error:
    parser.exit(2, f"{parser.prog}: {error}\n")
