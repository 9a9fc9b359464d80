"""Weights to start from."""

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from medflax import config as config_lib
from medflax.build import build
from medflax.pretrained import load_weights, merge_weights
from medflax.utils import UserError
from tests import nano


def test_tiny_starts_from_the_shipped_tower_and_freezes_it():
  config = config_lib.load_config(str(nano.CONFIG))
  state = build(config).create(0)
  shipped = load_weights(config.init)
  assert any(path.startswith("tower/") for path in shipped)
  assert all(path.startswith(("tower/", "connector/")) for path in shipped)
  for path, array in shipped.items():
    leaf = (state.trainable | state.frozen)[path]
    np.testing.assert_array_equal(leaf, np.asarray(array, np.float32))
  assert set(state.frozen) == set(shipped)


def test_merging_replaces_what_is_named_and_nothing_else():
  flat = {"a": jnp.zeros((2,)), "b": jnp.ones((3,))}
  merged = merge_weights(flat, {"a": np.full((2,), 0.5, np.float16)})
  assert merged["a"].dtype == flat["a"].dtype
  np.testing.assert_array_equal(merged["a"], 0.5)
  np.testing.assert_array_equal(merged["b"], 1)


def test_a_shape_that_does_not_fit_is_named():
  with pytest.raises(UserError, match=r"config.init: a has shape \(3,\)"):
    merge_weights({"a": jnp.zeros((2,))}, {"a": np.zeros((3,))})


def test_a_file_that_is_none_is_named(tmp_path):
  with pytest.raises(UserError, match="there is no file"):
    load_weights(str(tmp_path / "none.safetensors"))
  (tmp_path / "text.safetensors").write_text("hello")
  with pytest.raises(UserError, match="is not a safetensors file"):
    load_weights(str(tmp_path / "text.safetensors"))


def test_weights_that_the_model_lacks_are_named(tmp_path):
  path = tmp_path / "more.safetensors"
  path.write_bytes(safetensors.numpy.save({"tower/more": np.zeros(2, np.float32)}))
  config = config_lib.load_config(str(nano.CONFIG), [("init", str(path))])
  with pytest.raises(UserError, match="tower/more"):
    build(config).create(0)


def test_weights_for_media_that_a_run_has_none_of_are_left_out():
  config = config_lib.load_config(str(nano.CONFIG), [("data.max_media", "{'image': 2}")])
  state = build(config).create(0)
  named = set(load_weights(config.init))
  left_out = named - state.frozen.keys()
  assert named > left_out > {"tower/position_volume", "tower/patch_volume/kernel"}
  assert all("_volume" in path for path in left_out)
