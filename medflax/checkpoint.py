"""Checkpoints by Orbax: the train state, each process's place in the data, the config.

A step is written to a temporary folder in the background and renamed when it is complete, so a
killed process leaves whole checkpoints only. This is the one module that imports Orbax.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from medflax.utils import UserError, write_atomic

FILES = "files.json"  # names and sizes of a step's files, written before the step is renamed


class ProcessBytesHandler(ocp.CheckpointHandler):
  """Stores a line per process, `process_<i>-of-<n>`: the position of its data iterator."""

  def save(self, directory: Any, args: "SaveBytes") -> None:
    name = f"process_{jax.process_index()}-of-{jax.process_count()}"
    (directory / name).write_bytes(args.value)

  def restore(self, directory: Any, args: "RestoreBytes") -> bytes:
    return b"\n".join(file.read_bytes() for file in sorted(directory.glob("process_*-of-*")))


@ocp.args.register_with_handler(ProcessBytesHandler, for_save=True)
@dataclasses.dataclass
class SaveBytes(ocp.args.CheckpointArgs):
  """Bytes of this process."""

  value: bytes


@ocp.args.register_with_handler(ProcessBytesHandler, for_restore=True)
@dataclasses.dataclass
class RestoreBytes(ocp.args.CheckpointArgs):
  """Asks for the lines of all processes, so that there may be more or fewer of them now."""


class Checkpointer:
  """Saves and restores the steps of one run under `directory`; the `keep` newest stay.

  Use as a context manager: leaving it waits for the last save.

  Attributes:
    best: a step that stays besides; the same in every process.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int):
    self.directory = pathlib.Path(directory).absolute()
    self.best: int | None = None
    self._keep = keep
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self,
      cleanup_tmp_directories=True,  # of a save that was killed
      async_options=ocp.AsyncOptions(post_finalization_callback=self._list_files),
    )
    handlers = {
      "state": ocp.StandardCheckpointHandler(),
      "iterator": ProcessBytesHandler(),
      "config": ocp.JsonCheckpointHandler(),
    }
    self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, *_) -> None:
    self._manager.close()

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """Which of the saved steps, oldest first, stay: Orbax's `PreservationPolicy`."""
    newest = {saved.step for saved in checkpoints[-self._keep :]}
    return [saved.step in newest | {self.best} for saved in checkpoints]

  def latest_step(self) -> int | None:
    """The newest complete step, None without any."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, iterator: bytes, config: dict[str, Any]) -> None:
    """Starts saving; returns once the state may be donated. A step that exists is left alone.

    Args:
      state: the train state, a tree of sharded arrays.
      iterator: the data position of this process, from which step `step` goes on.
      config: the resolved config, stored for reading without the workdir.
    """
    if step == self.latest_step():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        iterator=SaveBytes(iterator),
        config=ocp.args.JsonSave(config),
      ),
    )

  @staticmethod
  def has_step(directory: pathlib.Path, step: int) -> bool:
    """Whether a step was saved completely, told without opening anything."""
    return (directory / str(step) / FILES).exists()

  def wait(self) -> None:
    """Returns when every save is complete on disk."""
    self._manager.wait_until_finished()

  def restore(self, abstract: Any) -> tuple[int, Any, bytes] | None:
    """The newest step that can be read: its number, the state and all processes' data positions.

    Damaged newer steps are named in a warning and set aside under `damaged/`.

    Args:
      abstract: the state's shapes, dtypes and shardings; the mesh may differ from the saving one.

    Raises:
      UserError: if the state saved has other shapes, or no checkpoint can be read.
    """
    damaged = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      damage = self._damage(step)
      if not damage:
        self._check_fits(step, abstract)
        items = {"state": ocp.args.StandardRestore(abstract), "iterator": RestoreBytes()}
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        self._set_aside(damaged)
        return step, found["state"], found["iterator"]
      damaged[step] = damage
    if damaged:
      raise UserError(
        f"no checkpoint in {self.directory} can be read: {'; '.join(damaged.values())}; "
        "remove the folder to start from the beginning"
      )
    return None

  def restore_step(self, step: int, abstract: Any) -> Any:
    """The state of one step; `abstract` as for `restore`.

    Raises:
      UserError: if it is not there, damaged or of another model.
    """
    self.wait()
    if damage := self._damage(step):
      raise UserError(f"checkpoint {self.directory / str(step)} is damaged: {damage}")
    self._check_fits(step, abstract)
    items = {"state": ocp.args.StandardRestore(abstract)}
    return self._manager.restore(step, args=ocp.args.Composite(**items))["state"]

  def _list_files(self) -> None:
    """Writes the list of files into the step that is about to be renamed."""
    if jax.process_index() == 0:
      for step in self.directory.glob("*.orbax-checkpoint-tmp*"):
        found = [f for f in step.glob("*/**/*") if f.is_file()]  # Orbax still edits those on top
        files = {str(f.relative_to(step)): f.stat().st_size for f in found}
        write_atomic(step / FILES, json.dumps(files, indent=1))

  def _damage(self, step: int) -> str:
    """What is wrong with a step's files, "" if nothing is.

    Looked at before Orbax reads them, since it does not notice every cut file.
    """
    folder = self.directory / str(step)
    try:
      files = json.loads((folder / FILES).read_text())
    except (OSError, json.JSONDecodeError):
      return f"{folder / FILES} cannot be read"
    for name, size in files.items():
      if not (folder / name).is_file():
        return f"{folder / name} is missing"
      if (found := (folder / name).stat().st_size) != size:
        return f"{folder / name} has {found} bytes instead of {size}"
    return ""

  def _check_fits(self, step: int, abstract: Any) -> None:
    """Tells a checkpoint of another model (an error) from a damaged one (skipped over)."""
    saved = _leaf_types(self._manager.item_metadata(step)["state"].tree)
    wanted = _leaf_types(abstract)
    for path in sorted(saved.keys() | wanted.keys()):
      there, here = saved.get(path, "absent"), wanted.get(path, "absent")
      if there != here:
        raise UserError(
          f"checkpoint {self.directory / str(step)} is of another model: "
          f"{path} is {there} there, {here} here"
        )

  def _set_aside(self, damaged: dict[int, str]) -> None:
    """Moves damaged steps out of the way of saving them again."""
    for step, damage in damaged.items():
      target = self.directory / "damaged" / str(step)
      logging.getLogger("medflax").warning(
        "checkpoint %d is damaged (%s); moved to %s, going on from an older one",
        *(step, damage, target),
      )
      if jax.process_index() == 0:
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        (self.directory / str(step)).rename(target)
    if damaged:
      multihost_utils.sync_global_devices("damaged checkpoints are set aside")
      self._manager.reload()


def read_state(directory: pathlib.Path, step: int) -> dict[str, np.ndarray]:
  """All arrays of a saved state by `path/to/leaf`, on the host, without knowing the model.

  By however many processes and devices it was saved.
  """
  folder = _state_folder(directory, step)
  each = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _metadata(folder))
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as handler:
    tree = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=each))
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {_name(path): np.asarray(leaf) for path, leaf in leaves}


def saved_shapes(directory: pathlib.Path, step: int) -> dict[str, tuple[int, ...]]:
  """The shapes of a saved state's arrays by `path/to/leaf`; none is read."""
  leaves = jax.tree_util.tree_leaves_with_path(_metadata(_state_folder(directory, step)))
  return {_name(path): tuple(leaf.shape) for path, leaf in leaves}


def restore_part(directory: pathlib.Path, step: int, wanted: Any) -> Any:
  """Some arrays of a saved state, straight into their shards; no others are read.

  Args:
    wanted: the tree of them, a part of the saved one, of shapes, dtypes and shardings, of which
      the last two may differ from those saved.
  """
  each = ocp.checkpoint_utils.construct_restore_args(wanted)
  args = ocp.args.PyTreeRestore(item=wanted, restore_args=each, partial_restore=True)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as handler:
    return handler.restore(_state_folder(directory, step), args=args)


def _state_folder(directory: pathlib.Path, step: int) -> pathlib.Path:
  return pathlib.Path(directory).absolute() / str(step) / "state"


def _metadata(folder: pathlib.Path) -> Any:
  """Shapes and dtypes in the place of a saved state's arrays.

  Asked of the handler: Orbax's `Checkpointer` looks for the metadata of a whole step here as well,
  which lie in the folder above, and warns that there are none.
  """
  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    return handler.metadata(folder).tree


def _leaf_types(tree: Any) -> dict[str, str]:
  """`{"path/to/leaf": "float32[3, 4]"}`, alike for live trees and for Orbax's metadata."""
  return {
    _name(path): f"{leaf.dtype}{list(leaf.shape)}"
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _name(path: tuple) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
