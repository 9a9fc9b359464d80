"""Where each dimension of each array lives: logical axis names to mesh axes.

Fully sharded data parallelism splits weights over `fsdp` by their `embed`-like dimension;
tensor parallelism splits heads, MLP width and vocabulary over `tensor`; sequence parallelism
splits the tokens of a row, whose keys and values are gathered; batches are split over `replica`,
`data` and `fsdp` together. A name not listed is not split.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from medflax.parallel.mesh import AXES, ROWS
from medflax.utils import UserError

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
  ("batch", ROWS),
  ("media", AXES),  # all media of a batch, each by itself
  ("length", "sequence"),
  ("act_embed", None),
  ("act_heads", "tensor"),
  ("act_mlp", "tensor"),
)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over `ROWS`; every array of a batch has rows first."""
  return NamedSharding(mesh, PartitionSpec(ROWS))


def num_row_shards(mesh: Mesh | AbstractMesh) -> int:
  """How many devices, or groups of them, the rows of a batch are split over."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def data_share(mesh: Mesh) -> tuple[int, int]:
  """`(index, count)`: a batch is `count` blocks of rows, of which this process reads one.

  Processes whose devices hold parts of the same rows (`tensor` and `sequence`) read the same.

  Raises:
    UserError: if this process's devices hold rows from here and there.
  """
  ways = num_row_shards(mesh)
  held: Any = batch_sharding(mesh).addressable_devices_indices_map((ways,)).values()
  mine = sorted({rows.indices(ways)[0] for (rows,) in held})
  if mine != list(range(mine[0], mine[0] + len(mine))) or mine[0] % len(mine):
    raise UserError(
      "config.mesh gives one process rows that are not one after the other; let mesh.sequence × "
      "mesh.tensor divide, or be a multiple of, the devices of a process"
    )
  return mine[0] // len(mine), ways // len(mine)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's rows of a batch as global device arrays."""
  sharding = batch_sharding(mesh)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def put_whole(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """A batch that every process holds in full as global device arrays."""
  sharding = batch_sharding(mesh)
  put = lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
  return {key: put(np.asarray(x)) for key, x in batch.items()}


def activation_spec(shape: Sequence[int], *names: str | None) -> PartitionSpec | None:
  """How the rules in force split an activation, where they divide it; None: there are none."""
  mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
  if mesh.empty or mesh.size == 1 or not rules:
    return None
  return _fitting(nn.logical_to_mesh_axes(names, rules), tuple(shape), mesh)


def constrain(x: Shaped[Array, "..."], *names: str | None) -> Shaped[Array, "..."]:
  """An activation split as the rules in force say; inside `jax.set_mesh`."""
  spec = activation_spec(x.shape, *names)
  return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


def gathered(
  weight: Shaped[Array | np.ndarray, "..."], *names: str | None
) -> Shaped[Array | np.ndarray, "..."]:
  """A weight as a product wants it: whole along `fsdp`, over which it is stored in parts.

  Left to itself, the partitioner splits products by what they sum over instead, and sends the sums
  of a whole batch's activations. The gradient is handed back in parts.

  Args:
    weight: with a logical name for each dimension.
  """
  mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
  if mesh.empty or mesh.shape["fsdp"] == 1 or not rules:
    return weight
  spec = lambda rules: _fitting(nn.logical_to_mesh_axes(names, rules), weight.shape, mesh)
  stored, whole = spec(rules), spec([rule for rule in rules if rule[1] != "fsdp"])
  put = jax.lax.with_sharding_constraint
  gather = jax.custom_vjp(lambda weight: put(weight, whole))
  gather.defvjp(lambda weight: (put(weight, whole), None), lambda _, g: (put(g, stored),))
  return gather(weight)


def looked_up(
  table: Float[Array, "n d"], numbers: Int[Array, "b t"], *names: str | None, dtype: Any
) -> Float[Array, "b t d"]:
  """Rows of a table that stays in its parts: what is exchanged is what was found.

  Devices that hold parts of the same rows, along `fsdp`, look up theirs for the tokens of all of
  them. Left to itself, the partitioner has every device hold the result for the whole batch.

  Args:
    numbers: of the rows; the first dimension is the batch's, the second tokens.
    names: logical, of the table's dimensions.
    dtype: of the result.
  """
  mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
  find = lambda numbers: jnp.take(table, numbers, axis=0).astype(dtype)
  if mesh.empty or mesh.shape["fsdp"] == 1 or not rules:
    return find(numbers)
  spec = lambda names, shape: _fitting(nn.logical_to_mesh_axes(names, rules), shape, mesh)
  rows, tokens = spec(("batch", "length"), numbers.shape)
  (part,) = spec(names[-1:], table.shape[-1:])
  together = tuple(axis for axis in rows or () if axis != part)
  put = lambda x, *axes: jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))
  # In steps, each of which is one exchange.
  numbers = put(put(numbers, rows, tokens), together, tokens)
  return put(put(find(numbers), together, tokens, part), rows, tokens, None)


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
    if len(leaf.names) != len(leaf.value.shape):  # of an optimiser that keeps less (Adafactor)
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
