"""Names and layouts of foreign checkpoints as tables: one row for each leaf of ours.

A family's table is all it takes to read its checkpoints and to write them back: fused and
interleaved tensors, stacked layers and transposed kernels are described, not programmed.

    "lm/groups/layer_0/attn/query/kernel": Tensor(
      "model.layers.{}.self_attn.q_proj.weight", layers=(0, 1), axes=(1, 0), shape=(-1, width)
    )
"""

import collections
import dataclasses
import re
from collections.abc import Iterator
from collections.abc import Mapping as AnyMapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from medflax.utils import UserError

ROWS = 16
NAMED = 10  # so many names of each kind of mistake are told


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where one leaf of ours stands in a foreign checkpoint.

  The foreign tensor is cut (`rows`, `groups`, `axis`), seen in another shape (`view`), then
  transposed (`axes`), then reshaped to our leaf's shape.

  Attributes:
    key: foreign name; "{}" stands for a layer's number.
    layers: numbers for "{}", whose tensors are stacked on our leaf's first axis (nn.scan).
    rows: (start, stop) of `axis` that are ours, the rest being other leaves' (fused qkv).
    groups: > 0 where `axis` interleaves so many groups, each of which holds `rows` (GPT-NeoX).
    axis: which axis `rows` and `groups` speak of, 1 for the [in, out] kernels of GPT-2.
    axes: transposition, (1, 0) for a torch Linear; () for none.
    shape: of the cut foreign tensor before it is transposed, at most one -1; () where, once
      transposed, it has our leaf's shape. Writing back needs it: whether [d, h, k] was
      [d, h·k] or [d·h, k] cannot be told from our leaf.
    view: shape that the cut tensor is seen in before it is transposed, for the order within an
      axis (patches whose pixels are flattened otherwise); needs `shape`.
  """

  key: str
  layers: tuple[int, ...] = ()
  rows: tuple[int, int] | None = None
  groups: int = 0
  axis: int = 0
  axes: tuple[int, ...] = ()
  shape: tuple[int, ...] = ()
  view: tuple[int, ...] = ()

  @property
  def keys(self) -> tuple[str, ...]:
    """The foreign names, in the order of our first axis if there are layers."""
    return tuple(self.key.format(n) for n in self.layers) if self.layers else (self.key,)


Mapping = dict[str, Tensor]  # our path -> where it stands


def to_ours(
  mapping: Mapping,
  abstract: AnyMapping[str, Any],
  source: AnyMapping[str, Any],
  *,
  ignore: str = "",
) -> dict[str, Shaped[np.ndarray, "..."]]:
  """Our flat parameters out of a foreign checkpoint, in its dtypes.

  Args:
    abstract: our leaves by path, each with `.shape`.
    source: foreign tensors by name, each with `.shape` and readable by `np.asarray`.
    ignore: regex (full match) of foreign names that are not weights or stand there twice.

  Raises:
    UserError: naming what is missing, unexpected or misshapen.
  """
  check(mapping, abstract, source, ignore=ignore)
  ours = {}
  for path, leaf in abstract.items():
    parts = list(pieces(mapping[path], leaf.shape, source))
    ours[path] = np.stack(parts) if mapping[path].layers else parts[0]
  return ours


def check(
  mapping: Mapping, abstract: AnyMapping[str, Any], source: AnyMapping[str, Any], *, ignore: str
) -> None:
  """Compares names and shapes, reading nothing; see `to_ours`.

  Raises:
    UserError: naming what is missing, unexpected, misshapen or no weight.
  """
  wanted = {path: mapping[path] for path in abstract if path in mapping}
  known = {key for tensor in mapping.values() for key in tensor.keys}
  wrong = {
    "missing": [key for tensor in wanted.values() for key in tensor.keys if key not in source],
    "without a counterpart": [path for path in abstract if path not in mapping],
    "unexpected": [k for k in source if k not in known and not re.fullmatch(ignore, k)],
    "misshapen": list(_misshapen(wanted, abstract, source)),
    "no floating-point numbers": list(_integers(wanted, source)),
  }
  if told := [f"{kind}: {_listed(names)}" for kind, names in wrong.items() if names]:
    raise UserError("the checkpoint does not fit the model; " + "; ".join(told))


def pieces(
  tensor: Tensor, shape: tuple[int, ...], source: AnyMapping[str, Any]
) -> Iterator[Shaped[np.ndarray, "..."]]:
  """One leaf of ours of the given shape, layer by layer (a single piece if not stacked)."""
  inner = shape[1:] if tensor.layers else shape
  for key in tensor.keys:
    x = _cut(tensor, np.asarray(source[key]))
    x = x.reshape(tensor.view) if tensor.view else x
    yield _transposed(x, tensor.axes).reshape(inner)


def split(mapping: Mapping) -> dict[str, dict[str, tuple[Tensor, int | None]]]:
  """What each foreign tensor is made of: by its name and our path, a row and the layer of ours.

  The rows name that tensor alone, so that `to_theirs` writes it from single layers (None: from
  whole leaves), and a checkpoint may be written tensor by tensor.
  """
  found: dict[str, dict[str, tuple[Tensor, int | None]]] = collections.defaultdict(dict)
  for path, tensor in mapping.items():
    for i, key in enumerate(tensor.keys):
      single = dataclasses.replace(tensor, key=key, layers=())
      found[key][path] = (single, i if tensor.layers else None)
  return dict(found)


def their_shape(parts: AnyMapping[str, tuple[Tensor, tuple[int, ...]]]) -> tuple[int, ...]:
  """The shape of a foreign tensor, from the rows and shapes of the layers that it is made of."""
  shapes = [(tensor, _foreign_shape(tensor, shape)) for tensor, shape in parts.values()]
  tensor, shape = shapes[0]
  if tensor.rows is None:
    return shape
  size = max(tensor.rows[1] for tensor, _ in shapes if tensor.rows) * (tensor.groups or 1)
  return *shape[: tensor.axis], size, *shape[tensor.axis + 1 :]


def to_theirs(
  mapping: Mapping, weights: AnyMapping[str, Shaped[np.ndarray, "..."]]
) -> dict[str, Shaped[np.ndarray, "..."]]:
  """The foreign checkpoint of our flat weights: the inverse of `to_ours`.

  Fused tensors are put together again; rows that no leaf holds become zero.

  Raises:
    UserError: naming leaves without a counterpart.
  """
  if unknown := [path for path in weights if path not in mapping]:
    raise UserError(f"the foreign layout has no place for: {_listed(unknown)}")
  whole, cut = {}, collections.defaultdict(list)
  for path, leaf in weights.items():
    tensor = mapping[path]
    for key, x in zip(tensor.keys, leaf if tensor.layers else [leaf], strict=True):
      part = _restored(tensor, x)
      if tensor.rows is None:
        whole[key] = part
      else:
        cut[key].append((tensor, part))
  return whole | {key: _fused(parts) for key, parts in cut.items()}


def _cut(tensor: Tensor, x: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
  """The part of a foreign tensor that is ours, in the foreign layout."""
  if tensor.rows is None:
    return x
  axis = tensor.axis
  before, after = x.shape[:axis], x.shape[axis + 1 :]
  x = x.reshape(*before, tensor.groups or 1, -1, *after)
  return x[(slice(None),) * (axis + 1) + (slice(*tensor.rows),)].reshape(*before, -1, *after)


def _cut_shape(tensor: Tensor, shape: tuple[int, ...]) -> tuple[int, ...] | None:
  """The shape `_cut` gives, or None where the rows are not there."""
  if tensor.rows is None:
    return shape
  groups, (start, stop) = tensor.groups or 1, tensor.rows
  if len(shape) <= tensor.axis or shape[tensor.axis] % groups:
    return None
  if shape[tensor.axis] // groups < stop:
    return None
  return *shape[: tensor.axis], groups * (stop - start), *shape[tensor.axis + 1 :]


def _misshapen(
  wanted: Mapping, abstract: AnyMapping[str, Any], source: AnyMapping[str, Any]
) -> Iterator[str]:
  for path, tensor in wanted.items():
    shape = tuple(abstract[path].shape)
    if tensor.layers and shape[:1] != (len(tensor.layers),):
      yield f"{path} {shape} for {len(tensor.layers)} layers"
      continue
    expected = _foreign_shape(tensor, shape[1:] if tensor.layers else shape)
    for key in tensor.keys:
      if key in source and _cut_shape(tensor, tuple(source[key].shape)) != expected:
        yield f"{key} {tuple(source[key].shape)} for {path} {shape}"


def _integers(wanted: Mapping, source: AnyMapping[str, Any]) -> Iterator[str]:
  for tensor in wanted.values():
    for key in tensor.keys:
      if key in source and not jnp.issubdtype(source[key].dtype, jnp.floating):
        yield f"{key} {source[key].dtype}"


def _foreign_shape(tensor: Tensor, inner: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of the cut foreign tensor that makes a leaf (or one layer of it) of shape `inner`."""
  if tensor.shape:
    known = -int(np.prod(tensor.shape)) if -1 in tensor.shape else 1
    rest = int(np.prod(inner)) // max(known, 1)
    return tuple(rest if n == -1 else n for n in tensor.shape)
  return tuple(inner[i] for i in np.argsort(tensor.axes)) if tensor.axes else inner


def _restored(tensor: Tensor, x: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
  """One layer of our leaf in the foreign layout."""
  shape = _foreign_shape(tensor, x.shape)
  view = tensor.view or shape
  axes = tensor.axes or tuple(range(len(view)))
  back = tuple(int(i) for i in np.argsort(axes))
  return _transposed(x.reshape([view[i] for i in axes]), back).reshape(shape)


def _transposed(x: Shaped[np.ndarray, "..."], axes: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
  """The transpose; of a matrix in C order, which NumPy's copies would write number by number.

  A cache line holds 16 to 32 numbers, so that many rows are transposed at a time.
  """
  if axes != (1, 0):
    return x.transpose(axes) if axes else x
  out = np.empty(x.shape[::-1], x.dtype)
  for i in range(0, len(x), ROWS):
    out[:, i : i + ROWS] = x[i : i + ROWS].T
  return out


def _fused(parts: list[tuple[Tensor, Shaped[np.ndarray, "..."]]]) -> Shaped[np.ndarray, "..."]:
  """A foreign tensor from those who hold rows of it."""
  first, x = parts[0]
  axis, groups = first.axis, first.groups or 1
  before, after = x.shape[:axis], x.shape[axis + 1 :]
  rows = [tensor.rows or (0, 0) for tensor, _ in parts]
  size = max(stop for _, stop in rows)
  out = np.zeros((*before, groups, size, *after), x.dtype)
  for (start, stop), (_, part) in zip(rows, parts, strict=True):
    index = (slice(None),) * (axis + 1) + (slice(start, stop),)
    out[index] = part.reshape(*before, groups, stop - start, *after)
  return out.reshape(*before, groups * size, *after)


def _listed(names: list[str]) -> str:
  more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
  return ", ".join(names[:NAMED]) + more
