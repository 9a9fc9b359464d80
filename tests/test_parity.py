"""The command that compares with golden cases, on a folder made here."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from medflax.models.attention import media_mask
from medflax.models.fusion.gated_xattn import GatedXattn
from medflax.pretrained import open_flamingo
from medflax.pretrained.mapping import to_theirs
from tests import parity
from tests.golden_cases import base


@pytest.fixture
def case(tmp_path):
  """A gated block whose outputs are its own."""
  section = dict(heads=1, head_dim=4, mlp_ratio=2)
  block = GatedXattn(1, **section).block(jnp.float32)
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
  x, more, media = normal(1, 3, 6), normal(1, 2, 6), normal(1, 1, 2, 5)
  loc = np.asarray([[False, True, False]])
  index = jnp.asarray([[0, 1, 1]])
  mask = media_mask(index, index, jnp.ones((1, 1), jnp.int32))
  leaves = base.abstract_leaves(block, x, media, mask)
  ours = {path: rng.standard_normal(leaf.shape, np.float32) for path, leaf in leaves.items()}
  params = {"params": traverse_util.unflatten_dict(ours, sep="/")}
  y, cache = jax.jit(block.apply)(params, x, media, mask)
  cached, _ = block.apply(params, more, None, jnp.ones((1, 2, 1), bool), [cache])
  folder = tmp_path / "of_xattn"
  folder.mkdir()
  theirs = to_theirs(open_flamingo.gated_xattn(section, "", ()), ours)
  weights = {key: np.ascontiguousarray(x) for key, x in theirs.items()}
  safetensors.numpy.save_file(weights, folder / "tiny.safetensors")
  config = dict(dim_head=4, only_attend_immediate_media=True)
  (folder / "tiny.json").write_text(json.dumps({"config": config}))
  arrays = {"in.x": x, "in.media": media, "in.loc": loc, "in.x_cached": more, "out.y": y}
  arrays |= {"out.y_cached": cached, "out.more": x}
  np.savez(folder / "tiny.npz", **{key: np.asarray(a) for key, a in arrays.items()})
  return folder / "tiny.npz"


def run(path, capsys):
  status = parity.main([str(path.parents[1])])
  return status, capsys.readouterr().out


def test_a_case_that_agrees_passes(case, capsys):
  status, out = run(case, capsys)
  assert status == 0
  assert "2 of 2 comparisons pass" in out and "not compared: more" in out


def test_a_case_that_differs_fails(case, capsys):
  arrays = dict(np.load(case))
  arrays["out.y"] = arrays["out.y"] + 0.01
  np.savez(case, **arrays)
  status, out = run(case, capsys)
  assert status == 1
  assert "1 of 2 comparisons pass" in out


def test_what_goes_wrong_fails_and_is_told(case, capsys):
  case.with_suffix(".safetensors").write_bytes(b"no")
  status, out = run(case, capsys)
  assert status == 1 and "SafetensorError" in out


def test_an_unknown_folder_is_named(case, capsys):
  (case.parents[1] / "of_tomorrow").mkdir()
  status, out = run(case, capsys)
  assert status == 1
  assert "no check is known for: of_tomorrow" in out


def test_an_empty_folder_is_no_success(tmp_path):
  assert parity.main([str(tmp_path)]) == 1
