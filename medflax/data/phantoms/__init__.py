"""Phantoms: generated medical-like images and volumes with questions; nothing to download.

Six looks of five modalities, fifteen findings, RadBench's five tasks and novel-word binding, each
in 2D and, with the suffix `_3d`, in 3D. See docs/phantoms.md. NumPy only.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from medflax.data.documents import ENDLESS, IMAGE, VOLUME, Episode, Media, Sample, Source
from medflax.data.manifest import SPLITS
from medflax.data.phantoms.binding import INVENTED_WORDS, binding_episode
from medflax.data.phantoms.findings import FINDINGS, NO_FINDING
from medflax.data.phantoms.looks import LOOKS, MODALITIES
from medflax.data.phantoms.questions import ASKS, Ask, Asked, report
from medflax.data.phantoms.requests import EVAL_LENGTH, check_request
from medflax.data.phantoms.scenes import Scene, render
from medflax.utils import UserError

__all__ = [
  "FINDINGS",
  "INVENTED_WORDS",
  "LOOKS",
  "MODALITIES",
  "NO_FINDING",
  "Phantoms",
  "Scene",
  "render",
]

# (rng, cell, number of shots, media kind, ways) -> (queries, the one asked, support)
Plan = Callable[[np.random.Generator, int, int, str, int], tuple[list[Asked], int, list[Asked]]]


def _question_episode(
  ask: Ask, rng: np.random.Generator, cell: int, num_shots: int, kind: str, ways: int
) -> tuple[list[Asked], int, list[Asked]]:
  """Plans a query of class `cell` and independent support; `ways` is binding's alone."""
  query = ask(rng, cell, kind)
  return [query], 0, [ask(rng, int(rng.integers(2**31)), kind) for _ in range(num_shots)]


class _Task(NamedTuple):
  plan: Plan
  kind: str
  grouped: bool  # whether ways² consecutive episodes of an evaluation split form a group


_PLANS: dict[str, Plan] = {
  **{name: functools.partial(_question_episode, ask) for name, ask in ASKS.items()},
  "binding": binding_episode,
}
_TASKS = {
  name + suffix: _Task(plan, kind, grouped=plan is binding_episode)
  for suffix, kind in (("", IMAGE), ("_3d", VOLUME))
  for name, plan in _PLANS.items()
}
_TASK_IDS = {name: i for i, name in enumerate(_TASKS)}


class Phantoms:
  """The generated data set.

  Attributes:
    image_size: (H, W) of images, uint8 [H, W, 3].
    volume_size: (D, H, W) of volumes, uint8 [D, H, W, 1].
    seed: other seeds give other images.
    ways: how many findings and words a binding episode has.

  Raises:
    UserError: if a size, the seed or `ways` is out of range.
  """

  name = "phantoms"
  version = "1.0"
  tasks = tuple(_TASKS)

  def __init__(
    self,
    image_size: Sequence[int] = (64, 64),
    volume_size: Sequence[int] = (16, 48, 48),
    seed: int = 0,
    ways: int = 2,
  ):
    if len(image_size) != 2 or len(volume_size) != 3 or min(*image_size, *volume_size) < 2:
      raise UserError(
        f"phantoms need image_size (H, W) and volume_size (D, H, W) of 2 or more, "
        f"got {tuple(image_size)} and {tuple(volume_size)}"
      )
    most = min(len(FINDINGS), len(INVENTED_WORDS))
    if not 2 <= ways <= most or seed < 0:
      raise UserError(f"phantoms need 2 ≤ ways ≤ {most} and seed ≥ 0, got {ways} and {seed}")
    self.image_size, self.volume_size = tuple(image_size), tuple(volume_size)
    self.seed, self.ways = seed, ways
    self.media_per_sample: Mapping[str, int] = {IMAGE: 1, VOLUME: 1}

  def episodes(
    self, task: str, split: str, num_shots: int | tuple[int, int], num_episodes: int | None = None
  ) -> Sequence[Episode]:
    """Random access to episodes; see `documents.Dataset`.

    Raises:
      UserError: for an unknown task or split, or a bad `num_shots`.
    """
    shots = check_request(self.name, _TASKS, task, split, num_shots)
    return PhantomEpisodes(self, task, split, shots, num_episodes)


class PhantomEpisodes(Sequence[Episode]):
  """The episodes of a task and split, drawn when asked for.

  Every episode (in evaluation splits: every group of them) has random streams of its own, keyed
  by (seed, split, task, index): splits and tasks share no stream. Training episodes are
  independent draws. In "val" and "test" the index also fixes the query's answer class, so that
  answers are exactly balanced, and the query of an index is the same for every number of shots.
  """

  def __init__(
    self,
    phantoms: Phantoms,
    task: str,
    split: str,
    num_shots: tuple[int, int],
    num_episodes: int | None,
  ):
    self._phantoms, self._name, self._task, self._split = phantoms, task, _TASKS[task], split
    self._low, self._high = num_shots
    self._source = Source(phantoms.name, phantoms.version, split)
    self._train = split == "train"
    self._group_size = phantoms.ways**2 if self._task.grouped and not self._train else 1
    whole_groups = EVAL_LENGTH // self._group_size * self._group_size
    default = ENDLESS if self._train else whole_groups
    self._length = default if num_episodes is None else num_episodes

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Episode:
    if not -self._length <= index < self._length:
      raise IndexError(f"episode {index} of {self._length}")
    index %= self._length
    number = index // self._group_size
    key = (self._phantoms.seed, SPLITS.index(self._split), _TASK_IDS[self._name], number)
    # Two streams: how many labels are drawn, so how many shots, does not change the pixels.
    labels, pixels = (np.random.default_rng((*key, stream)) for stream in range(2))
    cell, shots = int(labels.integers(2**31)), int(labels.integers(self._low, self._high + 1))
    kind, ways = self._task.kind, self._phantoms.ways
    cell = cell if self._train else index
    queries, asked, support = self._task.plan(labels, cell, shots, kind, ways)
    if self._train:
      queries, asked = [queries[asked]], 0
    size = (1, *self._phantoms.image_size) if kind == IMAGE else self._phantoms.volume_size
    arrays = render([a.scene for a in (*queries, *support)], size, pixels)
    arrays = arrays[:, 0] if kind == IMAGE else arrays
    group = f"{self._split}-{self._name}-{number}"
    query = self._sample(
      queries[asked], arrays[asked], f"{self._split}-{self._name}-{index}", group
    )
    shown = [
      self._sample(a, array, f"{group}-s{i}", f"{group}-s{i}")
      for i, (a, array) in enumerate(zip(support, arrays[len(queries) :], strict=True))
    ]
    return Episode(query, tuple(shown))

  def _sample(self, asked: Asked, array: np.ndarray, name: str, group: str) -> Sample:
    scene, kind = asked.scene, self._task.kind
    absent = scene.finding == NO_FINDING
    meta = {
      "modality": LOOKS[scene.look].modality,
      "look": scene.look,
      "finding": scene.finding,
      "side": "" if absent else scene.side,
      "size": "" if absent else scene.size,
      "count": 0 if absent else scene.count,
      "kind": kind,
      "question_type": asked.question_type,
      "caption": report(scene),  # what an expert that sees the image would tell a reader
    }
    return Sample(
      name, (Media(array, kind),), asked.question, asked.answer, self._source, self._name,
      asked.choices, group, meta,
    )  # fmt: skip
