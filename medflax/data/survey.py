"""What a data set holds, counted: its texts all, its media from a subset drawn by a seed."""

import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from medflax.data.browse import Collection
from medflax.data.documents import Sample
from medflax.utils import UserError

CLOSED, OPEN = "closed", "open"
DOMINANT, _LEAST = 0.95, 20  # an answer with more than this share of a task of at least so many
_TYPE_KEY = "answer_type"
_NAMED = 3  # examples in a warning


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A sample whose media were read; `problem` tells why they could not be."""

  split: str
  sample: Sample
  problem: str = ""


@dataclasses.dataclass(frozen=True)
class Survey:
  """A data set at a glance.

  Attributes:
    collection: the data set.
    groups: different groups of each split; those of all splits under "".
    tasks: samples by task, for each split.
    openings: first two words of the questions.
    types: "open" and "closed" questions.
    answers: how often each answer occurs.
    question_words, answer_words: numbers of words, one a sample.
    meta: by key of `Sample.meta`, how often each value occurs.
    sizes: shapes of the media that were read, by kind.
    drawn: the samples that were read.
    warnings: what needs attention, a sentence each.
  """

  collection: Collection
  groups: Mapping[str, int]
  tasks: Mapping[str, Mapping[str, int]]
  openings: Mapping[str, int]
  types: Mapping[str, int]
  answers: Mapping[str, int]
  question_words: Sequence[int]
  answer_words: Sequence[int]
  meta: Mapping[str, Mapping[str, int]]
  sizes: Mapping[str, Mapping[str, int]]
  drawn: Sequence[Drawn]
  warnings: Sequence[str]


def survey(collection: Collection, *, num_drawn: int, seed: int = 0) -> Survey:
  """Counts all texts, and reads the media of `num_drawn` samples, in turn of every split and task.

  The same seed draws the same samples.
  """
  texts = [
    (split, index, samples.text(index))
    for split, samples in collection.splits.items()
    for index in tqdm.trange(len(samples), desc=split, disable=None, leave=False)
  ]
  tasks: dict[str, collections.Counter[str]] = {
    split: collections.Counter() for split in collection.splits
  }
  meta: dict[str, collections.Counter[str]] = {}
  for split, _, sample in texts:
    tasks[split][sample.task] += 1
    for key, value in sample.meta.items():
      meta.setdefault(key, collections.Counter())[_label(value)] += 1
  samples = [sample for _, _, sample in texts]
  drawn = list(_read(collection, texts, num_drawn, seed))
  sizes: dict[str, collections.Counter[str]] = {}
  for item in drawn:
    for media in item.sample.media:
      size = " × ".join(map(str, media.array.shape[:-1]))
      sizes.setdefault(media.kind, collections.Counter())[size] += 1
  return Survey(
    collection=collection,
    groups={
      **{split: len(set(part.groups)) for split, part in collection.splits.items()},
      "": len({group for part in collection.splits.values() for group in part.groups}),
    },
    tasks=tasks,
    openings=collections.Counter(" ".join(s.question.lower().split()[:2]) for s in samples),
    types=collections.Counter(map(answer_type, samples)),
    answers=collections.Counter(sample.answer for sample in samples),
    question_words=[len(sample.question.split()) for sample in samples],
    answer_words=[len(sample.answer.split()) for sample in samples],
    meta=meta,
    sizes=sizes,
    drawn=drawn,
    warnings=[*_text_warnings(collection, samples), *_media_warnings(drawn)],
  )


def answer_type(sample: Sample) -> str:
  """What the data say, else "closed" where there are choices or the answer is yes or no."""
  said = sample.meta.get(_TYPE_KEY)
  if said in (OPEN, CLOSED):
    return said
  return CLOSED if sample.choices or sample.answer.lower() in ("yes", "no") else OPEN


def _label(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(
  collection: Collection, texts: Sequence[tuple[str, int, Sample]], count: int, seed: int
) -> Iterator[Drawn]:
  chosen = _spread([(split, sample.task) for split, _, sample in texts], count, seed)
  for position in tqdm.tqdm(chosen, "reading media", disable=None, leave=False):
    split, index, text = texts[position]
    try:
      yield Drawn(split, collection.splits[split][index])
    except UserError as error:
      yield Drawn(split, text, str(error))


def _spread(keys: Sequence[tuple[str, str]], count: int, seed: int) -> list[int]:
  """At most `count` positions, one of every key in turn, at random within a key; sorted."""
  turns: collections.Counter[tuple[str, str]] = collections.Counter()
  order = []
  for position in np.random.default_rng(seed).permutation(len(keys)).tolist():
    order.append((turns[keys[position]], len(order), position))
    turns[keys[position]] += 1
  return sorted(position for _, _, position in sorted(order)[:count])


def _text_warnings(collection: Collection, samples: Sequence[Sample]) -> Iterator[str]:
  splits: dict[str, set[str]] = collections.defaultdict(set)
  for split, part in collection.splits.items():
    for group in part.groups:
      splits[group].add(split)
  if shared := sorted(group for group, held in splits.items() if len(held) > 1):
    yield f"groups in more than one split: {len(shared):,} ({_some(shared)})"
  if not any(any(part.own_groups) for part in collection.splits.values()):
    yield "no sample names its group (patient, case): splits may share patients"
  if empty := [sample.id for sample in samples if not sample.answer.strip()]:
    yield f"samples without an answer: {len(empty):,} ({_some(empty)})"
  by_task: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  for sample in samples:
    by_task[sample.task][sample.answer] += 1
  for task, answers in by_task.items():
    (answer, most), total = answers.most_common(1)[0], answers.total()
    if total >= _LEAST and most > DOMINANT * total:
      yield f"task {task}: {most / total:.1%} of {total:,} answers are {answer!r}"
  if collection.bad:
    first = collection.bad[0]
    yield (
      f"rows that cannot be used: {len(collection.bad):,}, the first (line {first['line']}): "
      f"{first['reason']}"
    )


def _media_warnings(drawn: Sequence[Drawn]) -> Iterator[str]:
  if broken := [item for item in drawn if item.problem]:
    of = f"{len(broken):,} of the {len(drawn):,} drawn"
    yield f"samples that cannot be read: {of}, the first: {broken[0].problem}"
  constant = [
    item.sample.id
    for item in drawn
    if any(media.array.min() == media.array.max() for media in item.sample.media)
  ]
  if constant:
    of = f"{len(constant):,} of the {len(drawn):,} drawn"
    yield f"samples with a picture of a single value: {of} ({_some(constant)})"


def _some(names: Sequence[str]) -> str:
  more = len(names) - _NAMED
  return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
