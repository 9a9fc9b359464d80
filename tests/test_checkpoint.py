import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.checkpoint import Checkpointer, read_state, restore_part, saved_shapes
from medflax.utils import UserError


def state(value):
  weights = {"a/kernel": jnp.full((64, 8), float(value)), "b/bias": jnp.full((3,), -float(value))}
  return {"step": jnp.asarray(int(value)), "trainable": weights, "ema": {}, "opt": (None, weights)}


def abstract(tree):
  leaf = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
  return jax.tree.map(leaf, tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("saved")
  with Checkpointer(folder, keep=2) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, state(step), b"position %d" % step, {"seed": step})
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / "checkpoints")


def assert_state(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_newest_are_kept_and_restored(folder):
  assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]
  assert Checkpointer.has_step(folder, 3) and not Checkpointer.has_step(folder, 1)
  assert json.loads((folder / "3/config/metadata").read_text()) == {"seed": 3}
  with Checkpointer(folder, keep=2) as checkpoints:
    step, found, position = checkpoints.restore(abstract(state(0)))
  assert (step, position) == (3, b"position 3")
  assert_state(found, state(3))


def test_an_empty_folder_has_nothing(tmp_path):
  with Checkpointer(tmp_path / "none", keep=1) as checkpoints:
    assert checkpoints.latest_step() is None
    assert checkpoints.restore(abstract(state(0))) is None


def test_saving_does_not_hinder_donation(tmp_path):
  """What is saved is what was passed, though the next step writes over it at once."""
  write_over = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 7, tree), donate_argnums=0)
  tree = {"w": jnp.arange(1 << 16, dtype=jnp.float32)}
  with Checkpointer(tmp_path / "c", keep=1) as checkpoints:
    checkpoints.save(1, tree, b"", {})
    tree = write_over(tree)
  found = read_state(tmp_path / "c", 1)["w"]
  np.testing.assert_array_equal(found, np.arange(1 << 16, dtype=np.float32))


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [cut, lambda path: path.unlink(), lambda p: p.write_bytes(b"")])
@pytest.mark.parametrize(
  "name", ["files.json", "iterator/process_0-of-1", "state/_METADATA", "largest", "config/metadata"]
)
def test_a_damaged_newest_step_is_named_and_passed_over(folder, name, damage, caplog):
  files = [p for p in (folder / "3").rglob("*") if p.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  path = largest if name == "largest" else folder / "3" / name
  damage(path)
  with Checkpointer(folder, keep=2) as checkpoints:
    step, found, position = checkpoints.restore(abstract(state(0)))
    assert (step, position) == (2, b"position 2")
    assert_state(found, state(2))
    assert len(caplog.messages) == 1
    assert f"checkpoint 3 is damaged ({path}" in caplog.messages[0]
    assert (folder / "damaged/3").is_dir() and not (folder / "3").exists()
    checkpoints.save(3, state(3), b"again", {})
  with Checkpointer(folder, keep=2) as checkpoints:
    assert checkpoints.restore(abstract(state(0)))[2] == b"again"


def test_nothing_is_moved_when_all_are_damaged(folder):
  for step in ("2", "3"):
    (folder / step / "state/_METADATA").unlink()
  with Checkpointer(folder, keep=2) as checkpoints, pytest.raises(UserError, match="can be read"):
    checkpoints.restore(abstract(state(0)))
  assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]


def test_another_model_is_an_error_not_damage(folder):
  other = abstract(state(0))
  other["trainable"]["a/kernel"] = jax.ShapeDtypeStruct((64, 9), jnp.float32)
  message = r"3 is of another model: trainable/a/kernel is float32\[64, 8\] there, float32\[64, 9\]"
  with Checkpointer(folder, keep=2) as checkpoints, pytest.raises(UserError, match=message):
    checkpoints.restore(other)
  assert (folder / "3").exists()


def test_reading_without_the_model(folder, caplog):
  arrays = read_state(folder, 2)
  assert set(arrays) >= {"trainable/a/kernel", "trainable/b/bias", "step", "opt/1/a/kernel"}
  np.testing.assert_array_equal(arrays["trainable/b/bias"], np.full(3, -2.0))
  assert saved_shapes(folder, 2) == {name: array.shape for name, array in arrays.items()}
  bias = {"trainable": {"b/bias": abstract(state(0))["trainable"]["b/bias"]}}
  [[found]] = [part.values() for part in restore_part(folder, 2, bias).values()]
  np.testing.assert_array_equal(found, np.full(3, -2.0))
  assert not caplog.messages  # Orbax has nothing to complain of


def test_remains_of_a_killed_save_are_swept_up(folder):
  remains = folder / "4.orbax-checkpoint-tmp"
  shutil.copytree(folder / "3", remains)
  with Checkpointer(folder, keep=2) as checkpoints:
    assert checkpoints.latest_step() == 3
    checkpoints.save(4, state(4), b"", {})
  assert not remains.exists() and (folder / "4/files.json").exists()
