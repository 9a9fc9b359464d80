"""Where weights to start from are: what `config.init` names, files and runs; a run's steps."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping

import jax

from medflax import selection
from medflax.checkpoint import Checkpointer, restore_part, saved_shapes
from medflax.pretrained import load_weights, merge_weights
from medflax.utils import UserError
from medflax.workdir import CONFIG

CHECKPOINTS = "checkpoints"
NEWEST, BEST = "newest", "best"

Leaves = dict[str, jax.Array]  # by path/to/leaf


@dataclasses.dataclass(frozen=True)
class Source:
  """Weights to start from.

  Attributes:
    shapes: of all it has, by `path/to/leaf`.
    merge: the leaves with those that it has replaced, in their dtypes and shards; what is replaced
      is deleted before.
  """

  shapes: Mapping[str, tuple[int, ...]]
  merge: Callable[[Leaves], Leaves]


def open_sources(init: str) -> list[Source]:
  """The sources that a `config.init` names, commas between; nothing is read before `merge`.

  A source is a safetensors file, or the workdir of a run: `DIR`, or `DIR@STEP` as for `find_step`.
  Of a run the weights that it evaluates are taken, whatever it trained or froze.

  Raises:
    UserError: if there is no such file, run or step.
  """
  return [_open(text) for text in init.split(",") if text]


def _open(text: str) -> Source:
  folder, _, step = text.partition("@")
  if pathlib.Path(text).is_file() or not pathlib.Path(folder).is_dir():
    weights = load_weights(text)
    shapes = {path: tensor.shape for path, tensor in weights.items()}
    return Source(shapes, lambda leaves: merge_weights(leaves, weights))
  checkpoints = pathlib.Path(folder) / CHECKPOINTS
  number = find_step(checkpoints, int(step) if step.isdigit() else step or None)
  return _of_run(checkpoints, number)


def _of_run(checkpoints: pathlib.Path, step: int) -> Source:
  saved = saved_shapes(checkpoints, step)
  split = [name.partition("/")[::2] for name in saved]
  parts = {
    part: {path for p, path in split if p == part} for part in ("trainable", "frozen", "ema")
  }
  # The moving average comes last: it is evaluated in place of what it is of.
  part_of = {path: part for part, paths in parts.items() for path in paths}
  shapes = {path: saved[f"{part}/{path}"] for path, part in part_of.items()}

  def merge(leaves: Leaves) -> Leaves:
    named = {path: leaves[path] for path in leaves if path in part_of}
    for path, leaf in named.items():
      if leaf.shape != shapes[path]:
        raise UserError(
          f"config.init: {path} has shape {shapes[path]} in {checkpoints / str(step)} but "
          f"{leaf.shape} in the model; match config.model or set config.init to ''"
        )
    wanted: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    for path, leaf in named.items():
      abstract = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
      wanted.setdefault(part_of[path], {})[path] = abstract
      leaf.delete()
    found = restore_part(checkpoints, step, wanted) if wanted else {}
    return leaves | {path: leaf for part in found.values() for path, leaf in part.items()}

  return Source(shapes, merge)


def find_step(checkpoints: pathlib.Path, step: int | str | None = None) -> int:
  """A step with a complete checkpoint.

  Args:
    checkpoints: the folder of a run.
    step: its number, "newest", or "best" by the `config.best` of the run; None: the best where the
      run chooses one, else the newest.

  Raises:
    UserError: if there is none.
  """
  named = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
  complete = sorted(s for s in named if Checkpointer.has_step(checkpoints, s))
  if step in (BEST, None):
    best = _best(checkpoints.parent)
    if best is None and step == BEST:
      raise UserError(f"{checkpoints.parent} chooses no best step: it has no config.best.metric")
    step = NEWEST if best is None else best
  if step == NEWEST and complete:
    return complete[-1]
  if step in complete:
    return int(step)
  there = f"there are {', '.join(map(str, complete))}" if complete else "there is none"
  wanted = "" if step == NEWEST else f" of step {step}"
  raise UserError(f"no complete checkpoint{wanted} in {checkpoints}; {there}")


def _best(workdir: pathlib.Path) -> int | None:
  path = workdir / CONFIG
  best = json.loads(path.read_text()).get("best", {}) if path.exists() else {}
  if not best.get("metric"):
    return None
  return selection.best_step(selection.read_values(workdir, best["metric"]), best["mode"])
