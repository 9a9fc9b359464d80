"""Bar charts: generated images with questions and the table that was drawn.

What phantoms are to vision towers, these are to models that read charts (DePlot, Liu et al. 2023):
labels, ticks and bars are drawn at whatever size is asked for, so that the table can be read off.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from medflax.data.documents import ENDLESS, IMAGE, Episode, Media, Sample, Source
from medflax.data.manifest import SPLITS
from medflax.data.phantoms.questions import pick
from medflax.data.phantoms.requests import EVAL_LENGTH, check_request
from medflax.utils import UserError

HEADER = "Generate underlying data table of the figure below:"  # DePlot's instruction
COLUMNS = ("Group", "Value")
LABELS = tuple("ABCDEFGH")
MAX_BARS, TOP = 4, 10  # TOP: of the axis, in steps of a value
SCALES = (1, 10)  # what a step is worth
SMALLEST = 48  # pixels a side, below which labels are no longer legible

_PAPER = ((255, 255, 255), (244, 244, 248), (250, 246, 236))
_INK = (40, 40, 46)
_GRID = (205, 205, 212)
_BARS = ((31, 98, 168), (205, 92, 46), (58, 138, 82), (126, 82, 152), (90, 96, 108), (190, 44, 60))


class Chart(NamedTuple):
  """What a chart shows.

  Attributes:
    labels: of the bars, from left to right.
    steps: the height of each, 1 to TOP - 1, no two alike.
    scale: what a step is worth; one of SCALES.
  """

  labels: tuple[str, ...]
  steps: tuple[int, ...]
  scale: int

  @property
  def rows(self) -> list[tuple[str, str]]:
    """Each bar's label and value, as they read."""
    pairs = zip(self.labels, self.steps, strict=True)
    return [(label, str(step * self.scale)) for label, step in pairs]


class Asked(NamedTuple):
  """A chart with a question about it."""

  chart: Chart
  question: str
  answer: str
  choices: tuple[str, ...] = ()


def linearised(chart: Chart, line_break: str = " <0x0A> ") -> str:
  """The chart's table as DePlot writes it: cells between bars, `<0x0A>` for the end of a row."""
  return line_break.join(" | ".join(row) for row in (COLUMNS, *chart.rows))


def draw_chart(rng: np.random.Generator, **fixed: int | str) -> Chart:
  """A random chart, whose highest bar is `highest` and whose first is `first`, where given."""
  count = 2 + int(rng.random() * (MAX_BARS - 1))
  labels = rng.permutation(LABELS).tolist()[:count]
  for name in ("highest", "first"):
    if name in fixed and fixed[name] not in labels:
      labels[0] = str(fixed[name])
  labels = rng.permutation(labels).tolist()
  steps = (1 + rng.permutation(TOP - 1)[:count]).tolist()
  if "highest" in fixed:  # exchange two heights
    here, most = labels.index(str(fixed["highest"])), steps.index(max(steps))
    steps[here], steps[most] = steps[most], steps[here]
  return Chart(tuple(labels), tuple(steps), pick(rng, SCALES))


def _ask_table(rng: np.random.Generator, cell: int) -> Asked:
  del cell  # no class is to be balanced
  chart = draw_chart(rng)
  return Asked(chart, HEADER, linearised(chart))


def _ask_highest(rng: np.random.Generator, cell: int) -> Asked:
  label = LABELS[cell % len(LABELS)]
  chart = draw_chart(rng, highest=label)
  return Asked(chart, "Which bar is the highest?", label, tuple(sorted(chart.labels)))


def _ask_value(rng: np.random.Generator, cell: int) -> Asked:
  label = LABELS[cell % len(LABELS)]
  chart = draw_chart(rng, first=label)
  return Asked(chart, f"What is the value of {label}?", dict(chart.rows)[label])


_TASKS: dict[str, Callable[[np.random.Generator, int], Asked]] = {
  "table": _ask_table,
  "highest": _ask_highest,
  "value": _ask_value,
}


def render_chart(
  chart: Chart, size: tuple[int, int], rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
  """Draws a chart at (H, W) pixels; colours, widths and grid come from `rng`."""
  height, width = size
  font = ImageFont.load_default(size=max(9, round(0.11 * min(size))))
  em = font.getlength("0")
  image = Image.new("RGB", (width, height), pick(rng, _PAPER))
  draw = ImageDraw.Draw(image)
  left, right = round(3.6 * em), width - 2
  top, bottom = round(0.9 * em), height - round(2.2 * em)
  at = lambda step: bottom - (bottom - top) * step / TOP
  grid = rng.random() < 0.5
  for step in (0, TOP // 2, TOP):
    if grid:
      draw.line([(left, at(step)), (right, at(step))], _GRID)
    place = (left - em / 2, at(step))
    draw.text(place, str(step * chart.scale), _INK, font, anchor="rm")
  cell, thin = (right - left) / len(chart.labels), 0.45 + 0.4 * rng.random()
  colours = rng.permutation(len(_BARS)).tolist()
  varied = rng.random() < 0.5
  for i, (label, step) in enumerate(zip(chart.labels, chart.steps, strict=True)):
    middle = left + (i + 0.5) * cell
    box = [
      round(middle - thin * cell / 2),
      round(at(step)),
      round(middle + thin * cell / 2),
      bottom,
    ]
    draw.rectangle(box, _BARS[colours[i if varied else 0]])
    draw.text((middle, height - 1), label, _INK, font, anchor="mb")
  draw.line([(left, top), (left, bottom), (right, bottom)], _INK)
  return np.asarray(image)


class Charts:
  """The generated data set: tasks `table`, `highest` and `value`.

  Attributes:
    image_size: (H, W) of images, uint8 [H, W, 3].
    seed: other seeds give other charts.

  Raises:
    UserError: if the size is too small to read or the seed is negative.
  """

  name = "charts"
  version = "1.0"
  tasks = tuple(_TASKS)

  def __init__(self, image_size: Sequence[int] = (64, 64), seed: int = 0):
    if len(image_size) != 2 or min(image_size) < SMALLEST or seed < 0:
      raise UserError(
        f"charts need image_size (H, W) of {SMALLEST} or more and seed ≥ 0, "
        f"got {tuple(image_size)} and {seed}"
      )
    self.image_size, self.seed = (int(image_size[0]), int(image_size[1])), seed
    self.media_per_sample: Mapping[str, int] = {IMAGE: 1}

  def episodes(
    self, task: str, split: str, num_shots: int | tuple[int, int], num_episodes: int | None = None
  ) -> Sequence[Episode]:
    """Random access to episodes; see `documents.Dataset`. In "val" and "test" answers balance.

    Raises:
      UserError: for an unknown task or split, or a bad `num_shots`.
    """
    shots = check_request(self.name, _TASKS, task, split, num_shots)
    length = ENDLESS if split == "train" else EVAL_LENGTH
    return ChartEpisodes(self, task, split, shots, length if num_episodes is None else num_episodes)


class ChartEpisodes(Sequence[Episode]):
  """The episodes of a task and split, drawn when asked for.

  Each has a random stream of its own, keyed by (seed, split, task, index); the query of an index
  is the same for every number of shots.
  """

  def __init__(
    self, charts: Charts, task: str, split: str, num_shots: tuple[int, int], length: int
  ):
    self._charts, self._task, self._split = charts, task, split
    self._num_shots, self._length = num_shots, length

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Episode:
    if not -self._length <= index < self._length:
      raise IndexError(f"episode {index} of {self._length}")
    index %= self._length
    charts, name = self._charts, f"{self._split}-{self._task}-{index}"
    key = (charts.seed, SPLITS.index(self._split), charts.tasks.index(self._task), index)
    rng = np.random.default_rng((*key, 0))
    low, high = self._num_shots
    shots = int(np.random.default_rng((*key, 1)).integers(low, high + 1))
    cell = int(rng.integers(2**31)) if self._split == "train" else index
    query = self._sample(rng, cell, name)
    support = tuple(
      self._sample(rng, int(rng.integers(2**31)), f"{name}-s{i}") for i in range(shots)
    )
    return Episode(query, support)

  def _sample(self, rng: np.random.Generator, cell: int, name: str) -> Sample:
    asked = _TASKS[self._task](rng, cell)
    image = render_chart(asked.chart, self._charts.image_size, rng)
    meta = {
      "kind": IMAGE,
      "modality": "chart",
      "question_type": self._task,
      "count": len(asked.chart.labels),
      "caption": linearised(asked.chart, "\n"),  # what an expert that reads the chart would tell
    }
    source = Source(self._charts.name, self._charts.version, self._split)
    return Sample(
      name, (Media(image),), asked.question, asked.answer, source, self._task, asked.choices,
      name, meta,
    )  # fmt: skip
