"""What a data set holds, counted: its texts all, its media from a subset drawn by a seed.

Texts are taken in one after another and not kept, so that there may be millions.
"""

import collections
import dataclasses
import itertools
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
TYPE_KEY = "answer_type"
_NAMED = 3  # examples in a warning
_MOST_VALUES = 10_000  # a key of more than so many different ones is not counted


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
    meta: by key of `Sample.meta`, how often each value occurs that is not empty; without the keys
      that are no categories, as texts are.
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
  tally = _Tally()
  for split, samples in collection.splits.items():
    for text in tqdm.tqdm(samples.texts(), split, len(samples), disable=None, leave=False):
      tally.add(split, text)
  drawn = list(_read(collection, tally.keys, num_drawn, seed))
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
    tasks=tally.tasks,
    openings=tally.openings,
    types=tally.types,
    answers=sum(tally.answers.values(), collections.Counter()),
    question_words=tally.question_words,
    answer_words=tally.answer_words,
    meta=tally.meta,
    sizes=sizes,
    drawn=drawn,
    warnings=[*_text_warnings(collection, tally), *_media_warnings(drawn)],
  )


class _Tally:
  """What the texts say that have been taken in; the names are those of `Survey`.

  Attributes:
    keys: the split and the task of every sample, in order.
    answers: how often each occurs, by task.
    unanswered: ids of samples without an answer.
  """

  def __init__(self):
    counts = lambda: collections.defaultdict(collections.Counter)
    self.tasks: dict[str, collections.Counter[str]] = counts()
    self.answers: dict[str, collections.Counter[str]] = counts()
    self.meta: dict[str, collections.Counter[str]] = counts()
    self.openings: collections.Counter[str] = collections.Counter()
    self.types: collections.Counter[str] = collections.Counter()
    self.question_words: list[int] = []
    self.answer_words: list[int] = []
    self.unanswered: list[str] = []
    self.keys: list[tuple[str, str]] = []
    self._known: dict[tuple[str, str], tuple[str, str]] = {}  # equal keys are one object
    self._texts: set[str] = set()  # keys of meta that are no categories

  def add(self, split: str, sample: Sample) -> None:
    """Takes in one sample."""
    key = (split, sample.task)
    self.keys.append(self._known.setdefault(key, key))
    self.tasks[split][sample.task] += 1
    self.answers[sample.task][sample.answer] += 1
    self.openings[" ".join(sample.question.lower().split()[:2])] += 1
    self.types[answer_type(sample)] += 1
    self.question_words.append(len(sample.question.split()))
    self.answer_words.append(len(sample.answer.split()))
    if not sample.answer.strip():
      self.unanswered.append(sample.id)
    for name, value in sample.meta.items():
      if name not in self._texts and value not in ("", None):
        self.meta[name][label(value)] += 1
        if len(self.meta[name]) > _MOST_VALUES:
          del self.meta[name]
          self._texts.add(name)


def answer_type(sample: Sample) -> str:
  """What the data say, else "closed" where there are choices or the answer is yes or no."""
  said = sample.meta.get(TYPE_KEY)
  if said in (OPEN, CLOSED):
    return said
  return CLOSED if sample.choices or sample.answer.lower() in ("yes", "no") else OPEN


def label(value: Any) -> str:
  """A value of `Sample.meta` as text."""
  if isinstance(value, list) and all(isinstance(item, str) for item in value):
    return ", ".join(value)
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(
  collection: Collection, keys: Sequence[tuple[str, str]], count: int, seed: int
) -> Iterator[Drawn]:
  sizes = [len(samples) for samples in collection.splits.values()]
  first = dict(zip(collection.splits, itertools.accumulate(sizes, initial=0), strict=False))
  chosen = _spread(keys, count, seed)
  for position in tqdm.tqdm(chosen, "reading media", disable=None, leave=False):
    split, _ = keys[position]
    samples, index = collection.splits[split], position - first[split]
    try:
      yield Drawn(split, samples[index])
    except UserError as error:
      yield Drawn(split, samples.text(index), str(error))


def _spread(keys: Sequence[tuple[str, str]], count: int, seed: int) -> list[int]:
  """At most `count` positions, one of every key in turn, at random within a key; sorted."""
  turns: collections.Counter[tuple[str, str]] = collections.Counter()
  order = []
  for position in np.random.default_rng(seed).permutation(len(keys)).tolist():
    order.append((turns[keys[position]], len(order), position))
    turns[keys[position]] += 1
  return sorted(position for _, _, position in sorted(order)[:count])


def _text_warnings(collection: Collection, tally: _Tally) -> Iterator[str]:
  splits: dict[str, set[str]] = collections.defaultdict(set)
  for split, part in collection.splits.items():
    for group in part.groups:
      splits[group].add(split)
  if shared := sorted(group for group, held in splits.items() if len(held) > 1):
    yield f"groups in more than one split: {len(shared):,} ({_some(shared)})"
  if not any(any(part.own_groups) for part in collection.splits.values()):
    yield "no sample names its group (patient, case): splits may share patients"
  if empty := tally.unanswered:
    yield f"samples without an answer: {len(empty):,} ({_some(empty)})"
  for task, answers in tally.answers.items():
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
