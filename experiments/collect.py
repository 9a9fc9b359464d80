"""Tables, pictures and paired tests of a study's finished runs.

python experiments/collect.py experiments/studies/media_rule.py

Takes what `launch.py` was given: the study with its arguments, --workdir, --config.FIELD=VALUE.
Runs that are not finished are listed, and left out.
"""

import json
import pathlib
import sys
from collections.abc import Sequence

# The checkout, in place of this folder, whose launch.py would hide launch/.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from experiments import summary
from experiments.launch import add_study
from experiments.measure import Results, measure
from experiments.study import load
from medflax.flags import Parser
from medflax.utils import UserError, write_atomic

INDEX = "collected.json"  # what is told of, and the files that are there


def write(results: Results, folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes everything, in place of what was collected there of the same study before.

  Raises:
    UserError: if the folder holds something else.
  """
  before = _written_before(folder, results.study.name)
  contents = {
    "table.csv": summary.to_csv(results),
    "table.md": summary.to_markdown(results),
    "report.html": summary.to_html(results),
    **summary.to_svg(results),
  }
  index = {"study": results.study.name, "missing": results.missing, "files": [*contents]}
  for name in before - contents.keys():
    (folder / name).unlink(missing_ok=True)
  for name, content in {**contents, INDEX: json.dumps(index, indent=1) + "\n"}.items():
    write_atomic(folder / name, content)
  return [folder / name for name in contents]


def _written_before(folder: pathlib.Path, study: str) -> set[str]:
  there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
  if not there:
    return set()
  try:
    index = json.loads((folder / INDEX).read_text())
  except (OSError, json.JSONDecodeError):
    index = {}
  written = set(index.get("files", ()))
  if index.get("study") != study or (foreign := there - written - {INDEX}):
    what = min(foreign) if index.get("study") == study else f"not {study}'s results"
    raise UserError(f"{folder} holds something else ({what}); name another folder by --to")
  return written


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line about the user's mistake."""
  try:
    parser = Parser("experiments.collect", __doc__)
    add_study(parser)
    parser.add_argument("--to", type=pathlib.Path, help="default: collected/ in --workdir")
    flags, overrides = parser.parse(argv)
    study = load(flags.study, flags.workdir, overrides)
    results = measure(study)
    files = write(results, flags.to or study.folder / "collected")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(summary.to_markdown(results))
  for path in files:
    print(path)
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
