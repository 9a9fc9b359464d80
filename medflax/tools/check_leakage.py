"""Looks for test samples in training data: the same images, patients or texts.

python -m medflax.tools.check_leakage data/mine:train --against data/mine:test --to leakage
python -m medflax.tools.check_leakage data/a data/b --against data/c:test --tower CLIP --to leakage

A folder has a manifest or was written by prepare_data; without `:SPLIT` all its splits count.
`--config.data.exclude=leakage/leakage.csv` then trains without what was found.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence

from medflax.data.browse import browse
from medflax.leakage import check as reason
from medflax.leakage.check import Limits, compare
from medflax.leakage.embed import TowerEmbedder
from medflax.leakage.page import PAGE, check_free, summary, write_findings
from medflax.leakage.sides import Part, open_parts, read_side
from medflax.utils import UserError, pick

# What samples may be left out for, and what they are left out for by default.
ALL = tuple(name for name in reason.REASONS if name != reason.COMPANY)
EXCLUDED = (reason.PIXELS, reason.PHASH, reason.CROP, reason.SLICE, reason.GROUP)


def check_apart(train: Sequence[Part], evaluated: Sequence[Part]) -> None:
  """Raises UserError if a split stands on both sides."""
  both = {part.place for part in train} & {part.place for part in evaluated}
  if both:
    root, split = sorted(both, key=str)[0]
    raise UserError(f"{root}:{split} is on both sides; name a split on each, as FOLDER:train")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m medflax.tools.check_leakage",
    description="Looks for test samples in training data.",
  )
  add = parser.add_argument
  add("train", nargs="+", metavar="FOLDER[:SPLIT]", help="training data")
  add("--against", nargs="+", required=True, metavar="FOLDER[:SPLIT]", help="what is evaluated")
  add("--to", type=pathlib.Path, required=True, help="the folder to write")
  add(
    "--exclude",
    default="",
    help=f"reasons to leave samples out for, of {','.join(ALL)}; default: {','.join(EXCLUDED)}, "
    f"and {reason.EMBEDDING} with --tower",
  )
  add("--by", choices=("group", "sample"), default="group", help="leave out their whole groups")
  add("--tower", default="", help="folder of an imported tower; default: the shipped one")
  add("--slices", action="store_true", help="compare images with every slice of volumes")
  for name, value in vars(Limits()).items():
    add(f"--{name}", type=float, default=value, help=f"the least score, default {value}")
  add("--pictures", type=int, default=60, help="pairs shown on the page, default 60")
  return parser


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  flags = _parser().parse_args(argv)
  limits = Limits(**{name: getattr(flags, name) for name in vars(Limits())})
  default = (*EXCLUDED, reason.EMBEDDING) if flags.tower else EXCLUDED
  reasons = tuple(flags.exclude.split(",")) if flags.exclude else default
  try:
    for name in reasons:
      pick(dict.fromkeys(ALL), name, "reason")
    check_free(flags.to)
    opened = functools.cache(browse)
    train, evaluated = open_parts(flags.train, opened), open_parts(flags.against, opened)
    check_apart(train, evaluated)
    read = functools.partial(read_side, slices=flags.slices, embedder=TowerEmbedder(flags.tower))
    findings = compare(read(train, "training data"), read(evaluated, "evaluated data"), limits)
    counts = write_findings(
      findings,
      flags.to,
      limits=limits,
      reasons=reasons,
      whole_groups=flags.by == "group",
      num_pictured=flags.pictures,
    )
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print("\n".join([*summary(counts, flags.to), f"report: {flags.to / PAGE}"]))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
