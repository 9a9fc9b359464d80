"""How probable given answers are after prompts that were read."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

# More logits than this are not held at once: 1 GiB of float32.
MAX_LOGITS = 2**28


@functools.partial(jax.jit, static_argnames="model")
def score(
  model: nn.Module,
  params: PyTree,
  logits: Float[Array, "b 1 vocab"],
  read: PyTree,
  candidates: Int[Array | np.ndarray, "b c l"],
) -> Float[Array, "b c"]:
  """Sums of the log-probabilities, in nats, of each candidate's tokens.

  All candidates of a row stand side by side behind its prompt and do not see each other, so that
  they take one pass together, or a few if they are very many.

  Args:
    model: a `medflax.models.VLM` or whatever has its `extend`; hashable.
    logits, read: from `decode.read_prompts`, with room for `c` continuations of `l` tokens.
    candidates: their tokens, padded with -1; one without tokens has 0.
  """
  candidates = jnp.asarray(candidates)
  every = jnp.broadcast_to(logits, (*candidates.shape[:2], logits.shape[-1]))
  total = _logprobs(every, candidates[:, :, 0])
  b, c, length = candidates.shape
  if length == 1 or c == 0:
    return total
  size = max(1, min(c, MAX_LOGITS // (b * (length - 1) * logits.shape[-1])))
  padded = jnp.pad(candidates, ((0, 0), (0, -c % size), (0, 0)), constant_values=-1)
  groups = padded.reshape(b, -1, size, length).swapaxes(0, 1)
  rest = jax.lax.map(lambda group: _rest(model, params, read, group), groups)
  return total + rest.swapaxes(0, 1).reshape(b, -1)[:, :c]


def _rest(
  model: nn.Module, params: PyTree, read: PyTree, candidates: Int[Array, "b c l"]
) -> Float[Array, "b c"]:
  """The sums without the first tokens."""
  b, c, length = candidates.shape
  place = np.arange(c * (length - 1))
  branch, depth = place // (length - 1), place % (length - 1)
  seen = (branch[:, None] == branch) & (depth[:, None] >= depth)
  tokens = jnp.maximum(candidates[:, :, :-1], 0).reshape(b, -1)
  logits, _ = model.apply({"params": params}, tokens, read, seen[None], method="extend")
  following = candidates[:, :, 1:].reshape(b, -1)
  return _logprobs(logits, following).reshape(b, c, -1).sum(-1)


def _logprobs(logits: Float[Array, "b t vocab"], tokens: Int[Array, "b t"]) -> Float[Array, "b t"]:
  """The log-probability of each token; 0 of -1."""
  logits = logits.astype(jnp.float32)
  picked = jnp.take_along_axis(logits, jnp.maximum(tokens, 0)[..., None], axis=-1)[..., 0]
  return jnp.where(tokens < 0, 0.0, picked - jax.nn.logsumexp(logits, axis=-1))
