import json
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from medflax.parallel import sharding
from tests import nano

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mesh():
  # An abstract mesh stands for eight devices that this process does not have.
  return jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))


def box(names, shape):
  return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


@pytest.mark.parametrize(
  ("names", "shape", "spec"),
  [
    (("embed", "mlp"), (8, 16), P("fsdp", "tensor")),
    (("layers", "embed", "heads", "head_dim"), (3, 8, 4, 5), P(None, "fsdp", "tensor", None)),
    (("embed", "kv_heads"), (8, 1), P("fsdp", None)),  # one head cannot be split in two
    (("vocab", "embed"), (7, 6), P(None, "fsdp")),
    (("norm",), (8,), P(None)),
    ((None,), (1,), P(None)),
  ],
)
def test_weights_follow_the_rules_where_they_divide(mesh, names, shape, spec):
  assert sharding.state_shardings(box(names, shape), mesh).spec == spec


def test_what_has_no_names_is_replicated(mesh):
  leaf = jax.ShapeDtypeStruct((4, 4), jnp.float32)
  made = sharding.state_shardings({"count": leaf, "w": box(("embed",), (4,))}, mesh)
  assert made["count"].spec == P()
  assert made["w"].spec == P("fsdp")


def test_bytes_per_device(mesh):
  tree = {"w": box(("embed", "mlp"), (8, 16)), "b": jax.ShapeDtypeStruct((3,), jnp.bfloat16)}
  abstract = sharding.with_shardings(nn.unbox(tree), sharding.state_shardings(tree, mesh))
  assert sharding.bytes_per_device(abstract) == 8 * 16 * 4 // 4 + 3 * 2


PROGRAM = """
import json, pathlib, sys
import flax.linen as nn, jax, numpy as np
from medflax import trainer
from medflax.build import build, jit_train_step
from medflax.checkpoint import Checkpointer
from medflax.data import DATASETS
from medflax.data.pipeline import train_iterator
from medflax.parallel import sharding
from tests import nano

root, folder, save, *sizes = sys.argv[1:]
overrides = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), sizes))
config = nano.config(pathlib.Path(root), train__batch_size="4", **overrides)
parts = build(config)
assert parts.mesh.size == np.prod([int(n) for n in sizes])
dataset = DATASETS["folder"](config.data, 0)
batches = train_iterator(dataset, parts.tokenizer, config, seed=0)
state, losses = parts.create(0), []
for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(parts.state)):
  assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
with jax.set_mesh(parts.mesh), nn.logical_axis_rules(sharding.RULES):
  step = jit_train_step(parts)
  for _ in range(3):
    state, metrics = step(state, parts.put(next(batches)))
    losses.append(float(metrics["loss"]))
with Checkpointer(pathlib.Path(folder), keep=2) as checkpoints:
  if save == "save":
    checkpoints.save(3, state, b"here", {})
  else:
    _, restored, position = checkpoints.restore(parts.state)
    assert position == b"here"
    for path, leaf in restored.trainable.items():
      assert leaf.sharding.is_equivalent_to(parts.state.trainable[path].sharding, leaf.ndim)
      np.testing.assert_allclose(leaf, state.trainable[path], rtol=1e-3, atol=1e-5)
print(json.dumps({"losses": losses, "split": sum(
    not leaf.sharding.is_fully_replicated for leaf in state.trainable.values())}))
"""


@pytest.mark.slow
def test_eight_devices_train_as_one_does(tmp_path):
  """Data, FSDP and tensor parallelism together; and a checkpoint moves to another mesh."""
  images = nano.write_images(tmp_path / "images")

  def run(devices, save, *sizes):
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
      [sys.executable, "-c", PROGRAM, images, tmp_path / "checkpoints", save, *map(str, sizes)],
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

  one = run(1, "save", 1, 1, 1)
  eight = run(8, "restore", 2, 2, 2)
  assert one["split"] == 0 and eight["split"] > 10
  np.testing.assert_allclose(eight["losses"], one["losses"], rtol=0, atol=1e-5)
