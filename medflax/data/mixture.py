"""Several data sets as one, for mixtures: `config.data.source = "mixture"`."""

import hashlib
from collections.abc import Mapping, Sequence

from medflax.data.documents import Dataset, Episode
from medflax.utils import UserError, pick


class Mixture:
  """Data sets by name; task "t" of the one named "a" is the task "a/t".

  Attributes:
    name: "mixture".
    version: a hash of the names and versions of its parts.
    parts: the data sets.
    tasks: of all parts.
    media_per_sample: the most that a sample of any part has.
    skipped, noted: the rows that parts have left out, and their odd files, each with the name of
      its part.
  """

  name = "mixture"

  def __init__(self, parts: Mapping[str, Dataset]):
    """Raises UserError if there is no part."""
    if not parts:
      raise UserError("data.sources names no data set; data.source=mixture needs one at least")
    self.parts = parts
    versions = " ".join(f"{name} {part.name} {part.version}" for name, part in parts.items())
    self.version = hashlib.sha256(versions.encode()).hexdigest()[:12]
    self.tasks = tuple(f"{name}/{task}" for name, part in parts.items() for task in part.tasks)
    kinds = {kind for part in parts.values() for kind in part.media_per_sample}
    self.media_per_sample: Mapping[str, int] = {
      kind: max(part.media_per_sample.get(kind, 0) for part in parts.values())
      for kind in sorted(kinds)
    }
    self.skipped, self.noted = (
      [{"source": name, **row} for name, part in parts.items() for row in getattr(part, kind, ())]
      for kind in ("skipped", "noted")
    )

  def episodes(
    self, task: str, split: str, num_shots: int | tuple[int, int], num_episodes: int | None = None
  ) -> Sequence[Episode]:
    """The episodes of the part that has the task."""
    part, task = resolve(self, task)
    return part.episodes(task, split, num_shots, num_episodes)


def resolve(dataset: Dataset, task: str) -> tuple[Dataset, str]:
  """The data set that has a task, and the task's name there.

  Raises:
    UserError: if `dataset` is a mixture without such a task.
  """
  if not isinstance(dataset, Mixture):
    return dataset, task
  name, _, task = task.partition("/")
  return pick(dataset.parts, name, "part of the data"), task
