"""Sums over the logits of long rows and large vocabularies, which are never all in memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped


class LogitSums(NamedTuple):
  """What is wanted of a row's logits instead of all of them.

  Attributes:
    of: `(logits [b, c, vocab], rows)` → a tree of sums over tokens; of `rows` those tokens'.
    rows: a tree of arrays [b, t, …].
    num_tokens: of each row, whose logits are there at once; 0 for all.
  """

  of: Callable[[Float[Array, "b c vocab"], Any], PyTree]
  rows: PyTree[Shaped[Array, "b t ..."]]
  num_tokens: int

  def over(
    self,
    module: nn.Module,
    head: Callable[[Any, Float[Array, "b c d"]], Float[Array, "b c vocab"]],
    x: Float[Array, "b t d"],
  ) -> PyTree:
    """The sums, with `head(module, x)` the logits, which the backward pass makes again.

    Each chunk takes every so many tokens, so that it is spread over all that split the sequence.
    What fills the last places is zero, in `rows` too.
    """
    t = x.shape[1]
    if not self.num_tokens or self.num_tokens >= t:
      return self.of(head(module, x), self.rows)
    count = -(-t // self.num_tokens)

    def split(a: Shaped[Array, "b t ..."]) -> Shaped[Array, "chunks b c ..."]:
      a = jnp.pad(a, [(0, 0), (0, -t % count)] + [(0, 0)] * (a.ndim - 2))
      return jnp.moveaxis(a.reshape(a.shape[0], -1, count, *a.shape[2:]), 2, 0)

    def chunk(module: nn.Module, _: None, given: Any) -> tuple[None, PyTree]:
      x, rows = given
      return None, self.of(head(module, x), rows)

    body = nn.remat(chunk, prevent_cse=False)
    every = {"params": False, "dropout": True}
    scan = nn.scan(body, variable_broadcast="params", split_rngs=every, length=count)
    _, sums = scan(module, None, (split(x), jax.tree.map(split, self.rows)))
    return jax.tree.map(lambda s: s.sum(0), sums)
