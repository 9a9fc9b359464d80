r"""Memory of splash attention against XLA's on a TPU, and of gated cross-attention.

python benchmarks/attention_memory.py --topology v5p:2x2x2 --tokens 2048 8192

Compiles causal attention over packed rows, and attention to media of which a token sees one, with
their gradients, for a chip that need not be there (libtpu, the extra `aot`); nothing runs.
"""

import argparse
import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from medflax.models.attention import ATTENTIONS, Seen, causal_mask
from medflax.tools.aot import topology_devices

MEDIA, LATENTS = 32, 64


def to_text(attend, query, key, value, segments):
  """Sum of what tokens read of their own document."""
  slots = jnp.arange(query.shape[1])
  seen = Seen(causal_mask(slots, segments, slots, segments), (segments, segments), causal=True)
  return attend(query, key, value, seen, scale=None).astype(jnp.float32).sum()


def to_media(attend, query, key, value, medium):
  """Sum of what tokens read of the one medium that each sees."""
  latent = jnp.broadcast_to(jnp.arange(1, MEDIA + 1).repeat(LATENTS), key.shape[:2])
  seen = Seen(medium[:, :, None] == latent[:, None], (medium, latent))
  return attend(query, key, value, seen, scale=None).astype(jnp.float32).sum()


def main() -> int:
  """Prints a row for each kind of attention and number of tokens."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("--topology", default="v5p:2x2x2")
  parser.add_argument("--rows", type=int, default=1)
  parser.add_argument("--heads", type=int, default=32)
  parser.add_argument("--head-dim", type=int, default=128)
  parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
  flags = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  _, devices = topology_devices(flags.topology)
  sharding = SingleDeviceSharding(devices[0])
  array = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
  found = []
  print(f"{'':<8}{'tokens':>8}{'keys':>8}{'XLA MiB':>10}{'splash':>10}{'of XLA':>9}")
  for kind, loss in (("text", to_text), ("media", to_media)):
    for tokens in flags.tokens:
      keys = tokens if kind == "text" else MEDIA * LATENTS
      q, k = (
        array((flags.rows, n, flags.heads, flags.head_dim), jnp.bfloat16) for n in (tokens, keys)
      )
      segments, mib = array((flags.rows, tokens), jnp.int32), {}
      for name in ("xla", "splash"):
        step = jax.jit(jax.grad(functools.partial(loss, ATTENTIONS[name]), argnums=(0, 1, 2)))
        memory = step.lower(q, k, k, segments).compile().memory_analysis()
        mib[name] = memory.peak_memory_in_bytes / 2**20
      share = mib["splash"] / mib["xla"]
      print(
        f"{kind:<8}{tokens:>8,}{keys:>8,}{mib['xla']:>10,.0f}{mib['splash']:>10,.0f}{share:>9.1%}",
        flush=True,
      )
      found.append({"kind": kind, "tokens": tokens, "keys": keys, "mib": mib})
  print(json.dumps({"topology": flags.topology, "heads": flags.heads, "found": found}))
  return 0


if __name__ == "__main__":
  sys.exit(main())
