import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax import quantize
from medflax.build import build
from medflax.checkpoint import Checkpointer
from medflax.models import model_inputs
from medflax.models.dense import Dense
from medflax.pretrained.lazy import LazyTensor
from tests import nano


@given(st.integers(0, 2**31), st.sampled_from([(0,), (1,), (0, 1)]), st.floats(1e-6, 1e6))
def test_a_weight_is_off_by_half_a_step_at_most(seed, inputs, size):
  kernel = (size * np.random.default_rng(seed).normal(size=(3, 4, 5))).astype(np.float32)
  kernel[..., 0] = 0
  integers, scale = quantize.quantise(jnp.asarray(kernel), inputs)
  assert integers.dtype == jnp.int8
  assert scale.shape == tuple(1 if i in inputs else n for i, n in enumerate(kernel.shape))
  off = np.abs(np.asarray(integers, np.float32) * scale - kernel)
  assert (off <= 0.51 * np.asarray(scale)).all()
  assert (np.abs(integers).max(inputs)[..., 1:] == 127).all()


def test_the_sides_of_convolutions_and_what_is_no_kernel_stay_floats():
  box = lambda *names: nn.LogicallyPartitioned(jnp.ones((2,) * len(names)), names)
  flat = {"conv/kernel": box(None, None, "patch", "vision_embed"), "norm/scale": box("norm")}
  flat["lm/out/kernel"] = box("layers", "heads", "head_dim", "embed")
  out = quantize.stored(flat, "int8")
  assert {path: leaf.value.dtype.name for path, leaf in out.items()} == {
    **{"conv/kernel": "bfloat16", "norm/scale": "bfloat16"},
    **{"lm/out/kernel": "int8", "lm/out/kernel_scale": "float32"},
  }
  assert out["lm/out/kernel_scale"].names == ("layers", None, None, "embed")
  assert out["lm/out/kernel_scale"].value.shape == (2, 1, 1, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_linear_map_computes_with_the_scale(dtype):
  layer = Dense((2, 3), use_bias=True, dtype=dtype)
  x = jax.random.normal(jax.random.key(0), (5, 4))
  params = layer.init(jax.random.key(1), x)["params"] | {"bias": jnp.ones((2, 3))}
  kernel, scale = quantize.quantise(params["kernel"], (0,))
  y = layer.apply({"params": params | {"kernel": kernel, "kernel_scale": scale}}, x)
  same = layer.apply({"params": params | {"kernel": kernel * scale}}, x)
  np.testing.assert_array_equal(y, same)
  assert y.dtype == dtype


def test_files_get_the_product():
  kernel, scale = quantize.quantise(jax.random.normal(jax.random.key(0), (2, 3, 4)), (1,))
  lazy = lambda x: LazyTensor(x.shape, x.dtype, lambda: x, lambda index: x[index])
  arrays = {"a/kernel": np.asarray(kernel), "a/kernel_scale": np.asarray(scale)}
  found = quantize.floats({path: lazy(x) for path, x in arrays.items()})
  assert list(found) == ["a/kernel"]
  assert found["a/kernel"].dtype == "bfloat16"
  np.testing.assert_allclose(found["a/kernel"][1], (kernel * scale)[1], rtol=2**-8)


@pytest.mark.slow
def test_a_run_with_int8(tmp_path):
  """Logits are near, memory is less, a checkpoint has the same bits."""

  def make(dtype):
    wide = {"model__lm__width": "64", "model__lm__mlp_width": "256"}
    config = nano.config(tmp_path, trainable="connector/.*", train__frozen_dtype=dtype, **wide)
    parts = build(config, devices=jax.devices()[:1])
    return parts, parts.create(0)

  (parts, small), (_, whole) = make("int8"), make("float32")
  batch = {k: np.zeros(x.shape, x.dtype) for k, x in parts.batch.items()}
  batch["tokens"] = np.random.default_rng(0).integers(0, 1000, batch["tokens"].shape, np.int32)
  batch["segment_ids"][:] = 1
  args, kwargs = model_inputs(parts.put(batch))
  apply = jax.jit(lambda p: parts.model.apply({"params": p}, *args, **kwargs))
  near, exact = apply(small.params), apply(whole.params)
  # Half a percent for each of a dozen products of random weights, independent of each other.
  assert 0 < float(jnp.linalg.norm(near - exact) / jnp.linalg.norm(exact)) < 0.03
  held = lambda state: sum(x.nbytes for p, x in state.frozen.items() if "/kernel" in p)
  assert held(small) < 0.3 * held(whole)
  expected = jax.tree.map(lambda x: (x.shape, x.dtype), parts.state)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), small) == expected
  with Checkpointer(tmp_path / "run", keep=1) as checkpointer:
    checkpointer.save(1, small, b"", {})
    checkpointer.wait()
    restored = checkpointer.restore_step(1, parts.state)
  for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(small), strict=True):
    np.testing.assert_array_equal(ours, theirs)
