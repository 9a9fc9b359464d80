r"""Is a run the same with 1, 2 and 4 processes, and what becomes of it when one is killed?

python benchmarks/multi_process.py --workdir DIR -- --config=configs/flamingo_med.py \
  --config.train.num_steps=20 --config.checkpoint.every=10

All processes are on this machine, one device each. Each number of processes trains from the
start; then runs made by one number are gone on with by another, from the checkpoint before the
last. With `--kill I J`, process I of the largest number is killed in the middle, all are started
again, J is killed, and all are started once more. All runs share one cache of compiled programs.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from medflax.checkpoint import read_state


def free_port() -> int:
  """A port that nobody listens at."""
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return listener.getsockname()[1]


def start(command: list[str], workdir: pathlib.Path, count: int) -> list[subprocess.Popen]:
  """One run as `count` processes; each appends what it says to a file of its own."""
  full = [sys.executable, "-m", "medflax.main", *command, f"--workdir={workdir}"]
  programs = {
    "JAX_COMPILATION_CACHE_DIR": str(workdir.absolute().parent / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  plain, port = os.environ | programs, free_port()
  plain.pop("XLA_FLAGS", None)  # may ask for several devices
  processes = []
  for index in range(count):
    names = {} if count == 1 else {
      "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
      "JAX_NUM_PROCESSES": str(count),
      "JAX_PROCESS_ID": str(index),
    }  # fmt: skip
    with said(workdir, index).open("a") as output:
      options = dict(env=plain | names, stdout=output, stderr=subprocess.STDOUT)
      processes.append(subprocess.Popen(full, **options))
  return processes


def said(workdir: pathlib.Path, index: int) -> pathlib.Path:
  """The output of a process."""
  return workdir.with_name(f"{workdir.name}.{index}.log")


def train(command: list[str], workdir: pathlib.Path, count: int) -> float:
  """Seconds that a whole run takes; a failure ends the benchmark with the run's own words."""
  began = time.monotonic()
  statuses = [process.wait() for process in start(command, workdir, count)]
  for index, status in enumerate(statuses):
    if status:
      tail = "\n".join(said(workdir, index).read_text().splitlines()[-30:])
      sys.exit(f"process {index} of {count} failed with status {status}:\n{tail}")
  return time.monotonic() - began


def losses(workdir: pathlib.Path) -> np.ndarray:
  """The loss of every step."""
  path = workdir / "metrics.jsonl"
  rows = map(json.loads, path.read_text().splitlines() if path.exists() else [])
  return np.asarray([row["train/loss"] for row in rows if "train/loss" in row])


def steps(workdir: pathlib.Path) -> list[int]:
  """Of the checkpoints, in order."""
  return sorted(int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit())


def kill(command: list[str], workdir: pathlib.Path, count: int, index: int) -> dict:
  """Kills process `index` behind a checkpoint; how and how soon the others end."""
  log, processes = said(workdir, 0), []
  before = log.stat().st_size if log.exists() else 0

  def wait_until(happened: Callable[[], bool]) -> None:
    while not happened():
      if any(process.poll() is not None for process in processes):
        statuses = [process.kill() or process.wait() for process in processes]
        sys.exit(f"ended with {statuses} before one was killed; see {workdir}.*.log")
      time.sleep(0.01)

  processes = start(command, workdir, count)
  wait_until(lambda: b"first step after" in log.read_bytes()[before:] and bool(steps(workdir)))
  seen = len(losses(workdir))
  wait_until(lambda: len(losses(workdir)) > seen)
  processes[index].send_signal(signal.SIGKILL)
  began = time.monotonic()
  statuses = [process.wait() for process in processes]
  del statuses[index]
  said_last = lambda i: said(workdir, i).read_text().splitlines()[-1]
  while True:  # of a process that jax itself ends, what was lost is told a moment later
    lines = [said_last(i) for i in range(count) if i != index]
    seconds = time.monotonic() - began
    if all(line.startswith("error: ") for line in lines) or seconds > 60:
      break
    time.sleep(0.1)
  return {
    "seconds": round(seconds, 1),
    "statuses": statuses,
    "step": len(losses(workdir)),
    "said": lines,
  }


def same_bits(a: pathlib.Path, b: pathlib.Path) -> bool:
  """Whether the last checkpoints are the same to the bit."""
  left, right = (read_state(w / "checkpoints", steps(w)[-1]) for w in (a, b))
  same = lambda path: left[path].tobytes() == right[path].tobytes()
  return left.keys() == right.keys() and all(map(same, left))


def main() -> int:
  """Returns 0 if losses agree to 1e-5 and what was killed came to the same bits."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="an empty folder")
  parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
  parser.add_argument("--kill", type=int, nargs="*", default=[], help="processes of the most")
  parser.add_argument("command", nargs="+")
  flags = parser.parse_args()
  flags.workdir.mkdir(parents=True, exist_ok=True)
  most = max(flags.processes)
  command = [*flags.command, "--config.train.log_every=1", f"--config.data.shards={most}"]

  runs, results = {n: flags.workdir / f"of_{n}" for n in flags.processes}, {}
  first = runs[flags.processes[0]]
  print(
    f"{'processes':<14}{'seconds':>9}{'steps':>7}{'largest difference in loss':>28}", flush=True
  )

  def tell(name: str, workdir: pathlib.Path, seconds: float) -> None:
    found, wanted = losses(workdir), losses(first)
    results[name] = float(np.abs(found - wanted).max()) if len(found) == len(wanted) else np.inf
    print(f"{name:<14}{seconds:>9.0f}{len(found):>7}{results[name]:>28.1e}", flush=True)

  for count, workdir in runs.items():
    tell(str(count), workdir, train(command, workdir, count))
  for before, after in zip(flags.processes, flags.processes[1:] + flags.processes[:1], strict=True):
    workdir = flags.workdir / f"{before}_to_{after}"
    shutil.copytree(runs[before], workdir)
    shutil.rmtree(workdir / "checkpoints" / str(steps(workdir)[-1]))
    tell(f"{before}, then {after}", workdir, train(command, workdir, after))
  good = max(results.values()) <= 1e-5
  summary = {"differences": results}
  if flags.kill:
    workdir = flags.workdir / "killed"
    for index in flags.kill:
      found = summary[f"killed {index}"] = kill(command, workdir, most, index)
      print(f"process {index} of {most} killed after step {found['step']}: the others ended")
      print(f"within {found['seconds']} s with statuses {found['statuses']}, saying")
      print("\n".join(f"  {line}" for line in found["said"]), flush=True)
      good &= all(found["statuses"]) and found["seconds"] < 60
    train(command, workdir, most)
    summary["same_bits"] = same_bits(workdir, runs[most])
    print(f"started again, the last checkpoint has the same bits: {summary['same_bits']}")
    good &= summary["same_bits"]
  print(json.dumps(summary))
  return int(not good)


if __name__ == "__main__":
  sys.exit(main())
