"""What evaluators share: their context, their settings, and the files they write."""

import contextlib
import dataclasses
import functools
import io
import json
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree, Shaped, UInt8
from PIL import Image, ImageDraw

from medflax.data import DATASETS
from medflax.data.documents import IMAGE, SIGNAL, VOLUME, Dataset, Media, Prompt
from medflax.data.tokenizer import Tokenizer
from medflax.inference.features import FeatureStore
from medflax.metrics.intervals import Measurement
from medflax.parallel.sharding import put_whole
from medflax.utils import UserError, git_hash, nearest, pick, write_atomic

MAX_SLICES = 12  # of a volume's picture
SIGNAL_LANE = (40, 1280)  # height, width in pixels of a channel of a signal's picture
MAX_SAMPLES = 2500  # of it, from its beginning: ten seconds or less of most ECGs

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class EvalContext:
  """What every evaluator of a run is given.

  `put` places this process's rows of a host batch, a flat dict of NumPy arrays, on the mesh.
  """

  model: nn.Module
  tokenizer: Tokenizer
  dataset: Dataset
  prompt: Prompt
  data_config: Any
  seed: int
  workdir: pathlib.Path
  mesh: Mesh | None
  put: Callable[[dict[str, np.ndarray]], dict[str, Array]]


@runtime_checkable
class Evaluator(Protocol):
  """Built once as `EVALUATORS[type](name, config, context)`, run at many steps."""

  def run(
    self, params: PyTree, step: int, store: FeatureStore | None = None
  ) -> dict[str, Measurement]:
    """Measures `params`; writes `evals/<name>/<step>/` and returns what stands there.

    `store` is of these `params`: features of media that evaluators before this one have shown.
    """
    ...


def read_settings(cls: type[T], name: str, config: Any) -> T:
  """`config.evals.<name>` as the dataclass `cls`; lists become tuples.

  Raises:
    UserError: for an unknown or missing field.
  """
  known = {field.name: field for field in dataclasses.fields(cls)}
  values = {key: value for key, value in config.items() if key not in ("type", "every")}
  for key in values:
    if key not in known:
      raise UserError(f"unknown field config.evals.{name}.{key}{nearest(key, known)}")
  for key, field in known.items():
    if key not in values and field.default is field.default_factory is dataclasses.MISSING:
      raise UserError(f"config.evals.{name} lacks the field {key!r}")
  return cls(**{key: _plain(value) for key, value in values.items()})


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping | ml_collections.ConfigDict):
    return {key: _plain(item) for key, item in value.items()}
  return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


@contextlib.contextmanager
def named(field: str) -> Iterator[None]:
  """Puts the field's name before what is wrong with it."""
  try:
    yield
  except UserError as error:
    raise UserError(f"{field}: {error}") from None


def own_data(name: str, data: Any, changes: Mapping[str, Any], seed: int) -> tuple[Any, Dataset]:
  """`config.data` with what `config.evals.<name>.data` changes of it, and its data set.

  Raises:
    UserError: for an unknown field or source, or as the data set does.
  """
  data = data.copy_and_resolve_references()
  for field in changes:
    pick(dict(data), field, f"field of config.evals.{name}.data")
  with data.unlocked():
    data.update(changes)
  make = pick(DATASETS, data.source, f"config.evals.{name}.data.source")
  return data, make(data, seed)


def check_task(name: str, task: str, dataset: Dataset) -> None:
  """Raises UserError unless the data set has the task."""
  if task not in dataset.tasks:
    hint = nearest(task, dataset.tasks)
    raise UserError(f"config.evals.{name}.task: {dataset.name} has no task {task!r}{hint}")


def check_names(name: str, field: str, names: Sequence[str], known: Iterable[str]) -> None:
  """Raises UserError if `config.evals.<name>.<field>` lists an unknown name."""
  for given in names:
    if given not in known:
      raise UserError(f"config.evals.{name}.{field}: unknown {given!r}{nearest(given, known)}")


def put_all(batch: dict[str, np.ndarray], context: EvalContext) -> dict[str, Array]:
  """A batch that every process holds in full, on the mesh."""
  return context.put(batch) if context.mesh is None else put_whole(batch, context.mesh)


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
  """Consecutive runs of at most `size` items."""
  return (items[start : start + size] for start in range(0, len(items), size))


def lagged(items: Iterable[T]) -> Iterator[T]:
  """Yields every item once the next one has been made.

  Results launched on the device are then read while it works on the following batch.
  """
  last: list[T] = []
  for item in items:
    yield from last
    last = [item]
  yield from last


def write_results(
  context: EvalContext,
  name: str,
  step: int,
  *,
  task: str,
  metrics: Mapping[str, Measurement],
  samples: Iterable[Mapping[str, Any]],
  **extra: Any,
) -> None:
  """Writes `samples.jsonl`, then `results.json`, from the first process alone."""
  if jax.process_index() != 0:
    return
  folder = results_folder(context, name, step)
  results = {
    "task": task,
    "task_version": context.dataset.version,
    "step": step,
    "git": git_hash(),
    **extra,
    "metrics": {key: value.to_json() for key, value in metrics.items()},
  }
  if (folder / "results.json").exists():
    logging.getLogger(__name__).warning("%s: step %d was evaluated before; replaced", name, step)
  dump = functools.partial(json.dumps, ensure_ascii=False, allow_nan=False)
  write_atomic(folder / "samples.jsonl", "".join(dump(sample) + "\n" for sample in samples))
  write_atomic(folder / "results.json", dump(results, indent=2) + "\n")


def results_folder(context: EvalContext, name: str, step: int) -> pathlib.Path:
  """Where an evaluation leaves its files."""
  return pathlib.Path(context.workdir) / "evals" / name / str(step)


def write_pictures(folder: pathlib.Path, stem: str, media: Sequence[Media]) -> list[str]:
  """Saves media as `media/<stem>-<i>.png`; returns the paths relative to `folder`."""
  paths = [f"media/{stem}-{index}.png" for index in range(len(media))]
  if jax.process_index() == 0:
    for path, item in zip(paths, media, strict=True):
      buffer = io.BytesIO()
      Image.fromarray(PICTURES[item.kind](item.array)).save(buffer, "PNG")
      write_atomic(folder / path, buffer.getvalue())
  return paths


def _picture_of_image(array: Shaped[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w *rgb"]:
  """Grey or RGB; any other number of channels is averaged to grey."""
  if array.dtype != np.uint8:
    array = np.clip(np.rint(array * 255), 0, 255).astype(np.uint8)
  return array if array.shape[-1] == 3 else np.rint(array.mean(axis=-1)).astype(np.uint8)


def _picture_of_volume(array: Shaped[np.ndarray, "d h w c"]) -> UInt8[np.ndarray, "h dw *rgb"]:
  """Up to `MAX_SLICES` evenly spaced slices, side by side."""
  depth = len(array)
  slices = np.linspace(0, depth - 1, min(depth, MAX_SLICES)).round().astype(int)
  return np.concatenate([_picture_of_image(array[index]) for index in slices], axis=1)


def _picture_of_signal(array: Shaped[np.ndarray, "t c"]) -> UInt8[np.ndarray, "h w"]:
  """The first `MAX_SAMPLES` of every channel, below each other, each from its lowest to highest."""
  height, width = SIGNAL_LANE
  shown = array[:MAX_SAMPLES].astype(np.float64)
  image = Image.new("L", (width, height * shown.shape[1]), 255)
  x = np.linspace(0, width - 1, len(shown))
  for lane, trace in enumerate(shown.T):
    low, high = trace.min(), trace.max()
    y = (high - trace) / max(high - low, 1e-9) * (height - 1) + lane * height
    ImageDraw.Draw(image).line(list(zip(x, y, strict=True)))
  return np.asarray(image)


PICTURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  IMAGE: _picture_of_image,
  VOLUME: _picture_of_volume,
  SIGNAL: _picture_of_signal,
}
