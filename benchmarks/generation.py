"""Times few-shot generation beside OpenFlamingo in torch; prints a Markdown table.

python benchmarks/generation.py --peer /path/to/a/python/with/open-flamingo

8 examples and a question, each with an image: a prompt of 300 tokens and 9 images; 32 new tokens,
4 rows, greedy, float32, random weights (`small_flamingo.py`). Images are given as features of the
vision tower; the resampler is timed. `peers/open_flamingo_torch.py` says what the peer needs.
"""

import argparse
import pathlib
import sys

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.side_by_side import COLUMNS, Comparison, Peer, Times, compare, print_table, timed
from benchmarks.small_flamingo import PAD, initialise, prompts, small_flamingo
from medflax.inference import decode, features

ROWS, LENGTH, NEW = 4, 300, 32
PLACES = tuple(4 + 33 * i for i in range(9))


def rate(comparison: Comparison, tokens: int) -> str:
  """New tokens a second, ours and the peer's."""
  return f"{tokens / comparison.ours.wall:,.1f} · {tokens / comparison.peer.wall:,.1f}"


def later(whole: Comparison, first: Comparison) -> Comparison:
  """What the tokens behind the first take."""
  minus = lambda a, b: Times(a.wall - b.wall, a.cpu - b.cpu)
  ours, peer = minus(whole.ours, first.ours), minus(whole.peer, first.peer)
  return Comparison(ours, peer, Times(peer.wall / ours.wall, peer.cpu / ours.cpu))


def main() -> None:
  """Prints a row for the whole, one for the first token and one for those behind it."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--peer", required=True, help="a Python with torch and open-flamingo")
  parser.add_argument("--rounds", type=int, default=9)
  flags = parser.parse_args()
  model, host = small_flamingo(), prompts(ROWS, LENGTH, PLACES)
  params = initialise(model, host)
  batch = jax.device_put(host)
  media = batch["media/image"].reshape(-1, 1, *batch["media/image"].shape[2:])
  text = {name: value for name, value in batch.items() if "/" not in name}

  def generate(count: int) -> jax.Array:
    embedded = features.embed(model, params, {"image": media})
    shown = {
      "features": embedded.reshape(ROWS, len(PLACES), *embedded.shape[1:]),
      "media_ordinal": batch["media_ordinal/image"],
    }
    never = np.zeros(0, np.int32)
    prompt = {**text, **shown}
    out = decode.generate(
      model, params, prompt, max_new_tokens=count, stop_ids=never, pad_id=PAD
    ).tokens
    assert out.shape == (ROWS, count)
    return out

  sizes = ["--rows", ROWS, "--length", LENGTH, "--images", len(PLACES), "--new", NEW]
  peer = Peer(flags.peer, "generation", *sizes, "--places", *PLACES)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  if count != peer.facts["parameters"]:
    raise SystemExit(f"{count} parameters, but the peer has {peer.facts['parameters']}")
  beside = lambda name, n: compare(
    lambda: timed(lambda: generate(n)), lambda: peer.time(name), flags.rounds
  )
  whole, first = beside("generate", NEW), beside("first", 1)
  peer.close()
  rest = later(whole, first)
  rows = [
    (f"{NEW} tokens", rate(whole, ROWS * NEW), *whole.row()),
    ("the first", rate(first, ROWS), *first.row()),
    ("the others", rate(rest, ROWS * (NEW - 1)), *rest.row()),
  ]
  print_table(
    f"{peer.facts['versions']}, {count:,} parameters",
    rows,
    ("", "tokens/s, ours · peer", *COLUMNS),
  )


if __name__ == "__main__":
  main()
