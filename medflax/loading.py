"""A model that is not being trained: its config, its parts and its weights."""

import contextlib
import dataclasses
import logging
import pathlib
import re
from collections.abc import Iterator, Sequence, Set
from typing import Any

import flax.linen as nn
import jax
import ml_collections

from medflax import config as config_lib
from medflax import workdir as workdir_lib
from medflax.build import Parts, build
from medflax.checkpoint import read_state, saved_shapes
from medflax.parallel import sharding
from medflax.train_step import TrainState
from medflax.utils import UserError
from medflax.weights import CHECKPOINTS, find_step, open_sources

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Loaded:
  """What is asked: a model and where its weights are; none are read before `params`.

  Attributes:
    config: of the run, or a config file's.
    parts: made from it.
    workdir: of the run; None: a config file.
    checkpoints: the folder of the weights; None: they are those of `config.init`.
    step: of the weights; 0 for those of `config.init`.
  """

  config: ml_collections.ConfigDict
  parts: Parts
  workdir: pathlib.Path | None
  checkpoints: pathlib.Path | None
  step: int

  def params(self) -> dict[str, Any]:
    """The parameters that are evaluated, in their shards; call it inside `running`."""
    if self.checkpoints is not None:
      return load_params(self.checkpoints, self.step, self.parts.state)
    state = self.parts.create(self.config.seed)
    return state.replace(ema={}).eval_params

  @contextlib.contextmanager
  def running(self) -> Iterator[None]:
    """Makes the mesh and the rules of sharding those of this model."""
    with jax.set_mesh(self.parts.mesh), nn.logical_axis_rules(sharding.RULES):
      yield


def load_model(
  where: str | pathlib.Path,
  *,
  checkpoint: str | pathlib.Path = "",
  step: int | str | None = None,
  overrides: Sequence[tuple[str, str]] = (),
) -> Loaded:
  """Opens a run, or a config file with the weights it names.

  Args:
    where: the workdir of a run, or `FILE.py[:ARG=VALUE,…]`.
    checkpoint: the run, or its `checkpoints`, that a config file's weights are of; "": they are
      those of `config.init`.
    step: of the checkpoint, as for `weights.find_step`.
    overrides: of fields of a config file, as of `config.load_config`.

  Raises:
    UserError: if there is no such run, file, checkpoint or step, or they do not fit each other.
  """
  if str(where).partition(":")[0].endswith(".py"):
    config, workdir = config_lib.load_config(str(where), overrides), None
    config_lib.validate(config)
  else:
    config, workdir = load_config(pathlib.Path(where)), pathlib.Path(where)
    if overrides:
      raise UserError(f"--config.{overrides[0][0]}: {where} has its config; use --config=FILE.py")
  folder = pathlib.Path(checkpoint) if checkpoint else workdir
  if folder is None:
    if step:
      raise UserError(f"--step {step} is of a checkpoint; give --checkpoint=WORKDIR")
    if not config.init:
      raise UserError(f"{config.name} has no weights: give --checkpoint=WORKDIR or set config.init")
    names = {path for source in open_sources(config.init) for path in source.shapes}
    parts = build(config, _kinds(config, names))
    missing = sorted((parts.state.trainable.keys() | parts.state.frozen.keys()) - names)
    if missing:  # they stay as training would begin with them
      log.warning("config.init leaves %d weights at random, such as %s", len(missing), missing[0])
    return Loaded(config, parts, workdir, None, 0)
  checkpoints = folder if folder.name == CHECKPOINTS else folder / CHECKPOINTS
  step = find_step(checkpoints, step)
  names = {name.partition("/")[2] for name in saved_shapes(checkpoints, step)}
  return Loaded(config, build(config, _kinds(config, names)), workdir, checkpoints, step)


def _kinds(config: ml_collections.ConfigDict, names: Set[str]) -> dict[str, int]:
  """1 for each kind of media that weights of these names know, where it was left to the data."""
  inputs = config.model.tower.get("inputs", {})
  known = lambda kind: any(re.fullmatch(rf"tower/[a-z]+_{kind}(_\d+)?(/.*)?", n) for n in names)
  return {kind: int(known(kind)) for kind in inputs}


def load_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
  """The config that a run was made with, its lists as the tuples they were."""
  saved = config_lib.with_tuples(workdir_lib.read_config(workdir))
  config = ml_collections.ConfigDict(saved).lock()
  config_lib.validate(config)
  return config


def load_params(checkpoints: pathlib.Path, step: int, abstract: TrainState) -> dict[str, Any]:
  """The parameters that are evaluated (the moving average where there is one), in their shards.

  Raises:
    UserError: if the checkpoint is of another model.
  """
  arrays = read_state(checkpoints, step)

  def place(part: str, leaves: dict[str, Any]) -> dict[str, Any]:
    for name, leaf in leaves.items():
      found = arrays.get(f"{part}/{name}")
      if found is None or found.shape != leaf.shape:
        there = "absent" if found is None else found.shape
        raise UserError(
          f"checkpoint {checkpoints / str(step)} is of another model: {part}/{name} is {there} "
          f"there, {leaf.shape} here"
        )
    return {
      name: jax.device_put(arrays[f"{part}/{name}"], leaf.sharding) for name, leaf in leaves.items()
    }

  ema, frozen = place("ema", abstract.ema), place("frozen", abstract.frozen)
  trainable = {} if ema else place("trainable", abstract.trainable)
  return abstract.replace(trainable=trainable, frozen=frozen, ema=ema).eval_params
