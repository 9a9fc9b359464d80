r"""Is a run the same on one device and on eight, however they are arranged?

JAX_PLATFORMS=cpu python benchmarks/meshes.py --workdir DIR -- --config=configs/flamingo_med.py \
  --config.train.num_steps=20

The eight are made of this machine's cores. Each arrangement trains from the start, then each goes
on from what another has saved in the middle. Nothing is evaluated.
"""

import argparse
import json
import pathlib
import sys

import flax.linen as nn
import jax
import numpy as np

from medflax import config as config_lib
from medflax.build import build, jit_train_step
from medflax.checkpoint import Checkpointer
from medflax.data import DATASETS
from medflax.data.pipeline import train_iterator
from medflax.main import parse_flags
from medflax.parallel import sharding

MESHES = {
  "one device": {"data": 1},
  "data": {"data": 8},
  "fsdp": {"data": 1, "fsdp": 8},
  "tensor": {"data": 1, "tensor": 8},
  "sequence": {"data": 1, "sequence": 8},
  "mixed": {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2},
  "slices": {"replica": 2, "data": 2, "fsdp": 2},
}


def run(
  command: list[str], sizes: dict[str, int], save: pathlib.Path, start: pathlib.Path | None
) -> tuple[list[float], int]:
  """Losses from the first step, or from the checkpoint in `start`, and how many weights are split.

  The step in the middle is saved to `save`.
  """
  flags, overrides = parse_flags(command)
  overrides = [*overrides, *((f"mesh.{axis}", str(size)) for axis, size in sizes.items())]
  config = config_lib.load_config(flags.config, overrides)
  config_lib.validate(config)
  dataset = DATASETS[config.data.source](config.data, config.seed)
  devices = jax.devices()[: int(np.prod(list(sizes.values())))]
  parts = build(config, dataset.media_per_sample, devices)
  batches = train_iterator(dataset, parts.tokenizer, config, seed=config.seed)
  step, state = 0, None
  if start is None:
    state = parts.create(config.seed)
  else:
    with Checkpointer(start, keep=1) as checkpoints:
      step, state, position = checkpoints.restore(parts.state)
    batches.set_state(position)
  for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(parts.state), strict=True):
    assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
  losses, split = [], sum(not x.sharding.is_fully_replicated for x in state.trainable.values())
  with jax.set_mesh(parts.mesh), nn.logical_axis_rules(sharding.RULES):
    train = jit_train_step(parts)
    while step < config.train.num_steps:
      state, metrics = train(state, parts.put(next(batches)))
      losses.append(float(metrics["loss"]))
      step += 1
      if start is None and step == config.train.num_steps // 2:
        with Checkpointer(save, keep=1) as checkpoints:
          checkpoints.save(step, state, batches.get_state(), {})
  batches.close()
  return losses, split


def main() -> int:
  """Returns 0 if all losses agree to 1e-5."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="an empty folder")
  parser.add_argument("--meshes", nargs="+", choices=MESHES, default=list(MESHES))
  parser.add_argument("command", nargs="+", help="of python -m medflax.main, without --workdir")
  flags = parser.parse_args()
  jax.config.update("jax_num_cpu_devices", 8)
  jax.config.update("jax_compilation_cache_dir", str(flags.workdir.absolute() / "compiled"))
  print(f"{'devices':<24}{'weights split':>14}{'steps':>7}{'largest difference in loss':>28}")
  differences, splits, first = {}, {}, None

  def tell(name: str, mesh: str, start: pathlib.Path | None) -> None:
    nonlocal first
    losses, splits[mesh] = run(flags.command, MESHES[mesh], flags.workdir / mesh, start)
    first = first or losses
    differences[name] = max(abs(a - b) for a, b in zip(losses[::-1], first[::-1], strict=False))
    print(f"{name:<24}{splits[mesh]:>14}{len(losses):>7}{differences[name]:>28.1e}", flush=True)

  for mesh in flags.meshes:
    tell(mesh, mesh, None)
  for before, after in zip(flags.meshes, flags.meshes[1:] + flags.meshes[:1], strict=True):
    tell(f"{before}, then {after}", after, flags.workdir / before)
  print(json.dumps({"differences": differences, "split": splits}))
  return int(max(differences.values()) > 1e-5)


if __name__ == "__main__":
  sys.exit(main())
