r"""Launches the runs of a study that are missing or have not finished.

python experiments/launch.py experiments/studies/media_rule.py
python experiments/launch.py experiments/studies/media_rule.py:variant=9b,data=prepared \
  --config.data.root=DIR --workdir=/shared/runs/media_rule --launcher=slurm --gpus=8

Arguments behind the study's name are for its config file, and `--config.FIELD=VALUE` for all runs.
Every run has a folder of its own in --workdir, and how far it is, is told by that alone.
`--launcher=slurm --help` tells what a launcher takes besides.
"""

import pathlib
import re
import sys
from collections import Counter
from collections.abc import Sequence

# The checkout, in place of this folder, whose launch.py would hide launch/.
sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from experiments import clusters, local
from experiments.study import FINISHED, RUNNING, Run, Study, load
from medflax.flags import Parser
from medflax.utils import UserError, pick
from medflax.workdir import locked

_LOCAL = "local"
# Of each: its flags, what a dry run tells of a run, and what starts the runs.
LAUNCHERS = {
  _LOCAL: (local.add_flags, local.describe, local.launch),
  "slurm": (clusters.add_slurm_flags, clusters.describe_for_slurm, clusters.submit_to_slurm),
  "skypilot": (
    clusters.add_skypilot_flags,
    clusters.describe_for_skypilot,
    clusters.launch_by_skypilot,
  ),
}


def _launcher(argv: Sequence[str]) -> str:
  """Which launcher is asked for: it has flags of its own."""
  found = re.search(r"--launcher[= ](\S+)", " ".join(argv))
  return found[1] if found else _LOCAL


def add_study(parser: Parser) -> None:
  """Flags that launching and collecting have in common."""
  parser.add_argument("study", metavar="STUDY.py[:ARG=VALUE,…]")
  parser.add_argument(
    "--workdir", type=pathlib.Path, help="of all runs; default: runs/<name of the study>"
  )


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, 1 if runs failed, or 2 after one line about the user's mistake."""
  try:
    add_flags, describe, launch = pick(LAUNCHERS, _launcher(argv), "--launcher")
    parser = Parser("experiments.launch", __doc__)
    parser.add_argument("--launcher", default=_LOCAL, metavar="|".join(LAUNCHERS))
    add_study(parser)
    parser.add_argument("--only", default="", metavar="REGEX", help="runs whose names have it")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and stop")
    add_flags(parser)
    flags, overrides = parser.parse(argv)
    study = load(flags.study, flags.workdir, overrides)
    runs = _to_launch(study, flags.only)
    if flags.dry_run:
      print("\n".join(describe(run, flags) for run in runs))
      return 0
    if not runs:
      return 0
    study.folder.mkdir(parents=True, exist_ok=True)
    with locked(study.folder, "another launcher is at work here"):
      failed = launch(runs, study.folder, flags)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("aborted; the runs' last checkpoints stay", file=sys.stderr)
    return 130
  if failed:
    print(f"{failed} of {len(runs)} runs have not finished; launch again to go on with them")
  return int(failed > 0)


def _to_launch(study: Study, only: str) -> list[Run]:
  """The runs that are missing or were cut short, after a line about all of them."""
  try:
    chosen = [run for run in study.runs if re.search(only, run.name)]
  except re.error as error:
    raise UserError(f"--only {only!r} is no regular expression: {error}") from None
  if not chosen:
    raise UserError(f"--only {only!r}: no run's name has that; --dry_run shows them")
  states = {run.name: run.state() for run in chosen}
  told = ", ".join(f"{count} {state}" for state, count in Counter(states.values()).items())
  print(f"{study.name}, {len(chosen)} runs in {study.folder}: {told}", flush=True)
  return [run for run in chosen if states[run.name] not in (FINISHED, RUNNING)]


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
