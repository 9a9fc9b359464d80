"""What a run is about to do, in a few lines: devices, parameters, batch, memory."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from medflax.parallel.sharding import bytes_per_device
from medflax.train_step import TrainState


def describe_mesh(mesh: Mesh) -> str:
  """`8 × TPU v5 lite, mesh replica 1 · data 1 · fsdp 8 · sequence 1 · tensor 1`."""
  axes = " · ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  return f"{mesh.size} × {device_name(mesh)}, mesh {axes}"


def device_name(mesh: Mesh) -> str:
  """What the accelerator calls itself, `cpu` or `NVIDIA H100 80GB HBM3`."""
  return mesh.devices.flat[0].device_kind


def count(flat: Mapping[str, Any]) -> int:
  """How many numbers a flat dict of (abstract) arrays holds."""
  return sum(math.prod(leaf.shape) for leaf in flat.values())


def describe_parameters(state: TrainState) -> str:
  """`412,345 parameters: 12,345 trainable, 400,000 frozen`."""
  trainable, frozen = count(state.trainable), count(state.frozen)
  return f"{trainable + frozen:,} parameters: {trainable:,} trainable, {frozen:,} frozen"


def facts(mesh: Mesh, state: TrainState) -> dict[str, Any]:
  """What the report tells of a run beside its versions."""
  trainable = count(state.trainable)
  return {
    "parameters": trainable + count(state.frozen),
    "trainable_parameters": trainable,
    "device": device_name(mesh),
    "num_devices": mesh.size,
  }


def parameter_table(state: TrainState) -> str:
  """Trainable and frozen parameters of the top two levels of modules."""
  rows: dict[str, list[int]] = {}
  for column, flat in enumerate((state.trainable, state.frozen)):
    for path, leaf in flat.items():
      top, *rest = path.split("/")
      for name in dict.fromkeys((top, f"  {'/'.join((top, *rest[:1]))}", "\x7ftotal")):
        rows.setdefault(name, [0, 0])[column] += math.prod(leaf.shape)
  order = sorted(rows, key=lambda name: name.strip() + "/" * (name[0] != " "))
  lines = [("module", "trainable", "frozen")]
  lines += [(name.lstrip("\x7f"), *(f"{n:,}" for n in rows[name])) for name in order]
  return "\n".join(f"  {name:<36}{a:>16}{b:>16}" for name, a, b in lines)


def batch_table(batch: Mapping[str, jax.ShapeDtypeStruct]) -> str:
  """Shape and dtype of every array of a batch."""
  return "\n".join(f"  {key:<24}{x.dtype.name:<10}{list(x.shape)}" for key, x in batch.items())


def memory_table(state: TrainState, batch: Mapping[str, jax.ShapeDtypeStruct]) -> str:
  """Bytes on each device of everything but activations."""
  parts = {
    "parameters, trainable": state.trainable,
    "parameters, frozen": state.frozen,
    "gradients": state.trainable,
    "optimiser": state.opt_state,
    "moving average": state.ema,
    "batch": batch,
  }
  sizes = {name: bytes_per_device(tree) for name, tree in parts.items()}
  sizes["total, without activations"] = sum(sizes.values())
  return "\n".join(f"  {name:<30}{size / 2**20:>14,.1f} MiB" for name, size in sizes.items())
