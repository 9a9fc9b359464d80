"""Beam search with a key-value cache: several continuations kept side by side, the best returned.

Beams are rows of the cache, put in a new order at every step. What becomes of a continuation that
has stopped, and how long ones compare with short ones, is a ranking's; see `RANKINGS`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from medflax.inference.decode import prefill

NEVER = -1e9  # log-probability of what cannot be


class Beams(NamedTuple):
  """Continuations of each row, k of them, best first.

  Attributes:
    tokens: `pad_id` after the stop token.
    scores: log-probabilities as the ranking compares them.
    lengths: tokens with the stop token.
    stopped: which have ended; an answer cut at the last step has where the ranking says so.
  """

  tokens: Int[Array, "b k n"]
  scores: Float[Array, "b k"]
  lengths: Int[Array, "b k"]
  stopped: Bool[Array, "b k"]

  def take(self, index: Int[Array, "b k2"]) -> "Beams":
    """Beams by their places."""
    pick = lambda x: jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), 1)
    return jax.tree.map(pick, self)


class Step(NamedTuple):
  """What a ranking decides at a step.

  Attributes:
    running: to be continued; scores are sums of log-probabilities.
    source: which of the beams before each of them continues.
    finished: best so far of what is not continued; unused where stopped beams stay among the rest.
    going: which rows may still get better.
  """

  running: Beams
  source: Int[Array, "b k"]
  finished: Beams
  going: Bool[Array, " b"]


class Rules(NamedTuple):
  """Arguments of `beam_search` that rankings need."""

  stop_ids: Int[Array | np.ndarray, " stops"]
  pad_id: Int[Array | np.ndarray, ""] | int
  length_penalty: Float[Array, ""] | float
  early_stopping: bool


def _candidates(
  running: Beams, totals: Float[Array, "b k v"], ranks: Float[Array, "b k v"], count: int, step: Any
) -> tuple[Beams, Int[Array, "b c"], Int[Array, "b c"]]:
  """The `count` best continuations by rank: beams with sums as scores, tokens, and sources."""
  b, _, vocab = totals.shape
  _, places = jax.lax.top_k(ranks.reshape(b, -1), count)
  source, token = places // vocab, (places % vocab).astype(jnp.int32)
  beams = running.take(source)
  sums = jnp.take_along_axis(totals.reshape(b, -1), places, axis=1)
  return beams._replace(tokens=beams.tokens.at[:, :, step].set(token), scores=sums), token, source


def _apart(
  before: Step, logprobs: Float[Array, "b k v"], step: Any, last: Any, rules: Rules
) -> Step:
  """Hugging Face's: stopped beams are set aside, and all sums over length^penalty at the end.

  Running beams have equally many tokens, so that their sums compare. A row ends when no running
  beam, if it stopped now, would enter its k best, or with `early_stopping` when it has k.
  """
  k, running = before.running.scores.shape[1], before.running
  totals = running.scores[..., None] + logprobs
  beams, token, source = _candidates(running, totals, totals, 2 * k, step)
  beams = beams._replace(lengths=jnp.full_like(beams.lengths, step + 1))
  ends = jnp.isin(token, rules.stop_ids) | last
  factor = (step + 1.0) ** rules.length_penalty
  counts = ends & (jnp.arange(2 * k) < k) & before.going[:, None]
  done = beams._replace(scores=jnp.where(counts, beams.scores / factor, NEVER), stopped=counts)
  both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), before.finished, done)
  finished = both.take(jax.lax.top_k(both.scores, k)[1])
  beams = beams._replace(scores=jnp.where(ends, NEVER, beams.scores))
  order = jax.lax.top_k(beams.scores, k)[1]
  running, source = beams.take(order), jnp.take_along_axis(source, order, axis=1)
  full = finished.stopped.all(axis=1)
  better = running.scores[:, 0] / factor > finished.scores.min(axis=1)
  going = before.going & ~(full & (rules.early_stopping | ~better))
  return Step(running, source, finished, going)


def _among(
  before: Step, logprobs: Float[Array, "b k v"], step: Any, last: Any, rules: Rules
) -> Step:
  """ClipCap's (Mokady et al. 2021): stopped beams stay until k with better means displace them."""
  del last
  running = before.running
  stays = jnp.where(jnp.arange(logprobs.shape[-1]) == rules.pad_id, 0.0, NEVER)
  logprobs = jnp.where(running.stopped[..., None], stays, logprobs)
  lengths = running.lengths + ~running.stopped
  totals = running.scores[..., None] + logprobs
  ranks = totals / lengths[..., None].astype(jnp.float32) ** rules.length_penalty
  k = running.scores.shape[1]
  beams, token, source = _candidates(running._replace(lengths=lengths), totals, ranks, k, step)
  beams = beams._replace(stopped=beams.stopped | jnp.isin(token, rules.stop_ids))
  means = beams.scores / beams.lengths.astype(jnp.float32) ** rules.length_penalty
  going = before.going & ~beams.stopped.all(axis=1)
  return Step(beams, source, beams._replace(scores=means), going)


Ranking = Callable[[Step, Array, Any, Any, Rules], Step]
RANKINGS: dict[str, Ranking] = {"apart": _apart, "among": _among}


@functools.partial(
  jax.jit, static_argnames=("model", "num_beams", "max_new_tokens", "ranking", "early_stopping")
)
def beam_search(
  model: nn.Module,
  params: PyTree,
  batch: Mapping[str, Array | np.ndarray],
  *,
  num_beams: int,
  max_new_tokens: int,
  stop_ids: Int[Array | np.ndarray, " stops"],
  pad_id: Int[Array | np.ndarray, ""] | int,
  ranking: str = "apart",
  length_penalty: Float[Array, ""] | float = 1.0,
  early_stopping: bool = False,
) -> Beams:
  """Continues left-padded prompts by the most probable of several continuations.

  Args:
    model, params, batch, max_new_tokens, stop_ids, pad_id: as of `decode.generate`.
    num_beams: how many are kept, and returned, for each row.
    ranking: a name in `RANKINGS`.
    length_penalty: a sum of log-probabilities is divided by length to this power.
    early_stopping: with "apart", a row ends as soon as `num_beams` have stopped.
  """
  rules = Rules(stop_ids, pad_id, length_penalty, early_stopping)
  logits, cache = prefill(model, params, batch, max_new_tokens)
  axes = _row_axes(model, params, batch, max_new_tokens)
  b, k = logits.shape[0], num_beams
  reordered = lambda cache, rows: jax.tree.map(
    lambda x, axis: x if axis < 0 else jnp.take(x, rows, axis=axis), cache, axes
  )
  each = jnp.repeat(jnp.arange(b), k)
  beams = Beams(
    tokens=jnp.full((b, k, max_new_tokens), pad_id, jnp.int32),
    scores=jnp.broadcast_to(jnp.where(jnp.arange(k) == 0, 0.0, NEVER), (b, k)),
    lengths=jnp.zeros((b, k), jnp.int32),
    stopped=jnp.zeros((b, k), bool),
  )
  none = beams._replace(scores=jnp.full((b, k), NEVER))
  going = jnp.asarray(batch["segment_ids"] > 0).any(axis=1)
  start = Step(beams, jnp.zeros((b, k), jnp.int32), none, going)

  def choose(logits, cache, before, step):
    logprobs = jax.nn.log_softmax(logits[:, -1].astype(jnp.float32)).reshape(b, k, -1)
    after = RANKINGS[ranking](before, logprobs, step, step == max_new_tokens - 1, rules)
    rows = (jnp.arange(b)[:, None] * k + after.source).reshape(-1)
    return reordered(cache, rows), after

  def proceed(state):
    _, after, step = state
    return (step < max_new_tokens) & after.going.any()

  def advance(state):
    cache, before, step = state
    tokens = jax.lax.dynamic_slice_in_dim(before.running.tokens, step - 1, 1, axis=2)
    tokens = tokens.reshape(b * k, 1)
    logits, cache = model.apply({"params": params}, tokens, cache, method="decode_step")
    return *choose(logits, cache, before, step), step + 1

  first = choose(logits[each], reordered(cache, each), start, 0)
  _, after, _ = jax.lax.while_loop(proceed, advance, (*first, 1))
  return after.finished.take(jnp.argsort(-after.finished.scores, axis=1))


def _row_axes(
  model: nn.Module, params: PyTree, batch: Mapping[str, Any], max_new_tokens: int
) -> PyTree:
  """Which axis of each array of a cache are the rows, -1 for none: that which grows with them."""
  shapes = lambda rows: jax.eval_shape(
    lambda batch: prefill(model, params, batch, max_new_tokens)[1],
    jax.tree.map(lambda x: jnp.concatenate([jnp.asarray(x)] * rows), dict(batch)),
  )
  grown = lambda x, y: next((i for i, n in enumerate(x.shape) if n != y.shape[i]), -1)
  return jax.tree.map(grown, shapes(1), shapes(2))
