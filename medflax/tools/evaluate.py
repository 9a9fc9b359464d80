"""Evaluates a checkpoint of a run with the evaluators of its config.

python -m medflax.tools.evaluate WORKDIR --step 600 --eval binding
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections

from medflax import config as config_lib
from medflax import trainer
from medflax import workdir as workdir_lib
from medflax.build import build
from medflax.checkpoint import Checkpointer, read_state
from medflax.data import DATASETS
from medflax.metric_writer import log_to_console
from medflax.metrics.intervals import Measurement
from medflax.parallel import sharding
from medflax.train_step import TrainState
from medflax.utils import UserError, pick


def evaluate(
  workdir: pathlib.Path, step: int | None = None, names: Sequence[str] = ()
) -> dict[str, Measurement]:
  """Runs evaluators on a checkpoint and writes their results where training writes them.

  Args:
    workdir: of the run; its config.json says everything else.
    step: of the checkpoint; None: the newest.
    names: keys of `config.evals`; none: all.

  Raises:
    UserError: if the run, the step or the evaluator does not exist.
  """
  config = load_config(workdir)
  dataset = DATASETS[config.data.source](config.data, config.seed)
  parts = build(config, dataset.media_per_sample)
  run = trainer.Run(parts, dataset, workdir)
  evaluators = [pick(run.evaluators, name, "evaluator") for name in names or run.evaluators]
  step = find_step(workdir / "checkpoints", step)
  metrics = {}
  with jax.set_mesh(parts.mesh), nn.logical_axis_rules(sharding.RULES):
    params = load_params(workdir / "checkpoints", step, parts.state)
    for evaluator in evaluators:
      metrics |= evaluator.run(params, step)
  return metrics


def load_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
  """The config that a run was made with, its lists as the tuples they were."""
  path = workdir / workdir_lib.CONFIG
  if not path.exists():
    raise UserError(f"{workdir} is not a run: it has no {workdir_lib.CONFIG}")
  config = ml_collections.ConfigDict(_with_tuples(json.loads(path.read_text()))).lock()
  config_lib.validate(config)
  return config


def find_step(checkpoints: pathlib.Path, step: int | None) -> int:
  """`step`, or the newest, if there is a complete checkpoint of it."""
  named = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
  complete = sorted(s for s in named if Checkpointer.has_step(checkpoints, s))
  if step in complete or (step is None and complete):
    return complete[-1] if step is None else step
  there = f"there are {', '.join(map(str, complete))}" if complete else "there is none"
  wanted = "" if step is None else f" of step {step}"
  raise UserError(f"no complete checkpoint{wanted} in {checkpoints}; {there}")


def load_params(checkpoints: pathlib.Path, step: int, abstract: TrainState) -> dict[str, Any]:
  """The parameters that are evaluated (the moving average where there is one), in their shards."""
  arrays = read_state(checkpoints, step)

  def place(part: str, leaves: dict[str, Any]) -> dict[str, Any]:
    return {
      name: jax.device_put(arrays[f"{part}/{name}"], leaf.sharding) for name, leaf in leaves.items()
    }

  ema, frozen = place("ema", abstract.ema), place("frozen", abstract.frozen)
  trainable = {} if ema else place("trainable", abstract.trainable)
  return abstract.replace(trainable=trainable, frozen=frozen, ema=ema).eval_params


def _with_tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _with_tuples(item) for key, item in value.items()}
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = argparse.ArgumentParser(
    prog="python -m medflax.tools.evaluate", description="Evaluates a checkpoint of a run."
  )
  parser.add_argument("workdir", type=pathlib.Path)
  parser.add_argument("--step", type=int, help="default: the newest checkpoint")
  parser.add_argument("--eval", action="append", default=[], help="default: all; may be repeated")
  flags = parser.parse_args(argv)
  log_to_console(quiet=jax.process_index() != 0)
  try:
    metrics = evaluate(flags.workdir, flags.step, flags.eval)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  for name, measured in metrics.items():
    print(f"{name:40} {measured}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
