"""Parameter-efficient fine-tuning: adapters as leaves beside the weights they adapt.

All functions are pure and work on flat dicts of `path/to/leaf`. A LoRA (Hu et al. 2021) of a
projection `y = x W` adds `scale · x A B`. Its leaves stand beside the kernel, where
`models.layers.Dense` finds them, so whatever takes the parameters computes with the adapter:

    <module>/kernel        [*stack, *in, *out]
    <module>/lora_a        [*stack, *in, rank]
    <module>/lora_b        [*stack, rank, *out]
    <module>/lora_scale    [*stack]               alpha / rank
    <module>/lora_dropout  [*stack]               absent without dropout

`stack` are the layers of an nn.scan. The last two are settings, kept with the weights so that a
checkpoint computes what it computed in training; they are never trained themselves. A prefix's
leaves stand in the attention module, where `models.language.prefix` finds them:

    <attention>/prefix_key, prefix_value   [*stack, length, kv_heads, head_dim]

and a prompt's beside the embedding of a decoder, which puts it before the tokens:

    <decoder>/prompt                             [length, width]
    <decoder>/prompt_kernel_<i>, prompt_bias_<i>  [width, width], [width]; of p-tuning, i < 3
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from medflax.models.dense import STACKED, split_axes
from medflax.utils import UserError, pick

Flat = dict[str, Any]  # by path/to/leaf; arrays, or arrays boxed with their logical axis names

MERGED = r".*/lora_(a|b|scale|dropout)"
LEAVES = rf"{MERGED}|.*/prefix_(key|value)|.*/prompt(_(kernel|bias)_\d)?"
SETTINGS = r".*/lora_(scale|dropout)"


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Low-rank updates of projections.

  Attributes:
    target: regex (full match) of the kernels' paths, `lm/.*/(query|value)/kernel`.
    alpha: the update is scaled by alpha / rank.
    dropout: of the update's input, in training.
  """

  target: str
  rank: int
  alpha: float
  dropout: float = 0.0

  def __post_init__(self):
    _check_regex(self.target)
    if self.rank < 1 or not 0 <= self.dropout < 1:
      raise UserError(
        f"config.peft: rank = {self.rank} must be at least 1, dropout = {self.dropout} in [0, 1)"
      )

  def init(self, key: Array, flat: Flat) -> Flat:
    """New leaves for the boxed parameters `flat`: A uniform as in the peft library, B zero.

    Raises:
      UserError: if the target matches no kernel.
    """
    out = {}
    for i, path in enumerate(_matches(self.target, flat, "/kernel")):
      out |= self._leaves(jax.random.fold_in(key, i), path.removesuffix("kernel"), flat[path])
    return out

  def _leaves(self, key: Array, module: str, kernel: nn.LogicallyPartitioned) -> Flat:
    names, shape = kernel.names, kernel.value.shape
    stack, split = split_axes(names)
    box = lambda value, *names: nn.LogicallyPartitioned(value, names)
    bound = 1 / math.sqrt(math.prod(shape[stack:split]))
    a = jax.random.uniform(key, (*shape[:split], self.rank), minval=-bound, maxval=bound)
    b = jnp.zeros((*shape[:stack], self.rank, *shape[split:]))
    leaves = {
      f"{module}lora_a": box(a, *names[:split], None),
      f"{module}lora_b": box(b, *names[:stack], None, *names[split:]),
      f"{module}lora_scale": box(jnp.full(shape[:stack], self.alpha / self.rank), *names[:stack]),
    }
    if self.dropout:
      rates = jnp.full(shape[:stack], self.dropout)
      leaves[f"{module}lora_dropout"] = box(rates, *names[:stack])
    return leaves


@dataclasses.dataclass(frozen=True)
class _Learned:
  """Something learned, `length` tokens long, that stands before the tokens."""

  target: str
  length: int

  def __post_init__(self):
    _check_regex(self.target)
    if self.length < 1:
      raise UserError(f"config.peft: length = {self.length} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Prefix(_Learned):
  """Learned keys and values before the tokens' (Li & Liang 2021), without reparametrisation.

  Attributes:
    target: regex (full match) of the paths of key kernels, `lm/.*/attn/key/kernel`.
    length: of the prefix, in tokens.
  """

  def init(self, key: Array, flat: Flat) -> Flat:
    """New leaves for the boxed parameters `flat`, normal as in the peft library.

    Raises:
      UserError: if the target matches no kernel of keys.
    """
    out = {}
    for i, path in enumerate(_matches(self.target, flat, "/key/kernel")):
      names, shape = flat[path].names, flat[path].value.shape
      stack = names.count(STACKED)
      for j, name in enumerate(("key", "value")):
        rng = jax.random.fold_in(key, 2 * i + j)
        value = jax.random.normal(rng, (*shape[:stack], self.length, *shape[-2:]))
        axes = (*names[:stack], None, *names[-2:])
        leaf = f"{path.removesuffix('key/kernel')}prefix_{name}"
        out[leaf] = nn.LogicallyPartitioned(value, axes)
    return out


@dataclasses.dataclass(frozen=True)
class Prompt(_Learned):
  """Learned vectors before the tokens of every row (Lester et al. 2021).

  Attributes:
    target: regex (full match) of the path of a decoder's embedding, `lm/embedding`.
    length: of the prompt, in tokens.
  """

  def init(self, key: Array, flat: Flat) -> Flat:
    """New leaves for the boxed parameters `flat`, normal as in the peft library.

    Raises:
      UserError: if the target matches no embedding.
    """
    out = {}
    for i, path in enumerate(_matches(self.target, flat, "/embedding")):
      width = flat[path].value.shape[-1]
      value = jax.random.normal(jax.random.fold_in(key, i), (self.length, width))
      leaf = f"{path.removesuffix('embedding')}prompt"
      out[leaf] = nn.LogicallyPartitioned(value, (None, flat[path].names[-1]))
    return out


@dataclasses.dataclass(frozen=True)
class EncodedPrompt(Prompt):
  """A prompt that three learned maps make of learned vectors (p-tuning, Liu et al. 2021).

  All of them are as wide as the embedding, as in the peft library.
  """

  def init(self, key: Array, flat: Flat) -> Flat:
    """New leaves for the boxed parameters `flat`, maps uniform as PyTorch's.

    Raises:
      UserError: if the target matches no embedding.
    """
    out = super().init(key, flat)
    for leaf, box in sorted(out.items()):
      width, name = box.value.shape[-1], box.names[-1]
      bound = 1 / math.sqrt(width)
      for i, rng in enumerate(jax.random.split(jax.random.fold_in(key, len(out)), 3)):
        # One row more than the kernel has: the bias.
        table = jax.random.uniform(rng, (width + 1, width), minval=-bound, maxval=bound)
        out[f"{leaf}_kernel_{i}"] = nn.LogicallyPartitioned(table[1:], (None, name))
        out[f"{leaf}_bias_{i}"] = nn.LogicallyPartitioned(table[0], (name,))
    return out


METHODS = {"lora": LoRA, "prefix": Prefix, "prompt": Prompt, "p_tuning": EncodedPrompt}


def _check_regex(target: str) -> None:
  try:
    re.compile(target)
  except re.error as error:
    raise UserError(f"config.peft: {target!r} is no regular expression: {error}") from None


def _matches(target: str, flat: Flat, suffix: str) -> list[str]:
  """The paths that `target` names, in order, all of which must end with `suffix`."""
  paths = sorted(path for path in flat if re.fullmatch(target, path))
  if not paths:
    raise UserError(f"config.peft: the target {target!r} matches no parameter")
  if other := [path for path in paths if not path.endswith(suffix)]:
    raise UserError(f"config.peft: the target {target!r} matches {other[0]}, which is no *{suffix}")
  return paths


def make(section: Mapping[str, Any], where: str) -> Any:
  """The method of one entry of `config.peft`: `type` picks the class, the rest are its fields.

  Raises:
    UserError: for an unknown type or field, or one that is missing.
  """
  fields = dict(section)
  method = pick(METHODS, fields.pop("type", ""), f"{where}.type")
  known = {field.name: field for field in dataclasses.fields(method)}
  for name in fields:
    pick(known, name, f"field of {where}")
  for name, field in known.items():
    if name not in fields and field.default is dataclasses.MISSING:
      raise UserError(f"{where} lacks the field {name!r}")
  return method(**fields)


def add(
  key: Array, params: Mapping[str, Any], sections: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
  """The boxed parameter tree with the adapters of `config.peft`.

  Raises:
    UserError: for a section that is wrong, or two of which adapt the same weight.
  """
  boxed = lambda _, leaf: isinstance(leaf, nn.meta.AxisMetadata)
  flat = traverse_util.flatten_dict(params, sep="/", is_leaf=boxed)
  new: Flat = {}
  for i, (name, section) in enumerate(sorted(sections.items())):
    leaves = make(section, f"config.peft.{name}").init(jax.random.fold_in(key, i), flat)
    if twice := sorted(new.keys() & leaves.keys()):
      raise UserError(f"config.peft.{name}: another section has added {twice[0]} already")
    new |= leaves
  return traverse_util.unflatten_dict(flat | new, sep="/")


def adapters(flat: Flat) -> Flat:
  """The adapters alone: what is worth saving of a run whose other weights are frozen."""
  return {path: leaf for path, leaf in flat.items() if re.fullmatch(LEAVES, path)}


def merge(flat: Flat) -> Flat:
  """Parameters that compute the same without LoRA, each added to its kernel; the rest stays."""
  updates = {
    path.removesuffix("lora_a") + "kernel": update(flat, path.removesuffix("lora_a"))
    for path in flat
    if path.endswith("/lora_a")
  }
  base = {path: leaf for path, leaf in flat.items() if not re.fullmatch(MERGED, path)}
  return base | {path: _sum(flat[path], delta) for path, delta in updates.items()}


def unmerge(merged: Flat, lora: Flat) -> Flat:
  """Undoes `merge`, up to rounding: the kernels as they were, with the adapters beside them."""
  negative = {p: -leaf if p.endswith("/lora_scale") else leaf for p, leaf in lora.items()}
  return merge(merged | negative) | lora


def update(flat: Flat, module: str) -> Float[Array, "..."]:
  """The float32 `scale · A B` of a module, in its kernel's shape; `module` ends with a slash."""
  a, b, scale = (jnp.asarray(flat[f"{module}lora_{n}"], jnp.float32) for n in ("a", "b", "scale"))
  stack = a.shape[: scale.ndim]
  product = a.reshape(*stack, -1, a.shape[-1]) @ b.reshape(*stack, a.shape[-1], -1)
  shape = (*a.shape[:-1], *b.shape[scale.ndim + 1 :])
  return (scale[..., None, None] * product).reshape(shape)


def _sum(kernel: Array | np.ndarray, delta: Float[Array, "..."]) -> Array:
  return (jnp.asarray(kernel, jnp.float32) + delta).astype(kernel.dtype)
