"""The folder of a run: whose it is, which config it has, and that one process writes it."""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from medflax import config as config_lib
from medflax.defaults import base_config
from medflax.utils import UserError, git_hash, write_atomic

log = logging.getLogger(__name__)

CONFIG, ENVIRONMENT, LOCK = "config.json", "environment.json", ".lock"
# Attributes that a data set may have, lists of dicts, and what each holds.
LISTS = {"skipped": "samples left out", "noted": "files with something odd"}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def check(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> list[str]:
  """Looks at a workdir before anything is built; creates nothing.

  Returns:
    The differences to the config that the run was started with, one a line; empty for a new run.

  Raises:
    UserError: if the folder is not writable, holds something else than a run, or has another
      config and `checkpoint.allow_config_change` is off.
  """
  there = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
  if not there.is_dir():
    raise UserError(f"workdir {workdir}: {there} is a file")
  if not os.access(there, os.W_OK | os.X_OK):
    raise UserError(f"workdir {workdir}: {there} is not writable; choose another --workdir")
  path = workdir / CONFIG
  if not path.exists():
    foreign = [p.name for p in workdir.iterdir() if p.name[0] != "."] if workdir.exists() else []
    if foreign:
      raise UserError(
        f"workdir {workdir} is not a run (no {CONFIG}, but {min(foreign)}); choose an empty one"
      )
    return []
  changes = config_lib.diff(read_config(workdir), config_lib.to_dict(config))
  changes = [line for line in changes if not line.startswith("checkpoint.allow_config_change:")]
  if changes and not config.checkpoint.allow_config_change:
    raise UserError(
      f"workdir {workdir} has another config ({'; '.join(changes)}); use another --workdir, or "
      "--config.checkpoint.allow_config_change=true to go on with the new one"
    )
  return changes


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
  """The config that a run was started with, in JSON's types.

  Fields that are newer than the run have their defaults, which were what it did; they are told.

  Raises:
    UserError: if there is none, or it is not JSON.
  """
  path = workdir / CONFIG
  if not path.exists():
    raise UserError(f"{workdir} is not a run: it has no {CONFIG}")
  try:
    saved = json.loads(path.read_text())
  except json.JSONDecodeError:
    raise UserError(f"workdir {workdir}: {CONFIG} is not JSON; choose another --workdir") from None
  defaults = config_lib.to_dict(base_config("", ""))
  if added := _fill(saved, defaults, config_lib.SCHEMA):
    names = ", ".join(f"{name} = {value!r}" for name, value in added.items())
    log.warning("%s is older than some fields, which are taken as %s", path, names)
  return saved


def _fill(saved: dict, defaults: dict, schema: Mapping[str, Any]) -> dict[str, Any]:
  """Adds the schema's fields that are not there; `{"a.b": value}` of these."""
  added = {}
  for name, kind in schema.items():
    if name not in saved:
      saved[name] = added[name] = defaults[name]
    elif isinstance(kind, dict) and isinstance(saved[name], dict):
      inner = _fill(saved[name], defaults[name], kind)
      added |= {f"{name}.{field}": value for field, value in inner.items()}
  return added


@contextlib.contextmanager
def opened(workdir: pathlib.Path, config: ml_collections.ConfigDict, facts: dict) -> Iterator[None]:
  """Creates the workdir with its `config.json` and `environment.json`, and holds its lock.

  Args:
    facts: JSON values that describe the run, stored beside the versions.

  Raises:
    UserError: if another process is training in it.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"workdir {workdir}: {error.strerror}; choose another --workdir") from None
  with locked(workdir, "another process is training here"):
    _compare_environment(workdir / ENVIRONMENT)
    write_atomic(workdir / CONFIG, json.dumps(config_lib.to_dict(config), indent=2) + "\n")
    write_atomic(workdir / ENVIRONMENT, json.dumps(environment() | facts, indent=2) + "\n")
    yield


@contextlib.contextmanager
def locked(folder: pathlib.Path, complaint: str) -> Iterator[None]:
  """Holds a folder's lock, which ends with the process that holds it, however that ends.

  Raises:
    UserError: with the complaint, if another process has it.
  """
  with (folder / LOCK).open("a") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(f"workdir {folder}: {complaint}") from None
    yield


def is_locked(folder: pathlib.Path) -> bool:
  """Whether a process holds the folder's lock; creates nothing."""
  if not (folder / LOCK).exists():
    return False
  try:
    with locked(folder, ""):
      return False
  except UserError:
    return True


def _compare_environment(path: pathlib.Path) -> None:
  """Warns of other code or versions: the run goes on, but no longer to the same bits."""
  before = json.loads(path.read_text()) if path.exists() else {}
  for name, now in environment().items():
    if before.get(name, now) != now:
      log.warning("%s was %s when the run began and is %s now", name, before[name], now)


def environment() -> dict[str, Any]:
  """The commit and the versions that a result depends on."""
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {"git": git_hash(), "python": platform.python_version(), **versions}


def write_lists(workdir: pathlib.Path, dataset: object) -> None:
  """Lists what the data set left out and what it found odd, one JSON object a line."""
  for name, what in LISTS.items():
    rows = getattr(dataset, name, ())
    path = workdir / f"{name}.jsonl"
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
    if rows:
      log.warning("%s %s, listed in %s", f"{len(rows):,}", what, path)


def results_path(workdir: pathlib.Path, name: str, step: int) -> pathlib.Path:
  """Where an evaluator leaves its results of a step."""
  return workdir / "evals" / name / str(step) / "results.json"


def drop_results(workdir: pathlib.Path, step: int) -> None:
  """Removes the evaluations from `step` on: of another config, they no longer hold."""
  for folder in workdir.glob("evals/*/*"):
    if int(folder.name) >= step:
      log.warning("removed %s, which was made with the former config", folder)
      shutil.rmtree(folder)
