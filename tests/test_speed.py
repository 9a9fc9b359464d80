import logging

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from medflax import speed


@pytest.fixture
def warnings(caplog):
  log = logging.getLogger("medflax")
  before, log.propagate = log.propagate, True
  yield lambda: [record.getMessage() for record in caplog.records]
  log.propagate = before


def test_a_train_step_that_is_compiled_again_is_told(tmp_path, warnings):
  step_fn = jax.jit(lambda state, batch: (state + batch.sum(), {"loss": state}))
  state, batch = jnp.zeros(()), jnp.ones((2, 3))
  with speed.Launcher(step_fn, (), tmp_path) as launch:
    launch.compile(state, jax.ShapeDtypeStruct(batch.shape, batch.dtype))
    for step in (1, 2):
      state, _ = launch(step, state, batch)
    assert launch.recompilations == 0 and not warnings()
    jnp.ones((5, 7)).block_until_ready()  # another program is not the step's
    launch(3, state, jnp.ones((2, 4)))
  assert launch.recompilations == 1
  assert "step 3: the train step was compiled again (1 times so far)" in warnings()[0]
  assert not list(tmp_path.iterdir())


def test_steps_are_traced(tmp_path, warnings):
  step_fn = jax.jit(lambda state, batch: (state + batch, {"loss": state}))
  with speed.Launcher(step_fn, (2, 3), tmp_path / "profile") as launch:
    launch.compile(jnp.zeros(()), jnp.ones(()))
    for step in (1, 2, 3, 4):
      launch(step, jnp.zeros(()), jnp.ones(()))
  names = {path.name for path in (tmp_path / "profile").rglob("*")}
  assert "perfetto_trace.json.gz" in names
  assert any(name.endswith(".xplane.pb") for name in names)


def test_peaks():
  mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
  assert speed.peak_flops(mesh) > 1e8
  peaks = speed.peak_memory()
  assert 0.01 < peaks["memory/host_gib"] < 1000
