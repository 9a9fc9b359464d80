import functools
import re
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from medflax import peft, report, trainer
from medflax.build import build
from medflax.checkpoint import read_state
from medflax.models import layers
from medflax.models.dense import Dense
from medflax.utils import UserError
from tests import nano

TARGET = ".*/(query|out)/kernel"


class Block(nn.Module):
  """Projections with several output and several input axes."""

  @nn.compact
  def __call__(self, x, _):
    y = layers.dense((2, 3), ("embed", "heads", "head_dim"), name="query", use_bias=True)(x)
    y = layers.dense(4, ("heads", "head_dim", "embed"), name="out", num_inputs=2)(jnp.tanh(y))
    return x + y, None


class Stack(nn.Module):
  """Scanned blocks, and a projection that is not."""

  @nn.compact
  def __call__(self, x):
    blocks = nn.scan(
      Block,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=nn.broadcast,
      length=2,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    x, _ = blocks(name="blocks")(x, None)
    return layers.dense(5, ("embed", "vocab"), name="head")(x)


def x():
  return jax.random.normal(jax.random.key(7), (2, 3, 4))


@functools.cache
def boxed():
  return jax.jit(Stack().init)(jax.random.key(0), x())["params"]


def flatten(params):
  boxed_leaf = lambda _, leaf: isinstance(leaf, nn.meta.AxisMetadata)
  return traverse_util.flatten_dict(params, sep="/", is_leaf=boxed_leaf)


def adapted(**fields):
  section = dict(type="lora", target=TARGET, rank=2, alpha=6.0) | fields
  flat = flatten(nn.unbox(peft.add(jax.random.key(1), boxed(), {"a": section})))
  noise = lambda path, leaf: 0.3 * jax.random.normal(jax.random.key(len(path)), leaf.shape)
  return {p: noise(p, leaf) if p.endswith("lora_b") else leaf for p, leaf in flat.items()}


@jax.jit
def forward(flat, rngs):
  return Stack().apply({"params": traverse_util.unflatten_dict(flat, sep="/")}, x(), rngs=rngs)


def apply(flat, seed=None):
  return forward(flat, None if seed is None else {"dropout": jax.random.key(seed)})


def test_leaves_stand_beside_their_kernels_with_their_axes():
  flat = flatten(
    peft.add(jax.random.key(1), boxed(), {"a": vars(peft.LoRA(TARGET, 2, 6.0)) | {"type": "lora"}})
  )
  names = {path: leaf.names for path, leaf in flat.items() if "/lora_" in path}
  assert names == {
    "blocks/query/lora_a": ("layers", "embed", None),
    "blocks/query/lora_b": ("layers", None, "heads", "head_dim"),
    "blocks/query/lora_scale": ("layers",),
    "blocks/out/lora_a": ("layers", "heads", "head_dim", None),
    "blocks/out/lora_b": ("layers", None, "embed"),
    "blocks/out/lora_scale": ("layers",),
  }
  assert {path: flat[path].value.shape for path in names} == {
    "blocks/query/lora_a": (2, 4, 2),
    "blocks/query/lora_b": (2, 2, 2, 3),
    "blocks/query/lora_scale": (2,),
    "blocks/out/lora_a": (2, 2, 3, 2),
    "blocks/out/lora_b": (2, 2, 4),
    "blocks/out/lora_scale": (2,),
  }


def test_a_new_adapter_changes_nothing():
  base = flatten(nn.unbox(boxed()))
  params = nn.unbox(
    peft.add(jax.random.key(1), boxed(), {"a": dict(type="lora", target=TARGET, rank=2, alpha=6.0)})
  )
  np.testing.assert_array_equal(apply(flatten(params)), apply(base))


def test_the_update_is_the_formula():
  flat = adapted(target="head/kernel")
  plain = {path: leaf for path, leaf in flat.items() if "lora" not in path}
  a, b = flat["head/lora_a"], flat["head/lora_b"]
  expected = {**plain, "head/kernel": plain["head/kernel"] + 6.0 / 2 * a @ b}
  np.testing.assert_allclose(apply(flat), apply(expected), rtol=1e-5, atol=1e-5)
  assert not np.allclose(apply(flat), apply(plain), atol=1e-3)


def test_merging_computes_the_same_and_unmerging_gives_back():
  flat = adapted()
  merged = peft.merge(flat)
  assert merged.keys() == flatten(boxed()).keys()
  np.testing.assert_allclose(apply(merged), apply(flat), rtol=1e-4, atol=1e-5)
  back = peft.unmerge(merged, peft.adapters(flat))
  assert back.keys() == flat.keys()
  for path, leaf in flat.items():
    np.testing.assert_allclose(back[path], leaf, atol=1e-6, err_msg=path)


def test_dropout_is_for_training_alone():
  flat = adapted(dropout=0.5)
  np.testing.assert_array_equal(apply(flat), apply(adapted()))
  np.testing.assert_array_equal(apply(flat, 0), apply(flat, 0))
  assert not np.allclose(apply(flat, 0), apply(flat, 1))


def test_dropout_keeps_the_mean():
  """Of a linear map."""
  flat = adapted(target="head/kernel", dropout=0.5)
  keys = jax.random.split(jax.random.key(0), 4096)
  mean = jax.vmap(lambda key: forward(flat, {"dropout": key}))(keys).mean(0)
  np.testing.assert_allclose(mean, apply(flat), rtol=0.1, atol=0.15)


def test_gradients_reach_both_factors():
  flat = adapted()
  loss = lambda lora: jnp.square(apply(flat | lora)).sum()
  trained = {p: leaf for p, leaf in flat.items() if p.endswith(("lora_a", "lora_b"))}
  grads = jax.grad(loss)(trained)
  assert len(grads) == 4
  assert all((jnp.abs(g) > 0).any() for g in grads.values())


def test_dense_maps_all_take_adapters():
  assert isinstance(layers.dense(1, ("embed", "vocab"), name="x"), Dense)


@pytest.mark.parametrize(
  ("section", "complaint"),
  [
    (dict(type="lora", target="nothing", rank=1, alpha=1.0), "matches no parameter"),
    (dict(type="lora", target="(", rank=1, alpha=1.0), "is no regular expression"),
    (dict(type="lora", target=TARGET, rank=0, alpha=1.0), "rank = 0 must be at least 1"),
    (dict(type="lora", target=".*bias", rank=1, alpha=1.0), "query/bias, which is no */kernel"),
    (dict(type="lore", target=TARGET), "did you mean 'lora'"),
    (dict(type="lora", target=TARGET, rank=1), "lacks the field 'alpha'"),
    (dict(type="lora", target=TARGET, rank=1, alpha=1.0, drop=0.1), "did you mean 'dropout'"),
  ],
)
def test_a_wrong_section_is_named(section, complaint):
  with pytest.raises(UserError, match=re.escape(complaint)):
    peft.add(jax.random.key(0), boxed(), {"a": section})


def test_two_adapters_of_one_weight_are_named():
  section = dict(type="lora", target=TARGET, rank=1, alpha=1.0)
  with pytest.raises(UserError, match=r"config\.peft\.b: another section has added blocks/out"):
    peft.add(jax.random.key(0), boxed(), {"a": section, "b": section})


SECTIONS = "{'lm': {'type': 'lora', 'target': 'lm/.*/attn/(query|value)/kernel', 'rank': 2, \
  'alpha': 8.0, 'dropout': 0.1}}"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return nano.write_images(tmp_path_factory.mktemp("images"))


def test_a_run_trains_its_adapters_and_resumes(images, tmp_path, monkeypatch):
  monkeypatch.setattr(report, "write_report", lambda workdir: workdir / "report.html")
  monkeypatch.setattr(report, "fewshot_table", lambda workdir: "")
  options = dict(peft=SECTIONS, trainable=".*/lora_.*", train__num_steps="2", checkpoint__every="1")
  config = nano.config(images, **options)
  trainer.train(config, tmp_path / "whole", command="")
  start = build(config).create(config.seed)
  first, last = (read_state(tmp_path / "whole/checkpoints", step) for step in (1, 2))
  assert {path.rsplit("/", 1)[-1] for path in start.trainable} == {"lora_a", "lora_b"}
  for path, leaf in start.frozen.items():
    np.testing.assert_array_equal(last[f"frozen/{path}"], leaf)
  for path, leaf in start.trainable.items():
    assert (last[f"trainable/{path}"] != leaf).any(), path

  shutil.copytree(tmp_path / "whole", tmp_path / "cut")
  shutil.rmtree(tmp_path / "cut/checkpoints/2")
  trainer.train(config, tmp_path / "cut", command="")
  again = read_state(tmp_path / "cut/checkpoints", 2)
  assert again.keys() == first.keys()
  for path, leaf in last.items():
    np.testing.assert_array_equal(again[path], leaf, err_msg=path)


def test_adapters_that_nothing_trains_are_named(images):
  with pytest.raises(UserError, match="leaves untrained"):
    build(nano.config(images, peft=SECTIONS, trainable="lm/norm/scale"))
