"""One question asked under one condition, and the blind controls.

A control changes the query's media alone; the support and every token stay as they are.

* `shuffled`: the media are those of another group. Every query of one group gets the same
  foreign media (of the first query of the other group), so a design that balances its answers
  within groups stays balanced exactly.
* `no_image`: the media are all zeros. The token that marks them stays, so the prompt is the same
  to the last token and only the pixels are gone.

A model that answers from the question or the support alone scores as high on the controls.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from medflax.data.documents import Episode
from medflax.data.encode import Encoded
from medflax.metrics.text import exact_match
from medflax.utils import UserError


@dataclasses.dataclass
class Trial:
  """One question asked under one condition; `episode` and `encoded` no longer hold media.

  The media are rows of `MediaFeatures`: those of the support, those of the query, and what
  stands for the query's when it is blanked.
  """

  num_shots: int
  condition: str
  index: int
  episode: Episode
  encoded: Encoded
  kinds: tuple[str, ...]
  support_rows: tuple[int, ...]
  query_rows: tuple[int, ...]
  blank_rows: tuple[int, ...]
  prediction: str = ""
  stop: str = ""

  @property
  def rows(self) -> tuple[int, ...]:
    return self.support_rows + self.query_rows

  @property
  def group(self) -> str:
    """The query's group; a sample without one is a group of its own."""
    return self.episode.query.group or f"sample {self.episode.query.id}"

  @property
  def correct(self) -> bool:
    return exact_match(self.prediction, self.episode.query.answer)


# The query's media rows under a control, for each trial; empty: it cannot be asked so.
Control = Callable[[Sequence[Trial], Sequence[int]], list[tuple[int, ...]]]


def shuffled(trials: Sequence[Trial], seed: Sequence[int]) -> list[tuple[int, ...]]:
  """The media of another group with media of the same kinds, the same for a whole group."""
  groups: dict[tuple[str, ...], dict[str, tuple[int, ...]]] = defaultdict(dict)
  for trial in trials:
    groups[trial.kinds].setdefault(trial.group, trial.query_rows)
  foreign = {}
  for kinds, rows in groups.items():
    other = derangement(list(rows), seed)
    foreign |= {(kinds, group): rows[other[group]] for group in other}
  return [foreign.get((trial.kinds, trial.group), ()) for trial in trials]


def no_image(trials: Sequence[Trial], seed: Sequence[int]) -> list[tuple[int, ...]]:
  """All zeros."""
  del seed
  return [trial.blank_rows for trial in trials]


CONTROLS: dict[str, Control] = {"shuffled": shuffled, "no_image": no_image}
LEFT_OUT = {
  "shuffled": "no other group has media of the same kinds",
  "no_image": "they have no media",
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
