"""Arithmetic of a model, counted in its traced form: nothing is computed, no compiler asked.

Matrix products and convolutions are counted, two operations for each multiplication, the body of a
scan as often as it runs (XLA's own count takes it once). A product has as many operations again for
the gradient of each operand that depends on something trainable, so that frozen weights cost
forward and, where something trainable lies before them, activation gradients only.

What is recomputed in the backward pass is not the model's arithmetic: model FLOPs utilisation
(PaLM, Chowdhery et al. 2022, appendix B) leaves it out. Causal attention counts in full, as there.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from medflax.models.vlm import model_inputs


@dataclasses.dataclass(frozen=True)
class Flops:
  """Operations of a forward pass, and of the gradients of activations and of weights."""

  forward: int | float = 0.0
  activation_gradient: int | float = 0.0
  weight_gradient: int | float = 0.0

  @property
  def total(self) -> int | float:
    """All three."""
    return self.forward + self.activation_gradient + self.weight_gradient

  def __add__(self, other: "Flops") -> "Flops":
    return Flops(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

  def __mul__(self, times: int | float) -> "Flops":
    return Flops(*(x * times for x in dataclasses.astuple(self)))


Counts = dict[str, Flops]  # by part


@dataclasses.dataclass(frozen=True)
class _From:
  """What a value is made from: something trainable, data (else weights alone)."""

  trainable: bool = False
  data: bool = False

  def __or__(self, other: "_From") -> "_From":
    return _From(self.trainable or other.trainable, self.data or other.data)


# The first that is found in the path of modules names the part.
PARTS = (
  ("vision tower", re.compile(r"/tower/")),
  ("connector", re.compile(r"/connector/")),
  ("gated blocks", re.compile(r"/xattn/")),
  ("fused head", re.compile(r"/fused/")),
  ("attention", re.compile(r"/lm/.*/attn/")),
  ("mlp", re.compile(r"/lm/.*/mlp/")),
  ("head", re.compile(r"/lm/")),
)
OTHER = "other"


def part_of(path: str) -> str:
  """The part of the model that a path of modules lies in."""
  return next((name for name, pattern in PARTS if pattern.search(f"/{path}/")), OTHER)


def training(model: Any, state: Any, batch: Mapping[str, Any]) -> Counts:
  """Of one training step, by part; abstract arrays will do.

  Args:
    model: a `medflax.models.VLM`.
    state: a `TrainState`; what is `trainable` gets gradients.
    batch: of the step, all micro-batches together.
  """
  for name in ("tower", "lm"):  # a kernel hides what is differentiated
    if getattr(part := getattr(model, name), "attention", "xla") != "xla":
      model = model.clone(**{name: part.clone(attention="xla")})

  def forward(trainable, frozen, batch):
    args, kwargs = model_inputs(model.hide(batch))
    params = state.replace(trainable=trainable, frozen=frozen).params
    return model.apply({"params": params}, *args, **kwargs)

  return count(forward, state.trainable, state.frozen, dict(batch))


def count(fn: Callable[..., Any], trainable: Any, frozen: Any, *data: Any) -> Counts:
  """Of `fn(trainable, frozen, *data)` and its gradient by `trainable`; by part of the model."""
  closed = jax.make_jaxpr(fn)(trainable, frozen, *data)
  origins = [_From(trainable=True)] * len(jax.tree.leaves(trainable))
  origins += [_From()] * len(jax.tree.leaves(frozen))
  origins += [_From(data=True)] * len(jax.tree.leaves(data))
  counts: Counts = {}
  _walk(closed.jaxpr, origins, "", counts)
  return counts


def executed(fn: Callable[..., Any], *args: Any) -> int | float:
  """Operations of `fn` as it is traced: of a training step with all that it recomputes."""
  counts: Counts = {}
  jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
  _walk(jaxpr, [_From()] * len(jaxpr.invars), "", counts)
  return total(counts).forward


def total(counts: Counts) -> Flops:
  """The sum of all parts."""
  return sum(counts.values(), Flops())


def _walk(jaxpr: Jaxpr, origins: Sequence[_From], path: str, counts: Counts) -> list[_From]:
  """Adds what a traced function costs to `counts`; returns what its outputs are made from."""
  known = dict.fromkeys(jaxpr.constvars, _From()) | dict(zip(jaxpr.invars, origins, strict=True))
  look = lambda x: _From() if isinstance(x, Literal) else known[x]
  for eqn in jaxpr.eqns:
    inputs = [look(x) for x in eqn.invars]
    here = "/".join(filter(None, (path, str(eqn.source_info.name_stack))))
    outputs = _RULES.get(eqn.primitive.name, _plain)(eqn, inputs, here, counts)
    known.update(zip(eqn.outvars, outputs, strict=True))
  return [look(x) for x in jaxpr.outvars]


def _product(flops: Callable[[JaxprEqn], float]) -> Callable[..., list[_From]]:
  """The rule of an operation that is linear in each of two operands."""

  def rule(eqn, inputs, path, counts):
    cost, gradients = flops(eqn), [x for x in inputs if x.trainable]
    of_data = sum(x.data for x in gradients)
    cost = Flops(cost, cost * of_data, cost * (len(gradients) - of_data))
    part = part_of(path)
    counts[part] = counts.get(part, Flops()) + cost
    return _plain(eqn, inputs, path, counts)

  return rule


def _dot(eqn: JaxprEqn) -> int | float:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  shape = _shape(eqn.invars[0])
  return 2.0 * math.prod(_shape(eqn.outvars[0])) * math.prod(shape[i] for i in contracted)


def _conv(eqn: JaxprEqn) -> int | float:
  kernel = _shape(eqn.invars[1])
  outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
  return 2.0 * math.prod(_shape(eqn.outvars[0])) * math.prod(kernel) / outputs


def _shape(variable: Any) -> tuple[int, ...]:
  return variable.aval.shape


def _plain(eqn, inputs, path, counts) -> list[_From]:
  """Calls are followed; anything else costs nothing, and its outputs are made from all inputs."""
  for called in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
    if _is_jaxpr(called) and len(_open(called).invars) == len(inputs):
      return _walk(_open(called), inputs, path, counts)
  merged = _From()
  for x in inputs:
    merged |= x
  whole = lambda x: not jax.numpy.issubdtype(x.aval.dtype, jax.numpy.inexact)
  return [_From(False, merged.data) if whole(x) else merged for x in eqn.outvars]


def _stop(eqn, inputs, path, counts) -> list[_From]:
  return [_From(data=inputs[0].data)]


def _scan(eqn, inputs, path, counts) -> list[_From]:
  inputs, body = list(inputs), _open(eqn.params["jaxpr"])
  # JAX versions name their numbers differently: what a step takes or leaves a slice of has an axis
  # more outside.
  carried = _whole(eqn.outvars, body.outvars)
  consts = _whole(eqn.invars, body.invars) - carried
  slots = range(consts, consts + carried)
  while True:  # until what the carry is made from stays: it only ever grows
    inner: Counts = {}
    outputs = _walk(body, inputs, path, inner)
    grown = [inputs[i] | x for i, x in zip(slots, outputs, strict=False)]
    if grown == [inputs[i] for i in slots]:
      break
    inputs[consts : consts + carried] = grown
  for part, cost in inner.items():
    counts[part] = counts.get(part, Flops()) + cost * eqn.params["length"]
  return outputs


def _whole(outside: Sequence[Any], inside: Sequence[Any]) -> int:
  """How many variables of a scan a step sees whole: they stand before the sliced ones."""
  pairs = zip(outside, inside, strict=True)
  return sum(len(_shape(whole)) == len(_shape(one)) for whole, one in pairs)


def _cond(eqn, inputs, path, counts) -> list[_From]:
  """The dearest branch; outputs are made from what they are in any, and from the choice."""
  results = []
  for branch in eqn.params["branches"]:
    inner: Counts = {}
    results.append((inner, _walk(_open(branch), inputs[1:], path, inner)))
  dearest = max((inner for inner, _ in results), key=lambda inner: total(inner).total)
  for part, cost in dearest.items():
    counts[part] = counts.get(part, Flops()) + cost
  by_output = zip(*(outputs for _, outputs in results), strict=True)
  merge = lambda xs: list(itertools.accumulate(xs, _From.__or__))[-1]
  return [merge(xs) | _From(data=inputs[0].data) for xs in by_output]


def _while(eqn, inputs, path, counts) -> list[_From]:
  """Its body once: how often it runs is not known before."""
  consts = eqn.params["cond_nconsts"]
  return _walk(_open(eqn.params["body_jaxpr"]), inputs[consts:], path, counts)


def _pallas(eqn, inputs, path, counts) -> list[_From]:
  """A kernel's body as often as its grid has places, also where it leaves some out."""
  body, inner = _open(eqn.params["jaxpr"]), {}
  _walk(body, [_From()] * len(body.invars), path, inner)
  for part, cost in inner.items():
    counts[part] = counts.get(part, Flops()) + cost * math.prod(eqn.params["grid_mapping"].grid)
  return _plain(eqn, inputs, path, counts)


def _shard_map(eqn, inputs, path, counts) -> list[_From]:
  """Shapes inside are one device's."""
  inner: Counts = {}
  outputs = _walk(_open(eqn.params["jaxpr"]), inputs, path, inner)
  for part, cost in inner.items():
    counts[part] = counts.get(part, Flops()) + cost * eqn.params["mesh"].size
  return outputs


def _is_jaxpr(x: Any) -> bool:
  return isinstance(x, Jaxpr | ClosedJaxpr)


def _open(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
  return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


_RULES = {
  "stop_gradient": _stop,
  "dot_general": _product(_dot),
  "conv_general_dilated": _product(_conv),
  "scan": _scan,
  "cond": _cond,
  "while": _while,
  "shard_map": _shard_map,
  "pallas_call": _pallas,
}
