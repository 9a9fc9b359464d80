"""Runs of a study on this machine, several at once."""

import argparse
import collections
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Sequence

from experiments.study import FINISHED, Run, told
from medflax.interrupt import Interrupt, Stopped
from medflax.utils import UserError

_POLL_SECONDS = 0.2
_CORES = 4  # of a run, unless --jobs says otherwise
_LAST_WORDS = 4096  # bytes of a log that are looked at


def add_flags(parser: argparse.ArgumentParser) -> None:
  """What this launcher is told beside the study."""
  parser.add_argument(
    *("--jobs", "-j"),
    type=int,
    default=0,
    help=f"runs at once; default: one for {_CORES} cores with JAX_PLATFORMS=cpu, else one",
  )


def describe(run: Run, flags: argparse.Namespace) -> str:
  """The command line."""
  return told(run.command)


def launch(runs: Sequence[Run], folder: pathlib.Path, flags: argparse.Namespace) -> int:
  """Starts all runs, in order, and waits; returns how many have not finished.

  Every run has its share of the cores, and its output in `logs/` of the study's folder. They share
  compiled programs. When asked to stop, by a signal, it asks the runs, and waits until they have
  saved; a second one aborts.

  Raises:
    UserError: if more jobs are asked for than there are cores.
  """
  jobs = _jobs(flags.jobs)
  waiting, active = collections.deque(runs), {}
  slots = list(range(jobs))
  failed, seconds = 0, []
  with Interrupt() as interrupt:
    try:
      while waiting or active:
        while waiting and slots:
          run, slot = waiting.popleft(), slots.pop(0)
          active[_start(run, folder, slot, jobs)] = run, slot, time.monotonic()
        for process in [p for p in active if p.poll() is not None]:
          run, slot, began = active.pop(process)
          slots.append(slot)
          seconds.append(time.monotonic() - began)
          finished = process.returncode == 0 and run.state() == FINISHED
          failed += not finished
          word = f"finished after {_lasted(seconds[-1])}" if finished else _why(run, folder)
          count = f"[{len(runs) - len(waiting) - len(active)}/{len(runs)}]"
          left = sum(seconds) / len(seconds) * (len(waiting) + len(active)) / jobs
          told_left = f"; about {_lasted(left)} left" if left else ""
          print(f"{count} {run.name}: {word}{told_left}", flush=True)
        time.sleep(_POLL_SECONDS)
        interrupt.check()
    except Stopped as stopped:
      print(f"stopped by {stopped}; waiting for {len(active)} to save", flush=True)
      _end(list(active))
      return failed + len(active) + len(waiting)
  return failed


def _jobs(asked: int) -> int:
  cores = len(os.sched_getaffinity(0))
  if asked > cores:
    raise UserError(f"--jobs={asked}: there are only {cores} cores")
  return asked or (max(1, cores // _CORES) if os.environ.get("JAX_PLATFORMS") == "cpu" else 1)


def _start(run: Run, folder: pathlib.Path, slot: int, jobs: int) -> subprocess.Popen:
  """The run as a process in a group of its own, which the terminal's Ctrl-C does not reach."""
  (folder / "logs").mkdir(exist_ok=True)
  cache = {
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
  }
  with _log(run, folder).open("ab") as log:
    process = subprocess.Popen(
      run.command,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      env=cache | os.environ,
      start_new_session=True,
    )
  if jobs > 1:  # long before it starts threads, which inherit this
    os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[slot::jobs])
  return process


def _end(processes: Sequence[subprocess.Popen]) -> None:
  """Lets them save; whoever does not wait for that sends another Ctrl-C."""
  for process in processes:
    process.send_signal(signal.SIGTERM)
  try:
    for process in processes:
      process.wait()
  except KeyboardInterrupt:
    for process in processes:
      process.kill()
    raise


def _log(run: Run, folder: pathlib.Path) -> pathlib.Path:
  return folder / "logs" / f"{run.name}.log"


def _why(run: Run, folder: pathlib.Path) -> str:
  """The last line that a run has said."""
  path = _log(run, folder)
  tail = path.read_bytes()[-_LAST_WORDS:].decode(errors="replace").strip()
  return f"not finished: {tail.splitlines()[-1] if tail else 'it said nothing'} ({path})"


def _lasted(seconds: float) -> str:
  minutes = seconds / 60
  return f"{seconds:.0f} s" if minutes < 1 else f"{minutes:.0f} min"
