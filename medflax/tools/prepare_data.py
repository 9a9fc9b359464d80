"""Prepares a data set from its files as downloaded, for `data.source=prepared`.

python -m medflax.tools.prepare_data vqa_rad --from VQA_RAD_DIR --to data/vqa_rad

Interrupted, the same command goes on where it was. Without a name it lists the data sets.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from medflax.data.builders import BUILDERS
from medflax.data.builders.prepare import prepare, shortfalls
from medflax.data.builders.store import NOTED, REJECTED
from medflax.utils import UserError, pick


def describe() -> str:
  """All data sets, a line each: name, media, tasks, address."""
  return "\n".join(
    f"{builder.name:22} {'+'.join(builder.media) or 'text':14} {', '.join(builder.tasks):40} "
    f"{builder.url}"
    for builder in BUILDERS.values()
  )


def report(summary: dict[str, Any]) -> list[str]:
  """What was prepared, what was rejected, and what differs from the published counts."""
  counts = [f"{count:,} {split}" for split, count in summary["records"].items()]
  media = [f"{count:,} {kinds}" for kinds, count in summary["media"].items()]
  lines = [f"{summary['name']} {summary['version']}: {', '.join([*counts, *media])}"]
  lines.append(f"licence: {summary['licence'] or 'none stated'} ({summary['url']})")
  rejected = sum(summary["rejected"].values())
  if rejected:
    lines.append(f"rejected: {rejected:,} records or rows, listed in {REJECTED}")
  if summary["noted"]:
    lines.append(f"noted: {summary['noted']:,} media files with something odd, listed in {NOTED}")
  lines += [f"differs: {line}" for line in shortfalls(summary)]
  lines += [
    f"shared: {count:,} groups ({summary['group']}) lie in both of {pair}"
    for pair, count in summary["shared_groups"].items()
  ]
  return lines


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = argparse.ArgumentParser(
    prog="python -m medflax.tools.prepare_data",
    description="Prepares a data set from its files as downloaded.",
  )
  parser.add_argument("name", nargs="?", help="of the data set; without it, they are listed")
  parser.add_argument("--from", dest="source", type=pathlib.Path, help="the folder as downloaded")
  parser.add_argument("--to", dest="target", type=pathlib.Path, help="the folder to write")
  flags = parser.parse_args(argv)
  if flags.name is None:
    print(describe())
    return 0
  try:
    builder = pick(BUILDERS, flags.name, "data set")
    if flags.source is None or flags.target is None:
      raise UserError(f"--from and --to are needed; --from holds {builder.layout}")
    summary = prepare(builder, flags.source, flags.target)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("interrupted; the same command goes on", file=sys.stderr)
    return 130
  print("\n".join(report(summary)))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
