"""Whole systems: media in, logits, losses and generated tokens out."""

import copy
import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medflax.inference.decode import generate
from medflax.models import build_model
from medflax.pretrained.checkpoint import Checkpoint
from medflax.pretrained.leaves import abstract_leaves
from tests.golden_cases.base import Result, compare, import_weights, same_tokens
from tests.golden_cases.decoders import BFLOAT16_TOLERANCE
from tests.golden_cases.vision import AS_IS, QUICK

COMMON = {"dtype": "float32", "remat": "none"}


class System:
  """A checkpoint's model with its weights, imported, and its functions compiled.

  Golden pixels are normalised already, so that the tower takes them as they are.
  """

  def __init__(self, checkpoint: Checkpoint):
    sections = checkpoint.sections | {"tower": checkpoint.sections["tower"] | AS_IS}
    self.sections = sections
    self.model = build_model(flax.core.freeze(COMMON | sections))
    leaves = abstract_leaves(sections, **checkpoint.beside)
    weights = import_weights(checkpoint.mapping, leaves, checkpoint.tensors, checkpoint.ignore)
    flat = traverse_util.flatten_dict(weights["params"], sep="/") | checkpoint.adapters
    self.params = {"params": traverse_util.unflatten_dict(flat, sep="/")}

  def apply(self, *inputs: Any, method: Any = None, catch: str = "", **options: Any) -> Any:
    """A method of the model; also what `<module>.<method>` of `catch` returned on the way."""
    static = {name: x for name, x in options.items() if isinstance(x, int)}
    module, _, name = catch.rpartition(".")
    caught = lambda m, method_name: (m.name, method_name) == (module, name)

    def run(params, inputs, options):
      found = self.model.apply(
        params,
        *inputs,
        **options,
        **static,
        method=method,
        capture_intermediates=caught if catch else False,
        mutable=["intermediates"] if catch else False,
      )
      if not catch:
        return found
      out, state = found
      [values] = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, tuple))
      return out, values[0]

    rest = {name: x for name, x in options.items() if name not in static}
    return jax.jit(run, compiler_options=QUICK)(self.params, inputs, rest)


def in_bfloat16(
  system: System, *inputs: Any, want: np.ndarray, where: np.ndarray | None = None, **options: Any
) -> Result:
  """What the model returns in bfloat16; if needed, thrice what rounding the weights does passes."""
  changed = copy.copy(system)
  changed.model = build_model(flax.core.freeze(COMMON | system.sections | {"dtype": "bfloat16"}))
  outputs = lambda s: s.apply(*inputs, **options)
  result = compare("in bfloat16", outputs(changed), want, where)
  if result.error > BFLOAT16_TOLERANCE:
    changed = copy.copy(system)
    changed.params = jax.tree.map(
      lambda x: np.asarray(x, jnp.bfloat16).astype(x.dtype), system.params
    )
    alone = compare("", outputs(changed), want, where).error
    what = f"in bfloat16 (weights alone {alone:.1e})"
    return dataclasses.replace(result, what=what, tolerance=max(BFLOAT16_TOLERANCE, 3 * alone))
  return dataclasses.replace(result, tolerance=BFLOAT16_TOLERANCE)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
  """Tokens with inline media, `[b, t]` each, as `docs/design.md` has them."""

  tokens: np.ndarray
  media_index: np.ndarray
  soft_index: np.ndarray
  segment_ids: np.ndarray
  media_ordinal: np.ndarray  # [b, m]

  def options(self, kind: str) -> dict[str, Any]:
    """The arguments of `VLM.__call__` behind tokens and `media_index`."""
    positions = np.maximum(np.cumsum(self.segment_ids, axis=1) - 1, 0)
    return dict(
      media_ordinal={kind: jnp.asarray(self.media_ordinal)},
      media_first=jnp.asarray(self.media_index),
      positions=jnp.asarray(positions),
      segment_ids=jnp.asarray(self.segment_ids),
      soft_index=jnp.asarray(self.soft_index),
    )

  def take(self, rows: slice) -> "Row":
    return Row(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


def row(tokens, media_index, soft_index, segment_ids=None, media: int = 1) -> Row:
  """A `Row` whose media have slots in their order; every token counts unless told otherwise."""
  as_int = lambda x: np.asarray(x).astype(np.int32)
  segments = np.ones_like(tokens) if segment_ids is None else segment_ids
  ordinals = np.broadcast_to(np.arange(1, media + 1), (len(tokens), media))
  return Row(*map(as_int, (tokens, media_index, soft_index, segments, ordinals)))


def greedy(
  system: System, features: jax.Array, prompt: Row, want: np.ndarray, stop: int = -1
) -> Result:
  """As many greedy tokens as there are wanted; what theirs has after `stop` does not count."""
  batch = prompt.options("media") | dict(
    features=features,
    tokens=jnp.asarray(prompt.tokens),
    media_index=jnp.asarray(prompt.media_index),
    media_ordinal=jnp.asarray(prompt.media_ordinal),
  )
  made = generate(
    system.model,
    system.params["params"],
    batch,
    max_new_tokens=want.shape[1],
    stop_ids=np.asarray([-1]),
    pad_id=0,
  )
  ended = np.cumsum(want == stop, axis=1) - (want == stop) > 0
  tokens, want = (np.where(ended, stop, x) for x in (made.tokens, want))
  return same_tokens(f"{want.shape[1]} greedy tokens", tokens, want)


def step_logits(system: System, features: jax.Array, prompt: Row, tokens: np.ndarray) -> np.ndarray:
  """The logits of every decoding step that gave `tokens`, `[b, n, vocab]`."""
  new = tokens.shape[1]
  logits, read = system.apply(
    features,
    jnp.asarray(prompt.tokens),
    jnp.asarray(prompt.media_index),
    method="prefill",
    length=new,
    **prompt.options("media"),
  )
  steps = [logits]
  for i in range(new - 1):
    token, seen = jnp.asarray(tokens[:, i : i + 1], jnp.int32), (np.arange(new) <= i)[None, None]
    logits, read = system.apply(token, read, seen, method="extend")
    steps.append(logits)
  return np.concatenate(steps, axis=1)


def margin(scores: np.ndarray, want: np.ndarray) -> Result:
  """The smallest distance between the best and the second-best token of any step."""
  best = np.sort(scores, axis=-1)
  error = abs(np.min(best[..., -1] - best[..., -2]) - want)
  return Result("margin of the best token", float(error / np.abs(scores).max()))


def weighted_loss(logits: jax.Array, labels: np.ndarray, weights: np.ndarray) -> jax.Array:
  """Σ w · cross-entropy / Σ w; labels below 0 have no cross-entropy."""
  logprobs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
  picked = jnp.take_along_axis(logprobs, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
  return -(picked * weights * (labels >= 0)).sum() / weights.sum()
