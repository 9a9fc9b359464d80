"""A data set at a glance: one HTML file with its samples, counts and what needs attention.

python -m medflax.tools.explore data/vqa_rad --to vqa_rad.html

A folder has a manifest or was written by prepare_data; `phantom` is the generated data set. All
texts are counted, but only the media of a subset of the samples are read.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from medflax.data.browse import browse
from medflax.data.documents import IMAGE, SIGNAL, VOLUME, Media
from medflax.data.survey import TYPE_KEY, Drawn, Survey, label, survey
from medflax.evals.base import PICTURES
from medflax.report.contact_sheet import Card, contact_sheet
from medflax.report.page import picture
from medflax.utils import UserError, write_atomic

SIDES = {IMAGE: 240, VOLUME: 120, SIGNAL: 480}  # pixels: the most a picture is high
NUM_DRAWN = 120
_AXES = {IMAGE: "height × width", VOLUME: "depth × height × width", SIGNAL: "samples in time"}
_MOST_PICTURES = 8  # of one sample
_MOST_VALUES = 0.5  # keys whose values are mostly different, such as a date, are no categories


def explore(where: str, target: pathlib.Path, *, num_drawn: int = NUM_DRAWN, seed: int = 0) -> str:
  """Writes the page; returns what it says in a line or two.

  Raises:
    UserError: if there is no such data, or `target` exists.
  """
  if target.exists():
    raise UserError(f"{target} exists; remove it or choose another name")
  if num_drawn < 1:
    raise UserError(f"--samples is {num_drawn}; it must be at least 1")
  found = survey(browse(where), num_drawn=num_drawn, seed=seed)
  write_atomic(target, _page(found, seed))
  total = sum(map(len, found.collection.splits.values()))
  lines = [f"{found.collection.name}: {total:,} samples, {len(found.drawn):,} shown in {target}"]
  return "\n".join([*lines, *(f"note: {warning}" for warning in found.warnings)])


def _page(found: Survey, seed: int) -> str:
  data, drawn = found.collection, len(found.drawn)
  splits = {split: len(samples) for split, samples in data.splits.items()}
  total = sum(splits.values())
  tasks = sorted({task for counts in found.tasks.values() for task in counts})
  media = sum(len(item.sample.media) for item in found.drawn)
  facts = [
    ("samples", f"{total:,}", ", ".join(f"{count:,} {split}" for split, count in splits.items())),
    ("groups", f"{found.groups['']:,}", f"by {data.group}" if data.group else "as named"),
    ("tasks", f"{len(tasks):,}", ", ".join(tasks[:3]) + (" …" if len(tasks) > 3 else "")),
    ("different answers", f"{len(found.answers):,}", "in all tasks"),
    ("media read", f"{media:,}", f"of {drawn:,} samples"),
  ]
  head = ("split", "samples", "groups")
  rows = [(split, f"{count:,}", f"{found.groups[split]:,}") for split, count in splits.items()]
  tables = {"Splits": (head, rows)}
  if 1 < len(tasks) <= 40:
    cells = [(task, *(f"{found.tasks[split][task]:,}" for split in splits)) for task in tasks]
    tables["Tasks"] = (("task", *splits), cells)
  counts = {
    "Answers": found.answers,
    "Questions begin with": found.openings,
    "Open and closed questions": found.types,
    **{f"Sizes: {kind}s, {_AXES[kind]}": sizes for kind, sizes in found.sizes.items()},
    **{
      f"Key: {key}": values
      for key, values in found.meta.items()
      if key != TYPE_KEY and len(values) <= max(_MOST_VALUES * sum(values.values()), 2)
    },
  }
  return contact_sheet(
    data.name,
    lead=f"Version {data.version}",
    facts=facts,
    warnings=found.warnings,
    tables=tables,
    counts=counts,
    lengths={
      "Words of a question": (found.question_words, "words"),
      "Words of an answer": (found.answer_words, "words"),
    },
    cards=[_card(item) for item in found.drawn],
    note=f"{drawn:,} of {total:,}, drawn by seed {seed} in turn from every split and task.",
  )


def _card(item: Drawn) -> Card:
  sample = item.sample
  pictures = [_picture(media) for media in sample.media[:_MOST_PICTURES]]
  left = len(sample.media) - len(pictures)
  return Card(
    id=sample.id + (f" (and {left} more pictures)" if left else ""),
    split=item.split,
    task=sample.task,
    group=sample.group,
    question=sample.question,
    answer=sample.answer,
    choices=sample.choices,
    meta={key: label(value) for key, value in sample.meta.items() if value is not None},
    pictures=pictures,
    wide=any('class="wide"' in image for image in pictures),
    problem=item.problem,
  )


def _picture(media: Media) -> str:
  return picture(PICTURES[media.kind](media.array), SIDES[media.kind])


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = argparse.ArgumentParser(
    prog="python -m medflax.tools.explore", description="Shows a data set as one HTML file."
  )
  parser.add_argument("where", help="a folder with a manifest, a prepared folder, or 'phantom'")
  parser.add_argument("--to", type=pathlib.Path, required=True, help="the HTML file to write")
  parser.add_argument("--samples", type=int, default=NUM_DRAWN, help="shown; default %(default)s")
  parser.add_argument("--seed", type=int, default=0, help="which samples; default %(default)s")
  flags = parser.parse_args(argv)
  try:
    print(explore(flags.where, flags.to, num_drawn=flags.samples, seed=flags.seed))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
