"""A model whose next token depends on the two before, so that searches can be done by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medflax.inference.decode import read_prompts

PAD, STOP, VOCAB = 0, 1, 7


class Markov(nn.Module):
  """Logits by the last two tokens; what was read are tokens, the prompt's last and the new ones."""

  def prefill(
    self, features, tokens, media_index, *, media_ordinal, length, branches, prefix, **text
  ):
    last = tokens[:, -2:]
    room = jnp.zeros((len(tokens), length * branches), jnp.int32)
    return self._logits(last)[:, None], {"last": last, "new": room, "count": jnp.int32(0)}

  def extend(self, tokens, read, seen):
    new = jax.lax.dynamic_update_slice_in_dim(read["new"], tokens, read["count"], axis=1)
    order = jnp.arange(1, seen.shape[2] + 1) * seen
    ahead = jnp.where(order == order.max(-1, keepdims=True), 0, order)
    before = jnp.take_along_axis(new, ahead.argmax(-1).reshape(len(ahead), -1) % new.shape[1], 1)
    before = jnp.where(ahead.max(-1) > 0, before, read["last"][:, 1:])
    before = jnp.broadcast_to(before, tokens.shape)
    read = read | {"new": new, "count": read["count"] + tokens.shape[1]}
    return self._logits(jnp.stack([before, tokens], axis=-1)), read

  def _logits(self, last):
    return self.variables["params"]["table"][last[..., 0], last[..., 1]]


@functools.cache
def table(seed):
  return np.random.default_rng(seed).normal(0, 1.5, (VOCAB, VOCAB, VOCAB)).astype(np.float32)


def model_and_params(seed):
  return Markov(), {"table": jnp.asarray(table(seed))}


def read(seed, prompts, length, branches=1):
  """Two tokens of each prompt, and room behind them."""
  tokens = jnp.asarray(prompts, jnp.int32)
  batch = dict(tokens=tokens, media_index=tokens, segment_ids=jnp.ones_like(tokens))
  return read_prompts(*model_and_params(seed), batch, length, branches=branches)


def logprobs(seed, tokens):
  """Of the token behind a row of tokens."""
  logits = table(seed)[tokens[-2], tokens[-1]].astype(np.float64)
  return logits - np.log(np.exp(logits).sum())


def total(seed, prompt, answer):
  """The log-probability of tokens behind a prompt."""
  parts = [logprobs(seed, (*prompt, *answer[:i]))[t] for i, t in enumerate(answer)]
  return sum(parts, 0.0)
