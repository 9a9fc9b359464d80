"""Times the train step beside OpenFlamingo's in torch; prints a Markdown table.

python benchmarks/training.py --peer /path/to/a/python/with/open-flamingo

4 rows of 256 tokens with 3 images each, float32, random weights (`small_flamingo.py`). Trained are
the resampler, the gated blocks and two rows of the embedding table, whose whole gradient is made:
AdamW, weight decay on gated blocks, gradients clipped to 1. Images are given as features of the
vision tower. `peers/open_flamingo_torch.py` says what the peer needs.
"""

import argparse
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.side_by_side import COLUMNS, Peer, compare, print_table, timed
from benchmarks.small_flamingo import END_OF_CHUNK, IMAGE, initialise, prompts, small_flamingo
from medflax.models import model_inputs
from medflax.optim import matching
from medflax.train_step import create_state, cross_entropy, train_step

ROWS, LENGTH, PLACES = 4, 256, (1, 86, 171)
TRAINABLE = "connector/.*|.*/xattn/.*|lm/embedding"


def added_rows(gradients: dict[str, jax.Array], _) -> dict[str, jax.Array]:
  """Gradients without those of the embeddings of tokens that OpenFlamingo did not add."""
  table = gradients["lm/embedding"]
  rows = jnp.zeros((len(table), 1)).at[jnp.array([END_OF_CHUNK, IMAGE])].set(1)
  return gradients | {"lm/embedding": table * rows}


def main() -> None:
  """Prints a row for the train step and one for the forward pass with its loss."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--peer", required=True, help="a Python with torch and open-flamingo")
  parser.add_argument("--rounds", type=int, default=15)
  flags = parser.parse_args()
  model, host = small_flamingo(), prompts(ROWS, LENGTH, PLACES)
  host["tokens"][:, -1] = END_OF_CHUNK
  tx = optax.chain(
    optax.stateless(added_rows),
    optax.clip_by_global_norm(1.0),
    optax.adamw(1e-4, weight_decay=0.1, mask=matching(".*/xattn/.*")),
  )
  params = initialise(model, host)
  state, batch = create_state(params, TRAINABLE, tx, ema=False), jax.device_put(host)
  sizes = [sum(x.size for x in part.values()) for part in (state.trainable, state.frozen)]
  step = jax.jit(
    functools.partial(train_step, model=model, tx=tx, rng=jax.random.key(0)), donate_argnums=0
  )

  @jax.jit
  def forward(params):
    args, kwargs = model_inputs(batch)
    return cross_entropy(model.apply({"params": params}, *args, **kwargs), batch, 0.0)[0]

  def train():
    nonlocal state
    state, metrics = step(state, batch)
    return metrics, state

  rows = [ROWS, "--length", LENGTH, "--images", len(PLACES), "--places", *PLACES]
  peer = Peer(flags.peer, "training", "--rows", *rows)
  theirs = [peer.facts["trainable"], peer.facts["parameters"] - peer.facts["trainable"]]
  if sizes != theirs:
    raise SystemExit(f"{sizes} parameters trained and frozen, but the peer has {theirs}")
  table = []
  kept = jax.tree.map(jnp.copy, params)  # the step's buffers are donated
  calls = {"train_step": train, "forward": lambda: forward(kept)}
  for name, call in calls.items():
    times = compare(lambda c=call: timed(c), lambda n=name: peer.time(n), flags.rounds)
    rates = f"{ROWS * LENGTH / times.ours.wall:,.0f} · {ROWS * LENGTH / times.peer.wall:,.0f}"
    table.append((name.replace("_", " "), rates, *times.row()))
  peer.close()
  title = f"{peer.facts['versions']}, {sizes[0]:,} parameters trained of {sum(sizes):,}"
  print_table(title, table, ("", "tokens/s, ours · peer", *COLUMNS))


if __name__ == "__main__":
  main()
