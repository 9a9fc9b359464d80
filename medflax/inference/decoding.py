"""Ways to continue what was read, chosen by name: greedily, by beams, at random.

A loop that is compiled once for each shape; media and prompts are in what `decode.read_prompts`
returned.
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8, Int32, Key, PyTree

from medflax.inference.beam import RANKINGS, beam_search
from medflax.inference.guide import NEVER, Guide
from medflax.inference.stops import Stops
from medflax.utils import UserError, nearest, pick


class Generation(NamedTuple):
  """Generated tokens, `pad_id` after the last, and why each row ended, by `STOP_REASONS`."""

  tokens: Int32[Array, "b n"]
  reason: Int8[Array, " b"]


@dataclasses.dataclass(frozen=True)
class Decoder(abc.ABC):
  """A way of decoding; a config's `decoding` are its `type` and its fields.

  Attributes:
    max_new_tokens: the most tokens to generate.
  """

  max_new_tokens: int = 8

  def __post_init__(self):
    self.check(self.max_new_tokens >= 1, "max_new_tokens", "must be at least 1")

  @property
  def branches(self) -> int:
    """How many continuations of a row are followed at once."""
    return 1

  def check(self, fine: bool, field: str, complaint: str) -> None:
    """Raises UserError about a field unless it is fine."""
    if not fine:
      raise UserError(f"decoding.{field}={getattr(self, field)}: {complaint}")

  @abc.abstractmethod
  def generate(
    self,
    model: nn.Module,
    params: PyTree,
    logits: Float[Array, "b 1 vocab"],
    read: PyTree,
    *,
    stops: Stops,
    pad_id: int,
    prompt_lengths: Int[Array | np.ndarray, " b"],
    key: Key[Array, " b"] | None = None,
    allowed: Int[Array | np.ndarray, "b c l"] | None = None,
  ) -> Generation:
    """Continues prompts until every row has ended.

    Args:
      model: a `medflax.models.VLM` or whatever has its `extend`; hashable.
      params: its parameters, with any sharding.
      logits, read: from `decode.read_prompts`, with room for `branches` continuations of
        `max_new_tokens` each.
      stops: what ends an answer; it is part of the result.
      pad_id: what follows.
      prompt_lengths: tokens that were read of each row; one of 0 is not waited for.
      key: one for each row, which alone its random choices depend on.
      allowed: answers that a row must give one of, by their tokens, padded with -1. One of
        `stops.ids` follows; what is longer than `max_new_tokens` is cut.
    """


class _OneByOne(Decoder):
  """Takes a token at a time and never goes back."""

  @abc.abstractmethod
  def choose(
    self, logits: Float[Array, "b vocab"], key: Key[Array, " b"] | None, step: Int[Array, ""] | int
  ) -> Int[Array, " b"]:
    """The next token of each row."""

  def generate(
    self, model, params, logits, read, *, stops, pad_id, prompt_lengths, key=None, allowed=None
  ) -> Generation:
    guide, live = Guide(stops, allowed), np.asarray(prompt_lengths) > 0
    return _one_by_one(self, model, params, logits, read, guide, pad_id, key, live)


@functools.partial(jax.jit, static_argnames=("decoder", "model"))
def _one_by_one(
  decoder: _OneByOne,
  model: nn.Module,
  params: PyTree,
  logits: Float[Array, "b 1 vocab"],
  read: PyTree,
  guide: Guide,
  pad_id: Int[Array, ""] | int,
  key: Key[Array, " b"] | None,
  live: Bool[Array, " b"],
) -> Generation:
  b, n = len(logits), decoder.max_new_tokens

  def choose(logits, trail, out, done, reason, step):
    permitted = guide.permit(logits[:, -1].astype(jnp.float32), trail, step)
    token = decoder.choose(permitted, key, step).astype(jnp.int32)
    trail, ends = guide.follow(trail, token, step)
    out = out.at[:, step].set(jnp.where(done, pad_id, token))
    return token, trail, out, done | (ends > 0), jnp.where(done, reason, ends)

  def proceed(state):
    *_, done, _, step = state
    return (step < n) & ~done.all()

  def advance(state):
    read, token, trail, out, done, reason, step = state
    seen = (jnp.arange(n) < step)[None, None]
    logits, read = model.apply({"params": params}, token[:, None], read, seen, method="extend")
    return read, *choose(logits, trail, out, done, reason, step), step + 1

  out, reason = jnp.full((b, n), pad_id, jnp.int32), jnp.zeros(b, jnp.int8)
  first = choose(logits, guide.begin(b), out, ~jnp.asarray(live), reason, 0)
  _, _, _, out, _, reason, _ = jax.lax.while_loop(proceed, advance, (read, *first, 1))
  return Generation(out, reason)


@dataclasses.dataclass(frozen=True)
class Greedy(_OneByOne):
  """The most probable token each time."""

  def choose(self, logits, key, step):
    del key, step
    return jnp.argmax(logits, axis=-1)


@dataclasses.dataclass(frozen=True)
class Sample(_OneByOne):
  """A token by its probability.

  Attributes:
    temperature: logits are divided by this.
    top_k: only so many of the most probable tokens; 0 for all.
    top_p: of these only as many of the most probable as reach this probability (Holtzman et al.
      2020); 1 for all.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    self.check(self.temperature > 0, "temperature", "must be above 0; type greedy has none")
    self.check(self.top_k >= 0, "top_k", "must be at least 0, which is for all")
    self.check(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")

  def generate(self, *args, key=None, **options) -> Generation:
    if key is None:
      raise ValueError("sampling needs a key for each row")
    return super().generate(*args, key=key, **options)

  def choose(self, logits, key, step):
    keys = jax.vmap(jax.random.fold_in, (0, None))(key, step)
    return jax.vmap(jax.random.categorical)(keys, self.kept(logits))

  def kept(self, logits: Float[Array, "b vocab"]) -> Float[Array, "b vocab"]:
    """The logits over the temperature, `NEVER` for tokens that may not be drawn."""
    logits = logits / self.temperature
    if self.top_k:
      least = jax.lax.top_k(logits, min(self.top_k, logits.shape[-1]))[0][:, -1:]
      logits = jnp.where(logits < least, NEVER, logits)
    if self.top_p < 1:
      ordered = jnp.sort(logits, axis=-1, descending=True)
      probability = jax.nn.softmax(ordered, axis=-1)
      inside = jnp.cumsum(probability, axis=-1) - probability < self.top_p
      least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
      logits = jnp.where(logits < least, NEVER, logits)
    return logits


@dataclasses.dataclass(frozen=True)
class Beam(Decoder):
  """The best of several continuations that are followed side by side; see `beam.beam_search`.

  Attributes:
    num_beams: how many are followed.
    length_penalty: a sum of log-probabilities is divided by length to this power.
    early_stopping: a row ends as soon as `num_beams` have.
    ranking: a name in `beam.RANKINGS`.
  """

  num_beams: int = 5
  length_penalty: float = 1.0
  early_stopping: bool = False
  ranking: str = "apart"

  def __post_init__(self):
    super().__post_init__()
    self.check(self.num_beams >= 1, "num_beams", "must be at least 1")
    pick(RANKINGS, self.ranking, "decoding.ranking")

  @property
  def branches(self) -> int:
    return self.num_beams

  def generate(
    self, model, params, logits, read, *, stops, pad_id, prompt_lengths, key=None, allowed=None
  ) -> Generation:
    del key
    beams = beam_search(
      model,
      params,
      logits,
      read,
      num_beams=self.num_beams,
      max_new_tokens=self.max_new_tokens,
      stops=stops,
      pad_id=pad_id,
      prompt_lengths=prompt_lengths,
      allowed=allowed,
      ranking=self.ranking,
      length_penalty=self.length_penalty,
      early_stopping=self.early_stopping,
    )
    return Generation(beams.tokens[:, 0], beams.reason[:, 0])


DECODERS: dict[str, type[Decoder]] = {"greedy": Greedy, "beam": Beam, "sample": Sample}


def make_decoder(fields: Mapping[str, Any]) -> Decoder:
  """The way of decoding of a config: `type`, a name in `DECODERS`, and its fields.

  Raises:
    UserError: naming the field that is unknown or has an impossible value.
  """
  cls = pick(DECODERS, fields.get("type", "greedy"), "decoding.type")
  known = {field.name: type(field.default) for field in dataclasses.fields(cls)}
  values = {name: value for name, value in fields.items() if name != "type"}
  for name, value in values.items():
    if name not in known:
      raise UserError(f"unknown field decoding.{name}{nearest(name, known)}")
    kind = known[name]
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or isinstance(value, bool) != (kind is bool):
      raise UserError(f"decoding.{name}={value!r}: must be of type {kind.__name__}")
  return cls(**{name: known[name](value) for name, value in values.items()})
