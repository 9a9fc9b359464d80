r"""Kills a run at random moments, resumes it, and compares its end with an uninterrupted run's.

python benchmarks/kill_resume.py --kills=20 --workdir=DIR -- \
  --config=configs/flamingo_med.py --config.train.num_steps=60 --config.checkpoint.every=7

What follows `--` is a command line of medflax.main without --workdir. Signals are SIGKILL and
SIGTERM in turn, at moments drawn uniformly over the time that an uninterrupted run takes, its
start included. A run that ends before its moment is compared, and a new one is begun.
"""

import argparse
import dataclasses
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np

from medflax.checkpoint import read_state

SIGNALS = (signal.SIGKILL, signal.SIGTERM)


@dataclasses.dataclass
class Tally:
  """What happened."""

  kills: int = 0
  runs: int = 0
  different: int = 0


def start(command: list[str], workdir: pathlib.Path, log: pathlib.Path) -> subprocess.Popen:
  """The run as a process; its output is appended to `log`."""
  full = [sys.executable, "-m", "medflax.main", *command, f"--workdir={workdir}"]
  with log.open("a") as output:
    return subprocess.Popen(full, stdout=output, stderr=subprocess.STDOUT)


def must_succeed(process: subprocess.Popen, log: pathlib.Path) -> None:
  """Waits; a failure ends the benchmark with the run's own words."""
  if process.wait() != 0:
    tail = "\n".join(log.read_text().splitlines()[-30:])
    sys.exit(f"a run failed with status {process.returncode}:\n{tail}")


def kill_after(process: subprocess.Popen, seconds: float, number: int, log: pathlib.Path) -> bool:
  """Whether the process was still there to be killed.

  After SIGTERM it has saved and left with status 0, unless it was still importing.
  """
  try:
    process.wait(timeout=seconds)
  except subprocess.TimeoutExpired:
    process.send_signal(number)
    if process.wait() not in (0, -number):
      must_succeed(process, log)
    return True
  must_succeed(process, log)
  return False


def last_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """The newest checkpoint's arrays."""
  folder = workdir / "checkpoints"
  return read_state(folder, max(int(p.name) for p in folder.iterdir() if p.name.isdigit()))


def differences(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
  """Paths whose bytes differ."""
  return [k for k in a.keys() | b.keys() if k not in a or k not in b or bits(a[k]) != bits(b[k])]


def bits(array: np.ndarray) -> bytes:
  """For comparing NaNs and signed zeros as well."""
  return array.tobytes()


def main() -> int:
  """Returns 0 if every run ended in the same bits."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="an empty folder")
  parser.add_argument("command", nargs="+")
  flags = parser.parse_args()
  flags.workdir.mkdir(parents=True, exist_ok=True)
  whole, cut, log = (flags.workdir / name for name in ("whole", "cut", "output.log"))
  began = time.monotonic()
  must_succeed(start(flags.command, whole, log), log)
  seconds = time.monotonic() - began
  expected = last_state(whole)
  print(f"uninterrupted: {seconds:.0f} s, {len(expected)} arrays", flush=True)

  rng, tally = np.random.default_rng(flags.seed), Tally()
  while tally.kills < flags.kills or cut.exists():
    process = start(flags.command, cut, log)
    moment = rng.uniform(0, seconds) if tally.kills < flags.kills else float("inf")
    number = SIGNALS[tally.kills % len(SIGNALS)]
    if kill_after(process, min(moment, 1e6), number, log):
      tally.kills += 1
      steps = [p.name for p in cut.glob("checkpoints/*") if p.name.isdigit()]
      saved = max(map(int, steps), default="none")
      name = signal.Signals(number).name
      print(f"kill {tally.kills}: {name} after {moment:.1f} s, last save {saved}", flush=True)
      continue
    tally.runs += 1
    wrong = differences(expected, last_state(cut))
    tally.different += bool(wrong)
    print(f"run {tally.runs} ended: {len(wrong)} arrays differ {wrong[:3]}", flush=True)
    shutil.rmtree(cut)
  verdict = f"{tally.different} DIFFER" if tally.different else "all bit-identical"
  print(f"{tally.kills} kills over {tally.runs} runs: {verdict} to the uninterrupted one")
  return int(tally.different > 0)


if __name__ == "__main__":
  sys.exit(main())
