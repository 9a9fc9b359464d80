"""Which training samples are shown before a question, its demonstrations.

`make_support` finds the questions and the pool; `read` compares their media where the choice or
the guard against leakage needs it; `episodes` then gives the episodes of any number of shots and
any seed. Questions and their order are the same for all of them, and at the same seed the support
of fewer shots is a subset of that of more.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from medflax.data.documents import Dataset, Episode
from medflax.data.folder import ALL_TASKS
from medflax.data.mixture import resolve
from medflax.data.support import (
  PoolSource,
  Subset,
  codes,
  draw,
  draw_balanced,
  select,
  split_codes,
)
from medflax.evals.similarity import Embed, MediaTable, most_similar, similarities, word_vectors
from medflax.metrics.text import normalise
from medflax.utils import UserError, nearest

IMAGE, TEXT = "image", "text"
# By what each way of choosing compares a candidate with the question; by nothing: it is chance.
TYPES: dict[str, tuple[str, ...]] = {
  "random": (),
  "balanced": (),
  "image": (IMAGE,),
  "text": (TEXT,),
  "image_text": (IMAGE, TEXT),
}
# From the most similar to the order in which they are shown.
ORDERS: dict[str, Callable[[np.random.Generator, list[int]], list[int]]] = {
  "random": lambda rng, ranked: rng.permutation(np.array(ranked, int)).tolist(),
  "nearest_first": lambda rng, ranked: ranked,
  "nearest_last": lambda rng, ranked: ranked[::-1],
}
# The candidates for a set of questions, the best or first drawn first.
_Choose = Callable[[np.random.Generator, int], Iterator[int]]
LEAKAGE = ("group", "exclude")
_KEPT = 64  # demonstrations that stay decoded: all, if they are fixed


@dataclasses.dataclass(frozen=True)
class Demonstrations:
  """`config.evals.<name>.demonstrations`.

  Neither the question nor any sample of its group is ever among its demonstrations.

  Attributes:
    type: "random": those of groups not drawn yet first; "balanced": the same number of every
      answer, as nearly as can be; "image": those of the most similar media, by the cosine of their
      mean features (RICES; Yang et al., 2022); "text": those of the most similar question, by the
      cosine of TF-IDF; "image_text": by the weighted sum of both.
    topic: whether candidates of the question's own topic come before any other; RICES and random
      draws as published know no topics.
    order: "random", "nearest_first" or "nearest_last"; "": "nearest_last" by similarity, as in
      OpenFlamingo's evaluation, else "random". What is nearest of the topic is nearer than others.
    fixed: whether all questions have the same demonstrations, of groups that none of them has.
    leakage: "exclude": nor are samples whose media are nearly identical to the question's, by the
      limits of `medflax.leakage`; "group": the group alone counts.
    weight: of the media's similarity in "image_text"; that of the questions' weighs the rest of 1.
  """

  type: str = "random"
  topic: bool = True
  order: str = ""
  fixed: bool = False
  leakage: str = "group"
  weight: float = 0.5

  @property
  def weights(self) -> dict[str, float]:
    """Of each kind of similarity; empty: chance decides."""
    shares = {IMAGE: self.weight, TEXT: 1 - self.weight}
    compared = TYPES[self.type]
    return {kind: shares[kind] if len(compared) > 1 else 1.0 for kind in compared}


def make_demonstrations(name: str, fields: Mapping[str, Any]) -> Demonstrations:
  """`config.evals.<name>.demonstrations` with its `order` settled.

  Raises:
    UserError: naming the field that is unknown or has a value that it cannot have.
  """
  place = f"config.evals.{name}.demonstrations"
  known = [field.name for field in dataclasses.fields(Demonstrations)]
  for key in fields.keys() - set(known):
    raise UserError(f"unknown field {place}.{key}{nearest(key, known)}")
  made = Demonstrations(**dict(fields.items()))
  for key, options in (("type", TYPES), ("order", ("", *ORDERS)), ("leakage", LEAKAGE)):
    if (value := getattr(made, key)) not in options:
      raise UserError(f"{place}.{key} is {value!r}{nearest(str(value), filter(None, options))}")
  compared = TYPES[made.type]
  if not compared and made.order.startswith("nearest"):
    raise UserError(f"{place}.order={made.order} needs a type of similarity, not {made.type}")
  if compared and made.fixed:
    raise UserError(
      f"{place}.fixed=True shows all questions the same, so none is nearest to them; set type to "
      "random or balanced"
    )
  if not 0 <= made.weight <= 1:
    raise UserError(f"{place}.weight is {made.weight}; it must be from 0 to 1")
  return dataclasses.replace(made, order=made.order or ("nearest_last" if compared else "random"))


@runtime_checkable
class ChosenSupport(Protocol):
  """Demonstrations that are ready to be shown."""

  @property
  def notes(self) -> Sequence[str]:
    """What a reader should know of them."""
    ...

  def episodes(self, num_shots: int, seed: int) -> Sequence[Episode]:
    """All questions with their demonstrations; `seed` is of the draw of these alone."""
    ...


@runtime_checkable
class Support(Protocol):
  """Questions and what their demonstrations are chosen from."""

  def read(self, embed: Embed) -> ChosenSupport:
    """Compares media, where that is needed; `embed` gives a vector for each."""
    ...


@runtime_checkable
class _Pooled(Dataset, Protocol):
  """A data set of finite size."""

  def samples(self, task: str, split: str) -> PoolSource: ...


def make_support(
  name: str,
  demonstrations: Demonstrations,
  dataset: Dataset,
  *,
  task: str,
  split: str,
  where: Mapping[str, Any],
  num_shots: Sequence[int],
  num_episodes: int,
  num_seeds: int = 1,
) -> Support:
  """The support of evaluation `name`; decodes no media.

  Args:
    name: of the evaluation, for messages.
    demonstrations: how they are chosen.
    dataset: a data set or mixture. Generated data draw their own, at random.
    task: of the data set's.
    split: of the questions; demonstrations are of the training split and of any task.
    where: see `medflax.data.support.select`; of questions and demonstrations.
    num_shots: all numbers of shots that will be asked for.
    num_episodes: questions, or all there are if fewer.
    num_seeds: draws of demonstrations.

  Raises:
    UserError: if the data set has no such samples, or too few.
  """
  part, task = resolve(dataset, task)
  place = f"config.evals.{name}"
  if not isinstance(part, _Pooled):
    if demonstrations.type != "random" or demonstrations.fixed or demonstrations.leakage != "group":
      raise UserError(
        f"{place}.demonstrations: {part.name} generates its own; only type=random, fixed=False, "
        "leakage=group can be had"
      )
    if where or num_seeds > 1:
      field = "where" if where else "num_seeds"
      raise UserError(f"{place}.{field}: {part.name} generates its questions; leave it out")
    return _Generated(part, task, split, num_episodes)
  if getattr(part, "interleaved", False):
    raise UserError(f"{place}: data set {part.name!r} holds documents, not questions")
  queries = select(f"{place}.where", part.samples(task, split), where)
  order = np.random.default_rng(0).permutation(len(queries))[:num_episodes]
  pool: PoolSource = Subset(queries, [])
  if most := max(num_shots, default=0):
    pool = select(f"{place}.where", part.samples(ALL_TASKS, "train"), where)
  return _Pool(place, demonstrations, Subset(queries, order.tolist()), pool, most)


@dataclasses.dataclass(frozen=True)
class _Generated:
  """Episodes of a data set that draws the support itself."""

  dataset: Dataset
  task: str
  split: str
  num_episodes: int
  notes: Sequence[str] = ()

  def read(self, embed: Embed) -> ChosenSupport:
    del embed
    return self

  def episodes(self, num_shots: int, seed: int) -> Sequence[Episode]:
    del seed
    return self.dataset.episodes(self.task, self.split, num_shots, self.num_episodes)


class _Pool:
  """Questions, and a pool whose samples are known without decoding them."""

  def __init__(
    self,
    place: str,
    demonstrations: Demonstrations,
    queries: PoolSource,
    pool: PoolSource,
    most: int,
  ):
    self.place, self.demonstrations, self.most = place, demonstrations, most
    self.queries, self.pool = queries, pool
    _, (query_groups, self.groups) = codes(queries.groups, pool.groups)
    told = lambda source: source.topics if demonstrations.topic else [""] * len(source)
    num_topics, (query_topics, self.topics) = codes(told(queries), told(pool))
    self._by_topic = split_codes(self.topics, num_topics)
    self._all, self._classes = np.arange(len(pool)), {}
    every = range(len(queries))
    # Questions that have the same demonstrations; whatever is chosen is chosen for such a set.
    self.sets = [list(every)] if demonstrations.fixed else [[index] for index in every]
    self.excluded = [frozenset(query_groups[members].tolist()) for members in self.sets]
    self._asked = [tuple(np.unique(query_topics[members]).tolist()) for members in self.sets]
    self.left_out: list[set[int]] = [set() for _ in self.sets]
    self._check()

  def _check(self) -> None:
    """Raises UserError unless every set of questions finds as many candidates as it may need."""
    sizes = collections.Counter(self.groups.tolist())
    for members, excluded, left_out in zip(self.sets, self.excluded, self.left_out, strict=True):
      others = [i for i in left_out if int(self.groups[i]) not in excluded]
      found = len(self.pool) - sum(sizes[group] for group in excluded) - len(others)
      if found < self.most:
        group = self.queries.groups[members[0]]
        whose = "any question's group" if len(members) > 1 else f"the question's group {group!r}"
        copies = f" and {len(others):,} copies of its media" if others else ""
        raise UserError(
          f"{self.place}: {self.most} shots need as many candidates, and without {whose}{copies} "
          f"the training split has {found:,} of {len(self.pool):,}; lower num_shots"
        )

  def read(self, embed: Embed) -> ChosenSupport:
    """See `Support`."""
    weights, exclude = self.demonstrations.weights, self.demonstrations.leakage == "exclude"
    notes, parts = [], []
    if self.most and (exclude or IMAGE in weights):
      table = MediaTable(embed if IMAGE in weights else None, prints=exclude)
      asked = table.read(self.queries, "reading questions")
      held = table.read(self.pool, "reading candidates")
      if exclude:
        notes = self._leave_out(table.near(asked, held))
      if IMAGE in weights:
        parts.append((weights[IMAGE], table.vectors(asked), table.vectors(held)))
    if self.most and TEXT in weights:
      questions = [
        [source.text(i).question for i in range(len(source))]
        for source in (self.queries, self.pool)
      ]
      parts.append((weights[TEXT], *word_vectors(*questions)))
    if parts:
      return _Chosen(self, self._nearest(parts), notes)
    draws = {"random": self._random, "balanced": self._balanced}
    return _Chosen(self, draws.get(self.demonstrations.type, self._random), notes)

  def _leave_out(self, near: Sequence[set[int]]) -> list[str]:
    """Bars copies of questions' media; the notes that tell of it."""
    self.left_out = [set().union(*(near[i] for i in members)) for members in self.sets]
    self._check()
    barred = [
      {i for i in left_out if int(self.groups[i]) not in excluded}
      for left_out, excluded in zip(self.left_out, self.excluded, strict=True)
    ]
    if not any(barred):
      return []
    return [
      f"demonstrations leave out {len(set().union(*barred)):,} of {len(self.pool):,} candidates, "
      "whose media are nearly identical to those of a question in another group"
    ]

  def _eligible(self, number: int) -> Callable[[int], bool]:
    excluded, left_out = self.excluded[number], self.left_out[number]
    return lambda i: int(self.groups[i]) not in excluded and i not in left_out

  def _on_topic(self, number: int) -> Int[np.ndarray, " n"]:
    """Candidates of the topics of a set of questions."""
    return np.concatenate([self._by_topic[topic] for topic in self._asked[number]])

  def _random(self, rng: np.random.Generator, number: int) -> Iterator[int]:
    stages = (self._on_topic(number), self._all)
    return draw(rng, stages, self.groups, self._eligible(number))

  def _balanced(self, rng: np.random.Generator, number: int) -> Iterator[int]:
    eligible, given = self._eligible(number), set()
    for index in draw_balanced(rng, self._by_answer(number), self.groups, eligible):
      given.add(index)
      yield index
    yield from draw(rng, (self._all,), self.groups, lambda i: i not in given and eligible(i))

  def _by_answer(self, number: int) -> list[Int[np.ndarray, " _"]]:
    """Candidates of the topics of a set of questions, one array for each answer."""
    topics = self._asked[number]
    if topics not in self._classes:
      members = self._on_topic(number)
      count, [answers] = codes([normalise(self.pool.text(i).answer) for i in members.tolist()])
      self._classes[topics] = [members[places] for places in split_codes(answers, count) if count]
    return self._classes[topics]

  def _nearest(self, parts: list) -> _Choose:
    ranked = []
    for number, scores in enumerate(similarities(parts)):
      eligible = ~np.isin(self.groups, list(self.excluded[number]))
      eligible[list(self.left_out[number])] = False
      same_topic = np.isin(self.topics, self._asked[number])
      ranked.append(most_similar(scores, eligible, same_topic, self.most))
    return lambda rng, number: iter(ranked[number].tolist())


@dataclasses.dataclass(frozen=True)
class _Chosen:
  """Candidates of a `_Pool` in the order of choice."""

  pool: _Pool
  choose: _Choose
  notes: Sequence[str]

  def episodes(self, num_shots: int, seed: int) -> Sequence[Episode]:
    """See `ChosenSupport`."""
    support: list[tuple[int, ...]] = [()] * len(self.pool.queries)
    for number, members in enumerate(self.pool.sets):
      rng = np.random.default_rng((seed, number))
      ranked = list(itertools.islice(self.choose(rng, number), num_shots))
      shown = ORDERS[self.pool.demonstrations.order](rng, ranked)
      for index in members:
        support[index] = tuple(shown)
    return _Episodes(self.pool.queries, self.pool.pool, support)


class _Episodes(Sequence[Episode]):
  """Questions with the candidates at given positions, decoded when they are asked for."""

  def __init__(self, queries: PoolSource, pool: PoolSource, support: Sequence[tuple[int, ...]]):
    self._queries, self._support = queries, support
    self._read = functools.lru_cache(_KEPT)(pool.__getitem__)

  def __len__(self) -> int:
    return len(self._support)

  def __getitem__(self, index: int) -> Episode:
    return Episode(self._queries[index], tuple(self._read(i) for i in self._support[index]))
