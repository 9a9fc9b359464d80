"""Times the compiled train step on whatever jax runs on; prints rows of a Markdown table.

python benchmarks/train_step.py --variant tiny small --steps 50

The batch is synthetic (full rows, every media slot used) and stays on the device: this is the
step alone, without data loading, evaluation or checkpoints. The same step is timed in three
windows; the middle one is told.
"""

import argparse
import datetime
import pathlib
import resource
import statistics
import sys
import time

import flax.linen as nn
import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from medflax import config as config_lib
from medflax.build import Parts, build, jit_train_step
from medflax.parallel import sharding

COLUMNS = (
  *("variant", "parameters", "rows", "compile s", "step ms", "spread %"),
  *("samples/s", "tokens/s", "peak GiB"),
)
WINDOWS = 3
CONFIG = pathlib.Path(__file__).resolve().parent.parent / "configs/flamingo_med.py"


def synthetic_batch(parts: Parts) -> dict[str, np.ndarray]:
  """One document a row, as long as the row, its media spread evenly over the tokens."""
  rng = np.random.default_rng(0)
  shapes = {key: (leaf.shape, leaf.dtype) for key, leaf in parts.batch.items()}
  rows, length = shapes["tokens"][0]
  kinds = sorted(key for key in shapes if key.startswith("media/"))
  slots = [shapes[key][0][1] for key in kinds]
  index = np.minimum(np.arange(length) * (sum(slots) + 1) // length, sum(slots))
  filled = {
    "tokens": rng.integers(0, parts.tokenizer.vocab_size, (rows, length)),
    "loss_mask": np.ones((rows, length)),
    "positions": np.tile(np.arange(length), (rows, 1)),
    "segment_ids": np.ones((rows, length)),
    "media_index": np.tile(index, (rows, 1)),
    "media_first": np.tile(index, (rows, 1)),
  }
  first = 1
  for key, count in zip(kinds, slots, strict=True):
    shape, dtype = shapes[key]
    high = 256 if np.issubdtype(dtype, np.integer) else 1
    filled[key] = rng.random(shape, np.float32) * high
    ordinals = np.tile(np.arange(first, first + count), (rows, 1))
    filled[key.replace("media/", "media_ordinal/")] = ordinals
    first += count
  return {key: filled[key].astype(shapes[key][1]) for key in shapes}


def peak_bytes() -> int:
  """Of the first device where it tells, else of this process."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def measure(variant: str, overrides: list[tuple[str, str]], steps: int) -> tuple[str, ...]:
  """One row of the table."""
  config = config_lib.load_config(f"{CONFIG}:variant={variant}", overrides)
  config_lib.validate(config)
  parts = build(config)
  with jax.set_mesh(parts.mesh), nn.logical_axis_rules(sharding.RULES):
    state, batch = parts.create(config.seed), parts.put(synthetic_batch(parts))
    jax.block_until_ready((state, batch))
    start = time.perf_counter()
    step = jit_train_step(parts).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start
    state, metrics = jax.block_until_ready(step(state, batch))
    windows = []
    for _ in range(WINDOWS):
      start = time.perf_counter()
      for _ in range(steps):
        state, metrics = step(state, batch)
      jax.block_until_ready(state)
      windows.append((time.perf_counter() - start) / steps)
  if not np.isfinite(float(metrics["loss"])):
    raise SystemExit(f"{variant}: the loss is {float(metrics['loss'])}; the timing means nothing")
  seconds = statistics.median(windows)
  rows, length = parts.batch["tokens"].shape
  return (
    variant,
    f"{sum(leaf.size for leaf in (*state.trainable.values(), *state.frozen.values())):,}",
    f"{rows} × {length}",
    f"{compile_seconds:.1f}",
    f"{seconds * 1e3:.2f}",
    f"{(max(windows) - min(windows)) / seconds:.1%}".rstrip("%"),
    f"{rows / seconds:,.0f}",
    f"{rows * length / seconds:,.0f}",
    f"{peak_bytes() / 2**30:.2f}",
  )


def main() -> None:
  """Prints the machine, then a table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--variant", nargs="+", default=["tiny"])
  parser.add_argument("--steps", type=int, default=20, help="steps in each of the three windows")
  parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="config fields")
  flags = parser.parse_args()
  overrides = [tuple(text.split("=", 1)) for text in flags.set]
  device = jax.devices()[0]
  today = datetime.date.today().isoformat()
  print(f"{jax.device_count()} × {device.device_kind} ({device.platform}), jax {jax.__version__},")
  print(f"{today}, {flags.steps} steps a window{', ' if flags.set else ''}{' '.join(flags.set)}\n")
  print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
  for variant in flags.variant:
    print(f"| {' | '.join(measure(variant, overrides, flags.steps))} |", flush=True)


if __name__ == "__main__":
  main()
