"""Frozen kernels of linear maps as 8-bit integers, with a scale for each output.

Pure functions over flat dicts of `path/to/leaf`. Beside an int8 kernel stands its scale, as an
adapter would, where `models.dense.Dense` finds it:

    <module>/kernel        [*stack, *in, *out]    int8
    <module>/kernel_scale  [*stack, *1, *out]     float32; kernel · scale is the weight

The largest weight of an output becomes ±127 (absmax, as in LLM.int8(), Dettmers et al. 2022).
Activations stay floats: what is saved is memory, and bytes where weights are gathered.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from medflax import optim
from medflax.models.dense import split_axes
from medflax.pretrained.lazy import LazyTensor

Flat = dict[str, Any]  # by path/to/leaf; boxed with their logical axis names

INT8 = "int8"
REST = "bfloat16"  # of leaves that are no kernel of a linear map


def stored(flat: Flat, dtype: str) -> Flat:
  """Boxed leaves as `train.frozen_dtype` wants them: cast, or with int8 quantised."""
  if dtype != INT8:
    return optim.cast(flat, dtype)
  out: Flat = {}
  for path, leaf in flat.items():
    kernel = _is_kernel(path, leaf)
    out |= _quantised(path, leaf) if kernel else {path: optim.cast(leaf, REST)}
  return out


def quantised(flat: Flat, boxed: Flat) -> Flat:
  """What `stored` makes of arrays in `REST`, one by one: each kernel is deleted once it is done.

  Args:
    boxed: the same leaves, abstract; their names are read.
  """
  jitted = jax.jit(lambda leaf: nn.unbox(stored(leaf, INT8)))
  out: Flat = {}
  for path, leaf in flat.items():
    if _is_kernel(path, boxed[path]):
      out |= jax.block_until_ready(jitted({path: boxed[path].replace(value=leaf)}))
      leaf.delete()
    else:
      out[path] = leaf
  return out


def floats(weights: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
  """Weights with each kernel times its scale, in `REST`, as it is read."""
  out = {path: tensor for path, tensor in weights.items() if not path.endswith("/kernel_scale")}
  for path in weights.keys() - out.keys():
    kernel = path.removesuffix("_scale")
    out[kernel] = _product(weights[kernel], weights[path])
  return out


def _product(kernel: LazyTensor, scale: LazyTensor) -> LazyTensor:
  dtype = jnp.dtype(REST)
  part = lambda index: (kernel[index] * scale[index]).astype(dtype)
  return LazyTensor(kernel.shape, dtype, lambda: part(()), part)


def _is_kernel(path: str, leaf: nn.LogicallyPartitioned) -> bool:
  """Whether it is a linear map's; the sides of a convolution's kernel have no names."""
  return path.endswith("/kernel") and None not in leaf.names


def _quantised(path: str, leaf: nn.LogicallyPartitioned) -> Flat:
  stack, outputs = split_axes(leaf.names)
  kernel, scale = quantise(leaf.value, tuple(range(stack, outputs)))
  names = (*leaf.names[:stack], *(None,) * (outputs - stack), *leaf.names[outputs:])
  return {
    path: leaf.replace(value=kernel),
    f"{path}_scale": nn.LogicallyPartitioned(scale, names),
  }


def quantise(
  kernel: Float[Array, "..."], inputs: tuple[int, ...]
) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
  """A kernel's integers and scales; `inputs` are the dimensions that a product sums over."""
  kernel = kernel.astype(jnp.float32)
  largest = jnp.abs(kernel).max(inputs, keepdims=True)
  scale = jnp.where(largest > 0, largest, 1) / 127
  return jnp.round(kernel / scale).astype(jnp.int8), scale
