"""Times the Perceiver resampler beside OpenFlamingo's in torch; prints a Markdown table.

python benchmarks/perceiver.py --peer /path/to/a/python/with/open-flamingo

1024 wide and 6 deep, as every released Flamingo's, on 3 images of 256 features each, float32.
The backward pass is that to the weights. `peers/open_flamingo_torch.py` says what the peer needs.
"""

import argparse
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.side_by_side import COLUMNS, Peer, compare, print_table, timed
from medflax.models.connectors.perceiver import PerceiverResampler

IMAGES, FEATURES, WIDTH = 3, 256, 1024


def main() -> None:
  """Prints a row for the forward pass and one for both."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--peer", required=True, help="a Python with torch and open-flamingo")
  parser.add_argument("--rounds", type=int, default=15)
  flags = parser.parse_args()
  model = PerceiverResampler(num_latents=64, depth=6)
  x = jax.random.normal(jax.random.key(1), (1, IMAGES, 1, FEATURES, WIDTH))
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), x))
  calls = {
    "forward": jax.jit(model.apply),
    "forward_backward": jax.jit(jax.grad(lambda p, x: jnp.square(model.apply(p, x)).mean())),
  }
  peer = Peer(flags.peer, "perceiver", "--images", IMAGES)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  if count != peer.facts["parameters"]:
    raise SystemExit(f"{count} parameters, but the peer has {peer.facts['parameters']}")
  rows = []
  for name, call in calls.items():
    ours, theirs = lambda c=call: timed(lambda: c(params, x)), lambda n=name: peer.time(n)
    rows.append((name.replace("_", " and "), *compare(ours, theirs, flags.rounds).row()))
  peer.close()
  print_table(f"{peer.facts['versions']}, {count:,} parameters", rows, ("", *COLUMNS))


if __name__ == "__main__":
  main()
