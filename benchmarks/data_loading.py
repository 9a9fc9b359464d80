"""Times the data pipeline, files to batches, beside torch's DataLoader; prints a Markdown table.

python benchmarks/data_loading.py --peer /path/to/a/python/with/torch --images DIR

Both read the same files and do the same to them: pictures are scaled to fit 224 × 224 and centred
on black, volumes of 64 × 256 × 256 are shown between their 1st and 99th percentile. medflax
tokenises and packs a question for each besides. Both read in one process, without workers; the
numbers are samples for each second of CPU time, which other work on the machine disturbs little.
The windows alternate, so that both meet the same machine.

With --memory N it reads N samples in one worker process and tells the worker's resident memory.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import grain
import nibabel
import numpy as np
import PIL.Image
from absl import flags as absl_flags
from nibabel.nifti1 import Nifti1Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from medflax.data import DATASETS, folder
from medflax.data.pipeline import TrainIterator, train_iterator
from medflax.data.tokenizer import load_tokenizer
from medflax.defaults import base_config

PEER = pathlib.Path(__file__).parent / "peers/data_loading_torch.py"
SIZES = {"image": (224, 224), "volume": (64, 256, 256)}
BATCH = {"image": 32, "volume": 4}
WINDOWS = 3


def make_images(target: pathlib.Path, count: int, side: int) -> None:
  """JPEGs of smooth noise, as large in bytes as radiographs of this size."""
  rng = np.random.default_rng(0)
  for i in range(count):
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
    picture = coarse.resize((side, side), PIL.Image.Resampling.BICUBIC)
    picture.save(target / f"{i:03}.jpg", quality=90)


def copy_images(target: pathlib.Path, source: pathlib.Path, count: int) -> None:
  """Some JPEGs of a folder."""
  for path in sorted(source.glob("*.jpg"))[:count]:
    shutil.copy(path, target)


def make_volumes(target: pathlib.Path, count: int) -> None:
  """NIfTI files of int16, not compressed."""
  rng = np.random.default_rng(0)
  for i in range(count):
    values = rng.integers(-1000, 2000, SIZES["volume"][::-1], np.int16)
    nibabel.save(Nifti1Image(values, np.eye(4)), target / f"{i:03}.nii")


def pipeline(root: pathlib.Path, kind: str, workers: int = 0) -> TrainIterator:
  """Batches of one question a row about each file."""
  files = sorted(path.name for path in root.iterdir() if path.suffix in (".jpg", ".nii"))
  rows = [
    {f"{kind}s": name, "question": "What is it?", "answer": str(i), "group": name, "split": "train"}
    for i, name in enumerate(files)
  ]
  with tempfile.NamedTemporaryFile("w", dir=root, suffix=".jsonl", delete=False) as file:
    file.write("\n".join(map(json.dumps, rows)))
  pathlib.Path(file.name).replace(root / "manifest.jsonl")
  config = base_config("benchmark", kind)
  config.data.source, config.data.root, config.data[f"{kind}_size"] = (
    "folder",
    str(root),
    SIZES[kind],
  )
  config.data.max_media = {"image": 0, "volume": 0} | {kind: 1}
  config.data.max_tokens, config.data.num_workers = 32, workers
  config.data.train = {"a": {"task": "vqa", "num_shots": 0, "weight": 1.0, "targets": "all"}}
  config.train.batch_size = BATCH[kind]
  folder.CACHE_BYTES = 0  # files are what is timed
  dataset = DATASETS["folder"](config.data, 0)
  return train_iterator(dataset, load_tokenizer(), config, seed=0)


def measure(root: pathlib.Path, kind: str, batches: int) -> list[float]:
  """Seconds of CPU time of each window."""
  iterator, seconds = pipeline(root, kind), []
  for _ in range(WINDOWS + 1):  # the first is warm-up
    start = time.process_time()
    for _ in range(batches):
      next(iterator)
    seconds.append(time.process_time() - start)
  iterator.close()
  return seconds[1:]


def measure_peer(python: str, root: pathlib.Path, kind: str, batches: int) -> list[float]:
  """The same of torch."""
  command = [python, str(PEER), kind, str(root), "--size", *map(str, SIZES[kind])]
  command += ["--batch", str(BATCH[kind]), "--batches", str(batches)]
  done = subprocess.run(
    [*command, "--windows", str(WINDOWS), "--workers", "0"],
    check=True,
    capture_output=True,
    text=True,
  )
  return json.loads(done.stdout.splitlines()[-1])["cpu"]


def compare(name: str, root: pathlib.Path, kind: str, batches: int, peer: str) -> str:
  """A row of the table."""
  samples = batches * BATCH[kind]
  rate = lambda seconds: samples / statistics.median(seconds)
  ours = rate(measure(root, kind, batches))
  if not peer:
    return f"| {name} | {ours:,.1f} | | |"
  theirs = rate(measure_peer(peer, root, kind, batches))
  again = rate(measure(root, kind, batches))
  ours = statistics.mean((ours, again))
  return f"| {name} | {ours:,.1f} | {theirs:,.1f} | {ours / theirs:.2f} |"


def worker_memory(root: pathlib.Path, samples: int) -> None:
  """Prints the resident memory of the worker process, in MiB, ten times over so many samples."""
  absl_flags.FLAGS(sys.argv[:1])
  iterator = pipeline(root, "image", workers=1)
  next(iterator)
  [worker] = [p for p in map(int, children()) if "spawn_main" in cmdline(p)]
  every = max(1, samples // BATCH["image"] // 10)
  for batch in range(1, samples // BATCH["image"] + 1):
    next(iterator)
    if batch % every == 0:
      print(f"{batch * BATCH['image']:,} samples: {resident(worker):.0f} MiB", flush=True)
  iterator.close()


def children() -> list[str]:
  """Ids of this process's children."""
  tasks = pathlib.Path("/proc/self/task").glob("*/children")
  return [pid for task in tasks for pid in task.read_text().split()]


def cmdline(pid: int) -> str:
  """The command line of a process."""
  return pathlib.Path(f"/proc/{pid}/cmdline").read_text()


def resident(pid: int) -> float:
  """Resident memory of a process in MiB."""
  status = pathlib.Path(f"/proc/{pid}/status").read_text()
  [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
  return int(line.split()[1]) / 1024


def main() -> None:
  """Prints a table, or the memory of a worker."""
  parser = argparse.ArgumentParser(description="Times the data pipeline.")
  parser.add_argument("--peer", default="", help="a Python with torch and Pillow")
  parser.add_argument("--images", type=pathlib.Path, help="a folder of JPEGs to read as well")
  parser.add_argument("--count", type=int, default=128, help="files to read over and over")
  parser.add_argument("--batches", type=int, default=20, help="of a window")
  parser.add_argument("--memory", type=int, metavar="N", help="samples to read in a worker")
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    made = {name: pathlib.Path(scratch) / name for name in ("224", "512", "1024", "own", "volumes")}
    for path in made.values():
      path.mkdir()
    make_images(made["512"], flags.count, 512)
    if flags.memory:
      return worker_memory(made["512"], flags.memory)
    make_images(made["224"], flags.count, 224)
    make_images(made["1024"], flags.count // 4, 1024)
    make_volumes(made["volumes"], 8)
    print(f"grain {grain.__version__}, Pillow {PIL.__version__}, {WINDOWS} windows\n")
    print("| files | medflax /s | torch /s | ratio |\n|---|---|---|---|")
    cases = [(f"JPEG {side} × {side}", side, "image") for side in ("224", "512", "1024")]
    if flags.images:
      copy_images(made["own"], flags.images, flags.count)
      cases.append((f"JPEGs of {flags.images.name}", "own", "image"))
    cases.append(("NIfTI 64 × 256 × 256", "volumes", "volume"))
    for name, key, kind in cases:
      print(compare(name, made[key], kind, flags.batches, flags.peer), flush=True)


if __name__ == "__main__":
  main()
