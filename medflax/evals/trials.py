"""One question asked under one condition, and the blind controls.

All but the last change the media alone; every token stays as it is.

* `shuffled`: the query's media are those of one of its support samples, at random; without support,
  or where the support was chosen because it looks like the query, those of another group's query.
  All queries of one group get the same ones (the same place in the support), so a design that
  balances its answers within groups stays balanced exactly. Media from outside the episode would
  resemble no example: a model that sees well would find no answer to give, and score below chance.
* `no_image`: all media of the prompt are zeros. The tokens that mark them stay, so the prompt is
  the same to the last token and only the pixels are gone.
* `text_only`: the prompt without media and the tokens that mark them: what the words alone tell.

A model that answers from the question or the support's text alone scores as high on the controls.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from medflax.data.documents import Episode
from medflax.evals.answering import Question, Reply
from medflax.metrics.text import exact_match
from medflax.utils import UserError

# The kind and the row in `MediaFeatures` of each media of one sample.
Shown = tuple[tuple[str, int], ...]


UNASKED = Reply("", "")


@dataclasses.dataclass
class Trial:
  """One question asked under one condition; `episode` no longer holds media.

  Attributes:
    seed: number of the draw of support samples.
    question: what the model is asked.
    bare: the same without media.
    shown: the media of each support sample, then those of the query.
    blank_rows: what stands for all of them, in this order, when they are blanked.
    alike: whether the support was chosen for being like the query.
    candidates: the answers that are weighed, as text.
    reply: once there is one.
    scores: of the reply, by metric.
  """

  num_shots: int
  condition: str
  index: int
  episode: Episode
  question: Question
  bare: Question
  shown: tuple[Shown, ...]
  blank_rows: tuple[int, ...]
  seed: int = 0
  alike: bool = False
  candidates: tuple[str, ...] = ()
  reply: Reply = UNASKED
  scores: dict[str, float] = dataclasses.field(default_factory=dict)

  @property
  def kinds(self) -> tuple[str, ...]:
    """The kinds of the query's media."""
    return kinds_of(self.shown[-1])

  @property
  def group(self) -> str:
    """The query's group; a sample without one is a group of its own."""
    return self.episode.query.group or f"sample {self.episode.query.id}"

  @property
  def correct(self) -> bool:
    return exact_match(self.reply.text, self.episode.query.answer)

  def showing(self, condition: str, rows: tuple[int, ...]) -> "Trial":
    """The same trial under another condition, with other media."""
    return dataclasses.replace(
      self, condition=condition, question=self.question.showing(rows), scores={}
    )


def kinds_of(shown: Shown) -> tuple[str, ...]:
  """`("image", "image")`."""
  return tuple(kind for kind, _ in shown)


def rows_of(*samples: Shown) -> tuple[int, ...]:
  """The rows of some samples' media, in order."""
  return tuple(row for shown in samples for _, row in shown)


# What becomes of each trial under a control; None: it cannot be asked so.
Control = Callable[[Sequence[Trial], Sequence[int]], list[Trial | None]]


def shuffled(trials: Sequence[Trial], seed: Sequence[int]) -> list[Trial | None]:
  """The query with the media of an example, or of another group's query."""
  groups: dict[tuple[str, ...], dict[str, Shown]] = defaultdict(dict)
  for trial in trials:
    groups[trial.kinds].setdefault(trial.group, trial.shown[-1])
  foreign = {}
  for kinds, queries in groups.items():
    other = derangement(list(queries), seed)
    foreign |= {(kinds, group): queries[other[group]] for group in other}
  numbers = {group: number for number, group in enumerate(sorted({t.group for t in trials}))}

  def changed(trial: Trial) -> Trial | None:
    support = trial.shown[:-1]
    same = [shown for shown in support if trial.kinds and kinds_of(shown) == trial.kinds]
    if same and not trial.alike:
      place = np.random.default_rng((*seed, numbers[trial.group])).integers(len(same))
      return trial.showing("shuffled", rows_of(*support, same[int(place)]))
    found = foreign.get((trial.kinds, trial.group), ())
    return trial.showing("shuffled", rows_of(*support, found)) if found else None

  return [changed(trial) for trial in trials]


def no_image(trials: Sequence[Trial], seed: Sequence[int]) -> list[Trial | None]:
  """All zeros; a query without media is left out."""
  del seed
  return [trial.showing("no_image", trial.blank_rows) if trial.kinds else None for trial in trials]


def text_only(trials: Sequence[Trial], seed: Sequence[int]) -> list[Trial | None]:
  """No media and no marks; a query without media is left out."""
  del seed
  bare = lambda t: dataclasses.replace(t, condition="text_only", question=t.bare, scores={})
  return [bare(trial) if trial.kinds else None for trial in trials]


CONTROLS: dict[str, Control] = {
  "shuffled": shuffled,
  "no_image": no_image,
  "text_only": text_only,
}
LEFT_OUT = {
  "shuffled": "no example and no other group has media of the same kinds",
  "no_image": "they have no media",
  "text_only": "they have no media",
}


def derangement(names: Sequence[str], seed: Sequence[int]) -> dict[str, str]:
  """Maps every distinct name to another, one to one: a random cycle. Empty for a single name."""
  if len(names) < 2:
    return {}
  order = np.random.default_rng(seed).permutation(len(names))
  cycle = [names[int(index)] for index in order]
  return dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))


def check_support(episode: Episode) -> None:
  """Raises UserError if a support sample is the query or of the query's group."""
  query = episode.query
  for sample in episode.support:
    if sample.id == query.id or (query.group and sample.group == query.group):
      raise UserError(
        f"sample {query.id!r} of group {query.group!r} would be evaluated with {sample.id!r} of "
        "the same group among its shots; give the data set's samples their groups"
      )


def without_media(episode: Episode) -> Episode:
  """The episode's text alone, so that a whole evaluation can be held."""
  query, *support = (dataclasses.replace(s, media=()) for s in (episode.query, *episode.support))
  return Episode(query, tuple(support))
