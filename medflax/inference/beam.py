"""Beam search with a key-value cache: several continuations kept side by side, the best returned.

The tokens of all beams of a row stand in its cache one after the other and stay there; a beam sees
those that it is made of. What becomes of a continuation that has stopped, and how long ones
compare with short ones, is a ranking's; see `RANKINGS`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8, PyTree

from medflax.inference.guide import NEVER, Guide
from medflax.inference.stops import Stops


class Beams(NamedTuple):
  """Continuations of each row, k of them, best first.

  Attributes:
    tokens: `pad_id` after the stop token.
    scores: log-probabilities as the ranking compares them.
    lengths: tokens with the stop token.
    stopped: which have ended; an answer cut at the last step has where the ranking says so.
    reason: why, a key of `stops.STOP_REASONS`.
  """

  tokens: Int[Array, "b k n"]
  scores: Float[Array, "b k"]
  lengths: Int[Array, "b k"]
  stopped: Bool[Array, "b k"]
  reason: Int8[Array, "b k"]

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


# Why tokens end the beams that they continue: the tokens and the beams' places to the reasons.
Ends = Callable[[Int[Array, "b c"], Int[Array, "b c"]], Int8[Array, "b c"]]


class Rules(NamedTuple):
  """Arguments of `beam_search` that rankings need, and what ends a beam at this step."""

  pad_id: Int[Array | np.ndarray, ""] | int
  prompt_lengths: Int[Array, " b"]
  length_penalty: Float[Array, ""] | float
  early_stopping: bool
  ends: Ends


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


def _collected(
  finished: Beams, beams: Beams, counts: Bool[Array, "b c"], factor: Float[Array, "#b #c"]
) -> Beams:
  """The k best of what has stopped and of the beams that count, whose sums are over `factor`."""
  k = finished.scores.shape[1]
  scores = jnp.where(counts, beams.scores / factor, -jnp.inf)
  done = beams._replace(scores=scores, stopped=counts)
  both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), finished, done)
  return both.take(jax.lax.top_k(both.scores, k)[1])


def _apart(
  before: Step, logprobs: Float[Array, "b k v"], step: Any, last: Any, rules: Rules
) -> Step:
  """Hugging Face's: stopped beams are set aside, and all sums over length^penalty at the end.

  Running beams have equally many tokens, so that their sums compare. A row ends when no running
  beam, if it stopped now, would enter its k best, or with `early_stopping` when it has k.
  """
  k = before.running.scores.shape[1]
  beams, source = _next_two_k(before.running, logprobs, step, rules)
  ends = (beams.reason > 0) | last
  factor = jnp.reshape((step + 1.0) ** rules.length_penalty, (1, 1))
  counts = ends & (jnp.arange(2 * k) < k) & before.going[:, None]
  finished = _collected(before.finished, beams, counts, factor)
  running, source = _unfinished(beams, source, ends)
  full = finished.stopped.all(axis=1)
  better = running.scores[:, 0] / factor[0] > finished.scores.min(axis=1)
  going = before.going & ~(full & (rules.early_stopping | ~better))
  return Step(running, source, finished, going)


def _whole(
  before: Step, logprobs: Float[Array, "b k v"], step: Any, last: Any, rules: Rules
) -> Step:
  """Hugging Face's until 2023 (transformers 4.28), with which OpenFlamingo's numbers were made.

  As "apart", but a length is that of the prompt and the answer without what ends it, a row ends
  when no continuation, a stopped one either, would enter its k best, and what is running at the
  last step is finished then beside what stops there.
  """
  k = before.running.scores.shape[1]
  length = (rules.prompt_lengths[:, None] + step).astype(jnp.float32)
  beams, source = _next_two_k(before.running, logprobs, step, rules)
  ends = beams.reason > 0
  factor = length**rules.length_penalty
  counts = ends & (jnp.arange(2 * k) < k) & before.going[:, None]
  finished = _collected(before.finished, beams, counts, factor)
  full = finished.stopped.all(axis=1)
  better = beams.scores[:, 0] / factor[:, 0] > finished.scores.min(axis=1)
  going = before.going & ~(full & (rules.early_stopping | ~better))
  running, source = _unfinished(beams, source, ends)
  cut = jnp.broadcast_to(last & going[:, None], running.scores.shape)
  finished = _collected(finished, running, cut, (length + 1) ** rules.length_penalty)
  return Step(running, source, finished, going)


def _next_two_k(
  running: Beams, logprobs: Float[Array, "b k v"], step: Any, rules: Rules
) -> tuple[Beams, Int[Array, "b c"]]:
  """The 2k best continuations, of which at least k have not ended, and their sources."""
  totals = running.scores[..., None] + logprobs
  beams, token, source = _candidates(running, totals, totals, 2 * running.scores.shape[1], step)
  lengths = jnp.full_like(beams.lengths, step + 1)
  return beams._replace(lengths=lengths, reason=rules.ends(token, source)), source


def _unfinished(
  beams: Beams, source: Int[Array, "b c"], ends: Bool[Array, "b c"]
) -> tuple[Beams, Int[Array, "b k"]]:
  """The best half of 2k beams, of those that have not ended."""
  beams = beams._replace(scores=jnp.where(ends, NEVER, beams.scores))
  order = jax.lax.top_k(beams.scores, beams.scores.shape[1] // 2)[1]
  return beams.take(order), jnp.take_along_axis(source, order, axis=1)


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
  reason = jnp.where(beams.stopped, beams.reason, rules.ends(token, source))
  beams = beams._replace(stopped=reason > 0, reason=reason)
  means = beams.scores / beams.lengths.astype(jnp.float32) ** rules.length_penalty
  going = before.going & ~beams.stopped.all(axis=1)
  return Step(beams, source, beams._replace(scores=means), going)


Ranking = Callable[[Step, Array, Any, Any, Rules], Step]
RANKINGS: dict[str, Ranking] = {"apart": _apart, "whole": _whole, "among": _among}


@functools.partial(
  jax.jit, static_argnames=("model", "num_beams", "max_new_tokens", "ranking", "early_stopping")
)
def beam_search(
  model: nn.Module,
  params: PyTree,
  logits: Float[Array, "b 1 vocab"],
  read: PyTree,
  *,
  num_beams: int,
  max_new_tokens: int,
  stops: Stops,
  pad_id: Int[Array | np.ndarray, ""] | int,
  prompt_lengths: Int[Array | np.ndarray, " b"],
  allowed: Int[Array | np.ndarray, "b c l"] | None = None,
  ranking: str = "apart",
  length_penalty: Float[Array, ""] | float = 1.0,
  early_stopping: bool = False,
) -> Beams:
  """Continues prompts by the most probable of several continuations.

  Args:
    model, params, logits, read, stops, pad_id, prompt_lengths, allowed: as of
      `decoding.Decoder.generate`.
    num_beams: how many are kept, and returned, for each row.
    ranking: a name in `RANKINGS`.
    length_penalty: a sum of log-probabilities is divided by length to this power.
    early_stopping: with "apart" and "whole", a row ends as soon as `num_beams` have stopped.
  """
  b, k, n = len(logits), num_beams, max_new_tokens
  allowed = None if allowed is None else jnp.repeat(jnp.asarray(allowed), k, axis=0)
  guide = Guide(stops, allowed)
  beams = Beams(
    tokens=jnp.full((b, k, n), pad_id, jnp.int32),
    scores=jnp.broadcast_to(jnp.where(jnp.arange(k) == 0, 0.0, NEVER), (b, k)),
    lengths=jnp.zeros((b, k), jnp.int32),
    stopped=jnp.zeros((b, k), bool),
    reason=jnp.zeros((b, k), jnp.int8),
  )
  none = beams._replace(scores=jnp.full((b, k), -jnp.inf))
  prompt_lengths = jnp.asarray(prompt_lengths)
  start = Step(beams, jnp.zeros((b, k), jnp.int32), none, prompt_lengths > 0)

  def choose(logits, before, trail, seen, step):
    """The beams after another token; `seen` is which tokens each has been made of."""
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(b * k, -1)
    logprobs = guide.permit(logprobs, trail, step).reshape(b, k, -1)
    text = trail.text.reshape(b, k)
    ends = lambda token, source: stops.after(jnp.take_along_axis(text, source, 1), token)[1]
    rules = Rules(pad_id, prompt_lengths, length_penalty, early_stopping, ends)
    after = RANKINGS[ranking](before, logprobs, step, step == n - 1, rules)
    token = jax.lax.dynamic_index_in_dim(after.running.tokens, step, axis=2, keepdims=False)
    rows = (jnp.arange(b)[:, None] * k + after.source).reshape(-1)
    trail, _ = guide.follow(jax.tree.map(lambda x: x[rows], trail), token.reshape(-1), step)
    seen = jnp.take_along_axis(seen, after.source[..., None], axis=1)
    own = jnp.arange(n * k) == step * k + jnp.arange(k)[:, None]
    return token, after, trail, seen | own

  def proceed(state):
    _, _, after, *_, step = state
    return (step < n) & after.going.any()

  def advance(state):
    read, token, after, trail, seen, step = state
    logits, read = model.apply({"params": params}, token, read, seen, method="extend")
    return read, *choose(logits, after, trail, seen, step), step + 1

  every = jnp.broadcast_to(logits, (b, k, logits.shape[-1]))
  first = choose(every, start, guide.begin(b * k), jnp.zeros((b, k, n * k), bool), 0)
  _, _, after, *_ = jax.lax.while_loop(proceed, advance, (read, *first, 1))
  return after.finished.take(jnp.argsort(-after.finished.scores, axis=1))
