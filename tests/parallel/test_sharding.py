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
  # An abstract mesh stands for sixteen devices that this process does not have.
  return jax.sharding.AbstractMesh((1, 2, 2, 2, 2), sharding.AXES)


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


def test_activations_are_split_where_they_divide(mesh):
  def spec(shape, *names):
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
      traced = jax.make_jaxpr(lambda x: sharding.constrain(x, *names))(jnp.zeros(shape))
    return [eqn.params["sharding"].spec for eqn in traced.eqns]

  assert spec((8, 6, 4), "batch", "length", "act_embed") == [P(sharding.ROWS, "sequence", None)]
  assert spec((8, 1, 4), "batch", "length", "act_embed") == [P(sharding.ROWS, None, None)]
  assert spec((32, 5), "media", None) == [P(sharding.AXES, None)]


def test_weights_are_gathered_for_a_product_and_their_gradients_are_not(mesh):
  def both(x):
    y, back = jax.vjp(lambda x: sharding.gathered(x, "embed", "mlp"), x)
    return back(y)

  with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
    traced = jax.make_jaxpr(both)(jnp.zeros((8, 16)))
  specs = [eqn.params["sharding"].spec for eqn in traced.eqns]
  assert specs == [P(None, "tensor"), P("fsdp", "tensor")]


def test_activations_and_weights_are_left_alone_outside_of_a_run():
  x = jnp.zeros((8, 6))
  assert sharding.constrain(x, "batch", "length") is x
  assert sharding.gathered(x, "embed", "mlp") is x


def test_what_an_optimiser_keeps_of_another_rank_is_replicated(mesh):
  assert sharding.state_shardings(box(("embed", "mlp"), (8,)), mesh).spec == P()


PROGRAM = """
import json, pathlib, sys
import flax.linen as nn, jax, numpy as np
from medflax.build import build, jit_train_step
from medflax.checkpoint import Checkpointer
from medflax.data import DATASETS
from medflax.data.pipeline import train_iterator
from medflax.parallel import sharding
from tests import nano

root, folder, meshes = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), json.loads(sys.argv[3])

def run(name, sizes, start):
  overrides = {f"mesh__{axis}": str(size) for axis, size in sizes.items()}
  config = nano.config(root, train__batch_size="8", train__num_steps="20", **overrides)
  parts = build(config, devices=jax.devices()[: np.prod([1, *sizes.values()])])
  batches = train_iterator(DATASETS["folder"](config.data, 0), parts.tokenizer, config, seed=0)
  if start:
    with Checkpointer(folder / start, keep=2) as checkpoints:
      _, state, position = checkpoints.restore(parts.state)
    batches.set_state(position)
  else:
    state = parts.create(0)
  for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(parts.state)):
    assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
  losses, split = [], sum(not x.sharding.is_fully_replicated for x in state.trainable.values())
  with jax.set_mesh(parts.mesh), nn.logical_axis_rules(sharding.RULES):
    step = jit_train_step(parts)
    for i in range(10 if start else 0, 20):
      state, metrics = step(state, parts.put(next(batches)))
      losses.append(float(metrics["loss"]))
      if i == 9:
        with Checkpointer(folder / name, keep=2) as checkpoints:
          checkpoints.save(10, state, batches.get_state(), {})
  batches.close()
  return losses, split

found, before = {}, ""
for name, sizes in meshes.items():
  found[name] = run(name, sizes, "")
for name, sizes in meshes.items():
  before = before or list(meshes)[-1]
  found[f"{before}, then {name}"] = run(name, sizes, before)
  before = name
print(json.dumps(found))
"""

MESHES = {
  "one": {"data": 1},
  "data": {"data": 8},
  "fsdp": {"data": 1, "fsdp": 8},
  "tensor": {"data": 1, "tensor": 8},
  "sequence": {"data": 1, "sequence": 8},
  "mixed": {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2},
  "slices": {"replica": 2, "data": 2, "fsdp": 2},
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_devices_train_as_one_does_however_they_are_arranged(tmp_path):
  """Twenty steps; and every arrangement goes on from another's checkpoint of step 10."""
  images = nano.write_images(tmp_path / "images")
  flags = "--xla_force_host_platform_device_count=8"
  cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}  # each is made twice
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, images, tmp_path / "checkpoints", json.dumps(MESHES)],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | cache,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert len(found) == 2 * len(MESHES)
  losses, split = found["one"]
  assert split == 0 and found["fsdp"][1] > 10 and found["mixed"][1] > 10
  for name, (others, _) in found.items():
    np.testing.assert_allclose(others, losses[-len(others) :], rtol=0, atol=1e-5, err_msg=name)
