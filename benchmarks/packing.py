"""How full packed rows are on mixtures of questions; prints a Markdown table and a line of JSON.

python benchmarks/packing.py

Lengths are drawn from log-normal distributions: those of VQA-RAD and SLAKE as measured on their
questions and answers in the default prompt with the shipped tokenizer, and two of longer texts, of
captions and of questions with options, that are assumed.
A row of the table packs groups of so many rows' worth as training does.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from medflax.data.packing import pack

# Tokens of a sample without special ones: median, and standard deviation of the logarithm.
LENGTHS = {"VQA-RAD": (18, 0.34), "SLAKE": (16, 0.26), "captions": (60, 0.7), "options": (48, 0.4)}
# Tokens of a row, media slots, shots of an episode.
CASES = {
  "256 tokens, 0 shots": (256, 9, (0, 0)),
  "256 tokens, 0 shots, more room": (256, 16, (0, 0)),
  "256 tokens, 0 to 4 shots": (256, 9, (0, 4)),
  "512 tokens, 0 to 8 shots": (512, 18, (0, 8)),
  "2048 tokens, 0 to 8 shots": (2048, 72, (0, 8)),
}


def documents(count: int, length: int, slots: int, shots: tuple[int, int]) -> np.ndarray:
  """(tokens, images) of episodes of the mixture; those that are too long have lost shots."""
  rng = np.random.default_rng(0)
  sizes = []
  for _ in range(count):
    median, spread = list(LENGTHS.values())[rng.integers(len(LENGTHS))]
    samples = rng.integers(shots[0], shots[1] + 1) + 1
    tokens = np.rint(median * np.exp(spread * rng.standard_normal(samples))).astype(int) + 2
    kept = np.cumsum(tokens[::-1]) <= length
    kept[0] = True
    kept[slots:] = False
    sizes.append((min(length, tokens[::-1][kept].sum()), kept.sum()))
  return np.array(sizes)


def used(sizes: np.ndarray, capacity: np.ndarray, bins: int) -> tuple[float, float]:
  """Shares of tokens and of media slots that rows hold, packed as `PackedRows` does.

  The group that the sample cuts short does not count: training reads an endless stream.
  """
  rows, start = 0, 0
  while True:
    total = np.cumsum(sizes[start:], axis=0)
    stop = start + 1 + int((total <= bins * capacity).all(axis=1).sum())
    if stop > len(sizes):
      break
    rows += len(pack(sizes[start:stop], capacity))
    start = stop
  tokens, media = sizes[:start].sum(axis=0) / (rows * capacity)
  return float(tokens), float(media)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description="How full packed rows are.")
  parser.add_argument("--documents", type=int, default=20_000)
  parser.add_argument("--bins", type=int, nargs="+", default=[8, 16, 32, 64, 128])
  flags = parser.parse_args()
  results = {}
  print(f"| rows | {' | '.join(f'{bins} together' for bins in flags.bins)} |")
  print(f"|---|{'---|' * len(flags.bins)}")
  for name, (length, slots, shots) in CASES.items():
    sizes = documents(flags.documents, length, slots, shots)
    results[name] = {b: used(sizes, np.array([length, slots]), b) for b in flags.bins}
    cells = " | ".join(f"{tokens:.1%} · {media:.0%}" for tokens, media in results[name].values())
    print(f"| {name}, {slots} images | {cells} |", flush=True)
  print(json.dumps(results))


if __name__ == "__main__":
  main()
