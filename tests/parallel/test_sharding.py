import json
import os
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from medflax.parallel import sharding
from tests import nano

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mesh():
  # An abstract mesh stands for sixteen devices that this process does not have.
  types = (AxisType.Auto,) * len(sharding.AXES)
  return jax.sharding.AbstractMesh((1, 2, 2, 2, 2), sharding.AXES, axis_types=types)


def abstract(shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def box(names, shape):
  return nn.LogicallyPartitioned(abstract(shape), names)


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
  leaf = abstract((4, 4))
  made = sharding.state_shardings({"count": leaf, "w": box(("embed",), (4,))}, mesh)
  assert made["count"].spec == P()
  assert made["w"].spec == P("fsdp")


def test_bytes_per_device(mesh):
  tree = {"w": box(("embed", "mlp"), (8, 16)), "b": abstract((3,), jnp.bfloat16)}
  placed = sharding.with_shardings(nn.unbox(tree), sharding.state_shardings(tree, mesh))
  assert sharding.bytes_per_device(placed) == 8 * 16 * 4 // 4 + 3 * 2


def test_activations_are_split_where_they_divide(mesh):
  def spec(shape, *names):
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
      traced = jax.make_jaxpr(lambda x: sharding.constrain(x, *names))(abstract(shape))
    return [eqn.params["sharding"].spec for eqn in traced.eqns]

  assert spec((8, 6, 4), "batch", "length", "act_embed") == [P(sharding.ROWS, "sequence", None)]
  assert spec((8, 1, 4), "batch", "length", "act_embed") == [P(sharding.ROWS, None, None)]
  assert spec((32, 5), "media", None) == [P(sharding.AXES, None)]


def test_weights_are_gathered_for_a_product_and_their_gradients_are_not(mesh):
  def both(x):
    y, back = jax.vjp(lambda x: sharding.gathered(x, "embed", "mlp"), x)
    return back(y)

  with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
    traced = jax.make_jaxpr(both)(abstract((8, 16)))
  specs = [eqn.params["sharding"].spec for eqn in traced.eqns]
  assert specs == [P(None, "tensor"), P("fsdp", "tensor")]


def test_what_is_looked_up_is_exchanged_along_what_the_table_is_split_over(mesh):
  def specs(table, tokens):
    find = lambda *args: sharding.looked_up(*args, "vocab", "embed", dtype=jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(sharding.RULES):
      traced = jax.make_jaxpr(find)(abstract(table), abstract(tokens, jnp.int32))
    put = [eqn for eqn in traced.eqns if eqn.primitive.name == "sharding_constraint"]
    return [eqn.params["sharding"].spec for eqn in put]

  assert specs((32, 8), (8, 6)) == [
    P(sharding.ROWS, "sequence"),
    P(("replica", "data"), "sequence"),
    P(("replica", "data"), "sequence", "fsdp"),
    P(sharding.ROWS, "sequence", None),
  ]
  assert specs((32, 7), (3, 1))[-2:] == [P(None, None, None)] * 2  # nothing divides


def test_activations_and_weights_are_left_alone_outside_of_a_run():
  x = jnp.zeros((8, 6))
  assert sharding.constrain(x, "batch", "length") is x
  assert sharding.gathered(x, "embed", "mlp") is x
  rows = sharding.looked_up(x, jnp.array([[7, 0]]), "vocab", "embed", dtype=jnp.bfloat16)
  assert rows.shape == (1, 2, 6) and rows.dtype == jnp.bfloat16


def test_what_an_optimiser_keeps_of_another_rank_is_replicated(mesh):
  assert sharding.state_shardings(box(("embed", "mlp"), (8,)), mesh).spec == P()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_devices_train_as_one_does_however_they_are_arranged(tmp_path):
  """benchmarks/meshes.py, with twenty steps of the nano run."""
  images = nano.write_images(tmp_path / "images")
  command = nano.command(images, "", train__batch_size="8", train__num_steps="20")[3:-1]
  script = ROOT / "benchmarks" / "meshes.py"
  done = subprocess.run(
    [sys.executable, script, f"--workdir={tmp_path / 'runs'}", "--", *command],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "rematerialization" not in done.stderr  # XLA's warning of what it copies to all devices
  found = json.loads(done.stdout.splitlines()[-1])
  assert max(found["differences"].values()) <= 1e-5 and len(found["differences"]) == 14
  assert found["split"]["one device"] == 0
  assert found["split"]["fsdp"] > 10 and found["split"]["mixed"] > 10
