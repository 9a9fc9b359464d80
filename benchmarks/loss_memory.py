r"""Memory of the loss in chunks of the sequence against all logits at once.

python benchmarks/loss_memory.py --vocab 262144 --tokens 2048 --chunks 0 256 64

Compiles the loss and its gradient by the hidden states and by the head, and reads what the
compiler says they need; nothing runs.
"""

import argparse
import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

from medflax.models.chunks import LogitSums
from medflax.train_step import summed_loss


class Head(nn.Module):
  """A linear map to the vocabulary and the loss of what it predicts."""

  vocab: int
  num_tokens: int

  @nn.compact
  def __call__(self, x, targets):
    of = lambda logits, rows: summed_loss(logits, *rows, 0.0)[0]
    head = lambda module, x: nn.Dense(self.vocab, use_bias=False, name="head")(x)
    rows = (targets, jnp.ones(targets.shape))
    return LogitSums(of, rows, self.num_tokens).over(self, head, x)


def main() -> int:
  """Prints a row for each size of a chunk."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("--vocab", type=int, default=262_144)
  parser.add_argument("--width", type=int, default=64)
  parser.add_argument("--rows", type=int, default=1)
  parser.add_argument("--tokens", type=int, default=2048, help="of a row")
  parser.add_argument("--chunks", type=int, nargs="+", default=[0, 256, 64], help="0: all")
  flags = parser.parse_args()
  shape = (flags.rows, flags.tokens)
  x = jax.ShapeDtypeStruct((*shape, flags.width), jnp.float32)
  targets = jax.ShapeDtypeStruct(shape, jnp.int32)
  kernel = jax.ShapeDtypeStruct((flags.width, flags.vocab), jnp.float32)
  params = {"params": {"head": {"kernel": kernel}}}
  print(f"{'tokens at once':<16}{'MiB':>10}{'of all':>9}")
  mib: dict[int, float] = {}
  for chunk in flags.chunks:
    loss = Head(flags.vocab, chunk).apply
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x, targets).compile()
    mib[chunk] = compiled.memory_analysis().temp_size_in_bytes / 2**20
    share = mib[chunk] / mib[flags.chunks[0]]
    print(f"{chunk or 'all':<16}{mib[chunk]:>10,.0f}{share:>9.1%}", flush=True)
  print(json.dumps({"vocab": flags.vocab, "tokens": flags.tokens, "mib": mib}))
  return 0


if __name__ == "__main__":
  sys.exit(main())
