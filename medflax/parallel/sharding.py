"""Where each dimension of each array lives: logical axis names to mesh axes.

Fully sharded data parallelism splits weights over `fsdp` by their `embed`-like dimension;
tensor parallelism splits heads, MLP width and vocabulary over `tensor`; batches are split over
`data` and `fsdp` together. A name not listed is not split.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

RULES = (
  # weights
  ("vocab", "tensor"),
  ("embed", "fsdp"),
  ("vision_embed", "fsdp"),
  ("heads", "tensor"),
  ("kv_heads", "tensor"),
  ("mlp", "tensor"),
  ("head_dim", None),
  ("layers", None),
  ("latents", None),
  ("patch", None),
  ("norm", None),
  ("pos", None),
  # activations
  ("batch", ("data", "fsdp")),
  ("length", None),
  ("act_embed", None),
  ("act_heads", "tensor"),
  ("act_mlp", "tensor"),
)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over `data` and `fsdp`; every array of a batch has rows first."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's rows of a batch as global device arrays."""
  sharding = batch_sharding(mesh)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def state_shardings(boxed: Any, mesh: Mesh | AbstractMesh) -> Any:
  """Shardings of a state whose weights still carry their logical axis names.

  Args:
    boxed: an abstract tree (`jax.eval_shape`) with `nn.LogicallyPartitioned` leaves wherever
      names are known; optimiser state made from boxed weights has them too.

  Returns:
    The unboxed tree's `NamedSharding`s. A dimension that its mesh axes do not divide, and
    anything without names, is replicated.
  """

  def one(leaf):
    if not isinstance(leaf, nn.LogicallyPartitioned):
      return NamedSharding(mesh, PartitionSpec())
    axes = nn.logical_to_mesh_axes(leaf.names, RULES)
    return NamedSharding(mesh, _fitting(axes, leaf.value.shape, mesh))

  return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def _fitting(
  axes: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
  def ways(axis) -> int:
    return math.prod(mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis or ()))

  return PartitionSpec(*(a if n % ways(a) == 0 else None for a, n in zip(axes, shape, strict=True)))


def with_shardings(abstract: Any, shardings: Any) -> Any:
  """The abstract tree with a sharding on each leaf: what lowering and restoring want."""
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings
  )


def bytes_per_device(abstract: Any) -> int:
  """Bytes one device holds of a tree of sharded abstract arrays."""
  leaves = jax.tree.leaves(abstract)
  return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves)
