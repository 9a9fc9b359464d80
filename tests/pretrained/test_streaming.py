"""Weights go from a file to the shards of a mesh, and never through the host as a whole."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

ROOT = pathlib.Path(__file__).resolve().parents[2]
MIB = 1 << 20

LOAD = """
import json, pathlib, sys
import jax, numpy as np, safetensors.numpy
from medflax.build import build
from tests import nano

folder = pathlib.Path(sys.argv[1])
sizes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), sys.argv[2:]))
options = dict(train__batch_size="4", train__ema="0.5", **sizes)
config = nano.config(nano.write_images(folder / "images"), **options)
with config.unlocked():
  config.init = str(folder / "weights.safetensors")
parts = build(config)
flat, rng = parts.state.trainable | parts.state.frozen, np.random.default_rng(0)
weights = {k: rng.standard_normal(x.shape).astype(np.float16) for k, x in flat.items()}
safetensors.numpy.save_file(weights, folder / "weights.safetensors")
state = parts.create(0)
for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(parts.state), strict=True):
  assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
  assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
assert state.ema.keys() == state.trainable.keys()
for flat in (state.trainable, state.frozen, state.ema):
  for path, leaf in flat.items():
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, weights[path].astype(np.float32), err_msg=path)
leaves = (state.trainable | state.frozen).values()
print(json.dumps({"split": sum(not leaf.sharding.is_fully_replicated for leaf in leaves)}))
"""

PEAK = """
import json, resource, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from medflax.pretrained import load_weights, merge_weights

weights = load_weights(sys.argv[1])
mesh = jax.make_mesh((8,), ("x",))
sharding = NamedSharding(mesh, PartitionSpec(*json.loads(sys.argv[2])))
zeros = jax.jit(lambda: jnp.zeros(weights["w"].shape), out_shardings=sharding)
flat = jax.block_until_ready({"w": zeros()})
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
merged = merge_weights(flat, weights)
assert flat["w"].is_deleted()
sizes = {shard.data.nbytes for shard in merged["w"].addressable_shards}
assert sizes == {merged["w"].nbytes // 8}
print(json.dumps({"growth": (peak() - before) << 10, "sum": float(merged["w"].sum())}))
"""


def run(program, devices, *args):
  flags = f"--xla_force_host_platform_device_count={devices}"
  done = subprocess.run(
    [sys.executable, "-c", program, *map(str, args)],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_leaves_land_sharded(tmp_path):
  assert run(LOAD, 8, tmp_path, 2, 2, 2)["split"] > 10


@pytest.mark.parametrize("axes", [["x", None, None], [None, None, "x"]])
def test_the_host_holds_a_shard_at_a_time(tmp_path, axes):
  """A leaf of 256 MiB in shards of 32, from a file of 128: as a whole it would need 384 more."""
  path = tmp_path / "w.safetensors"
  safetensors.numpy.save_file({"w": np.ones((64, 1024, 1024), np.float16)}, path)
  told = run(PEAK, 8, path, json.dumps(axes))
  assert told["sum"] == 1 << 26
  assert told["growth"] < 160 * MIB, f"{told['growth'] / MIB:.0f} MiB"
