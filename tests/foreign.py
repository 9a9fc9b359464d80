"""Other implementations' weights and outputs against ours, for the tests of parity."""

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from medflax.pretrained.mapping import to_ours, to_theirs

TOLERANCE = 1e-4  # of the largest absolute output, in float32
QUICK = {"xla_backend_optimization_level": 0}  # tests compile more than they compute


def abstract_params(model, *inputs, **options):
  """Our leaves by path, without computing any."""
  init = lambda key: model.init(key, *inputs, **options)
  tree = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
  return traverse_util.flatten_dict(tree["params"], sep="/")


def random_params(model, *inputs):
  """Parameters of a model, none of them zero; compiles no initialisation."""
  rng = np.random.default_rng(0)
  shapes = abstract_params(model, *inputs)
  flat = {path: rng.normal(0, 0.3, x.shape).astype(x.dtype) for path, x in shapes.items()}
  return {"params": traverse_util.unflatten_dict(flat, sep="/")}


def apply(model, params, *inputs):
  """`model.apply`, compiled; a media kind is static."""
  static = tuple(i + 1 for i, x in enumerate(inputs) if isinstance(x, str))
  return jax.jit(model.apply, static_argnums=static, compiler_options=QUICK)(params, *inputs)


def imported(mapping, model, theirs, *inputs, ignore=""):
  """Parameters of `model` from a foreign state dict, after the round trip gave back its bits."""
  abstract = abstract_params(model, *inputs)
  ours = to_ours(mapping, abstract, theirs, ignore=ignore)
  assert set(ours) == set(mapping) == set(abstract)
  back = to_theirs(mapping, ours)
  for key, x in back.items():
    np.testing.assert_array_equal(x, theirs[key], err_msg=key)
  again = to_ours(mapping, abstract, back)
  for path, x in again.items():
    np.testing.assert_array_equal(x, ours[path], err_msg=path)
  return {"params": traverse_util.unflatten_dict(ours, sep="/")}


def relative_error(got, want):
  """The largest deviation, of the largest absolute value wanted."""
  assert got.shape == want.shape
  return float(np.abs(np.asarray(got) - want).max() / np.abs(want).max())


def agrees(got, want):
  assert relative_error(got, want) <= TOLERANCE
