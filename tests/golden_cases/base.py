"""A golden case: what another implementation was given and what it returned."""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file

from medflax.pretrained.mapping import to_ours, to_theirs

TOLERANCE = 1e-4  # of the largest absolute output, in float32


class Arrays(collections.UserDict):
  """Arrays by name, which remembers those that were asked for."""

  def __init__(self, arrays: Mapping[str, np.ndarray]):
    super().__init__(arrays)
    self.used: set[str] = set()

  def __getitem__(self, name: str) -> np.ndarray:
    self.used.add(name)
    return super().__getitem__(name)

  def get(self, name: str, default: Any = None) -> Any:
    return self[name] if name in self.data else default


@dataclasses.dataclass(frozen=True)
class Case:
  """`<folder>/<variant>.{safetensors,npz,json}`, and `.config.json` where there is one.

  A case without arrays has its outputs in the JSON file.
  """

  folder: pathlib.Path
  variant: str

  def path(self, suffix: str) -> pathlib.Path:
    return self.folder / f"{self.variant}{suffix}"

  @functools.cached_property
  def weights(self) -> dict[str, np.ndarray]:
    return load_file(self.path(".safetensors"))

  @functools.cached_property
  def arrays(self) -> Arrays:
    if not self.path(".npz").exists():  # all in the JSON file, whose texts are notes
      content = json.loads(self.path(".json").read_text())
      return Arrays({f"out.{name}": x for name, x in content.items() if not isinstance(x, str)})
    with np.load(self.path(".npz")) as arrays:
      return Arrays(dict(arrays))

  def left_out(self) -> list[str]:
    """Outputs that no check has looked at."""
    outputs = {name for name in self.arrays if name.startswith("out.")}
    return sorted(name.removeprefix("out.") for name in outputs - self.arrays.used)

  @functools.cached_property
  def config(self) -> dict[str, Any]:
    return json.loads(self.path(".json").read_text())["config"]

  @functools.cached_property
  def versions(self) -> dict[str, str]:
    """Of the packages that made the case."""
    return json.loads(self.path(".json").read_text())["versions"]

  @functools.cached_property
  def hf(self) -> dict[str, Any]:
    path = self.path(".config.json")
    return json.loads(path.read_text()) if path.exists() else self.config

  def sibling(self, variant: str) -> "Case":
    return Case(self.folder, variant)

  def inputs(self) -> list[str]:
    return [name.removeprefix("in.") for name in self.arrays if name.startswith("in.")]


@dataclasses.dataclass(frozen=True)
class Result:
  """One comparison: the largest error of the largest value, and whether tokens are equal."""

  what: str
  error: float
  tokens_equal: bool | None = None
  tolerance: float = TOLERANCE

  @property
  def passed(self) -> bool:
    return bool(self.error <= self.tolerance) and self.tokens_equal is not False


Check = Callable[[Case], Iterator[Result]]


def compare(what: str, got: Any, want: np.ndarray, where: np.ndarray | None = None) -> Result:
  """The relative error of an output, on the rows or tokens that count."""
  got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
  if got.shape != want.shape:
    return Result(f"{what}: shape {got.shape}, not {want.shape}", np.inf)
  if where is not None:
    got, want = got[where], want[where]
  return Result(what, float(np.abs(got - want).max() / np.abs(want).max()))


def same_tokens(what: str, got: Any, want: np.ndarray) -> Result:
  return Result(what, 0.0, bool(np.array_equal(np.asarray(got), want)))


def next_token_loss(logits: jax.Array, labels: np.ndarray) -> jax.Array:
  """Hugging Face's: labels shifted by one, -100 not counted."""
  targets = jnp.asarray(labels[:, 1:])
  logprobs = jax.nn.log_softmax(logits[:, :-1])
  picked = jnp.take_along_axis(logprobs, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
  return -(picked * (targets >= 0)).sum() / (targets >= 0).sum()


def abstract_leaves(model: nn.Module, *inputs: Any, **options: Any) -> dict[str, Any]:
  """The leaves of a model by path, without computing any."""
  static = lambda key: model.init(key, *inputs, **options)
  tree = nn.unbox(jax.eval_shape(static, jax.random.key(0)))
  return traverse_util.flatten_dict(tree["params"], sep="/")


def import_weights(mapping, abstract, theirs, ignore: str = "") -> dict[str, Any]:
  """Our parameters, after the way back and forth again gave the same bits."""
  ours = to_ours(mapping, abstract, theirs, ignore=ignore)
  back = to_theirs({path: mapping[path] for path in ours}, ours)
  for key, x in back.items():
    np.testing.assert_array_equal(x, theirs[key], err_msg=key)
  again = to_ours(mapping, abstract, back)
  for path, x in again.items():
    np.testing.assert_array_equal(x, ours[path], err_msg=path)
  return {"params": traverse_util.unflatten_dict(ours, sep="/")}
