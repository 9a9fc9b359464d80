"""How fast does a checkpoint of LLaMA-7B's shape become ours and go back, and in what memory?

python benchmarks/import_7b.py --folder DIR

Writes random weights as Hugging Face does (bfloat16, shards of 5 GB), imports them, exports them
and compares the two, each tool in a process of its own; copies them too, for the disk's part in it.
It takes 41 GB of room, all of which is freed. Prints a table and one line of JSON; MB/s are from
the start of the process until the files are on the disk.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from medflax.pretrained import hugging_face
from medflax.pretrained.checkpoint import Options
from medflax.pretrained.files import open_checkpoint, write_shards
from medflax.pretrained.leaves import abstract_leaves
from medflax.pretrained.mapping import split, their_shape

ROOT = pathlib.Path(__file__).resolve().parent.parent
LLAMA_7B = dict(
  model_type="llama",
  vocab_size=32_000,
  hidden_size=4096,
  num_hidden_layers=32,
  num_attention_heads=32,
  intermediate_size=11_008,
  rms_norm_eps=1e-6,
  hidden_act="silu",
)
BFLOAT16 = np.dtype(jnp.bfloat16)


def write_random(folder: pathlib.Path, hf: dict[str, Any]) -> None:
  """A checkpoint whose numbers are all different bits, none of them NaN."""
  fit = hugging_face.FAMILIES[hf["model_type"]](hf, Options())
  leaves = abstract_leaves({"lm": fit.section})

  def shape(parts: dict[str, Any]) -> tuple[int, ...]:
    inner = lambda path, layer: leaves[f"lm/{path}"].shape[0 if layer is None else 1 :]
    return their_shape({path: (tensor, inner(path, i)) for path, (tensor, i) in parts.items()})

  specs = {key: (shape(parts), BFLOAT16) for key, parts in split(fit.mapping).items()}
  rng = np.random.default_rng(0)

  def pieces(key: str) -> Iterator[np.ndarray]:
    bits = rng.integers(0, 1 << 15, specs[key][0], np.uint16)
    yield (bits & 0xBFFF).view(BFLOAT16)  # an exponent below 128

  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(hf))
  for _ in write_shards(folder, specs, pieces):
    pass


def run(tool: str, *args: Any) -> tuple[float, float]:
  """Seconds and peak resident GiB of a tool."""
  start = time.perf_counter()
  command = [sys.executable, "-m", f"medflax.tools.{tool}", *map(str, args)]
  process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    raise SystemExit(f"{' '.join(command)} failed")
  return time.perf_counter() - start, usage.ru_maxrss / (1 << 20)


def copy(source: pathlib.Path, to: pathlib.Path) -> tuple[float, float]:
  """Seconds until a copy is on the disk; it is removed."""
  start = time.perf_counter()
  shutil.copytree(source, to)
  os.sync()
  seconds = time.perf_counter() - start
  shutil.rmtree(to)
  return seconds, 0.0


def same(one: pathlib.Path, other: pathlib.Path) -> bool:
  """Whether two checkpoints have the same tensors, bit for bit."""
  a, b = open_checkpoint(one), open_checkpoint(other)
  bits = lambda x: np.asarray(x).view(np.uint16)
  return a.keys() == b.keys() and all(np.array_equal(bits(a[k]), bits(b[k])) for k in a)


def main() -> None:
  """Measures, prints, and fails if a bit was lost."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--folder", type=pathlib.Path, required=True, help="must not exist yet")
  parser.add_argument("--layers", type=int, default=LLAMA_7B["num_hidden_layers"])
  flags = parser.parse_args()
  hf = LLAMA_7B | dict(num_hidden_layers=flags.layers)
  theirs, ours, back = (flags.folder / name for name in ("theirs", "ours", "back"))
  try:
    write_random(theirs, hf)
    megabytes = sum(x.nbytes for x in open_checkpoint(theirs).values()) / 1e6
    rows = {
      "copy": copy(theirs, back),
      "import": run("import_weights", "hugging_face", theirs, "--to", ours),
      "export": run("export_weights", ours, "--to", back),
    }
    identical = same(theirs, back)
  finally:
    shutil.rmtree(flags.folder, ignore_errors=True)
  print("| | GB | s | MB/s | peak GiB |\n|---|---|---|---|---|")
  for name, (seconds, peak) in rows.items():
    size = megabytes / 1000
    print(f"| {name} | {size:.1f} | {seconds:.0f} | {megabytes / seconds:.0f} | {peak:.2f} |")
  told = {name: dict(seconds=s, peak_gib=peak) for name, (s, peak) in rows.items()}
  print(json.dumps(dict(megabytes=megabytes, layers=flags.layers, identical=identical, **told)))
  sys.exit(not identical)


if __name__ == "__main__":
  main()
