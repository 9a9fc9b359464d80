"""Times calls of this process and of a peer in turn, so that other work meets both alike.

The peer is a process of its own, with another Python; it answers the name of a call with the
seconds that the call took (`peers/open_flamingo_torch.py`). While one works, the other waits.
"""

import datetime
import json
import pathlib
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

PEER = pathlib.Path(__file__).parent / "peers/open_flamingo_torch.py"
WARMUP = 2
COLUMNS = ("ours ms", "peer ms", "ratio", "ours CPU ms", "peer CPU ms", "ratio of CPU time")


class Times(NamedTuple):
  """Seconds of a call: of the clock, and of all threads' CPU time."""

  wall: float
  cpu: float


def timed(call: Callable[[], object]) -> Times:
  """Times one call, up to its last result."""
  wall, cpu = time.perf_counter(), time.process_time()
  jax.block_until_ready(call())
  return Times(time.perf_counter() - wall, time.process_time() - cpu)


class Peer:
  """A process that makes a call when it is told to.

  Attributes:
    facts: what it told of itself: versions, parameters, trainable.
  """

  def __init__(self, python: str, case: str, *arguments: object):
    command = [python, str(PEER), case, *map(str, arguments)]
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    self.facts = self._read()

  def time(self, name: str) -> Times:
    """Makes a call of that name."""
    print(name, file=self._process.stdin, flush=True)
    return Times(**self._read())

  def close(self) -> None:
    """Ends the process."""
    self._process.communicate()

  def _read(self) -> dict:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f"the peer ended with status {self._process.wait()}")
    return json.loads(line)


class Comparison(NamedTuple):
  """Medians over the rounds; `ratio` is the median of each round's peer's time over ours."""

  ours: Times
  peer: Times
  ratio: Times

  def row(self) -> tuple[str, ...]:
    """Cells of `COLUMNS`."""
    pairs = zip(self.ours, self.peer, self.ratio, strict=True)
    return tuple(
      cell
      for ours, peer, ratio in pairs
      for cell in (f"{ours * 1e3:,.1f}", f"{peer * 1e3:,.1f}", f"{ratio:.2f}")
    )


def compare(first: Callable[[], Times], second: Callable[[], Times], rounds: int) -> Comparison:
  """Times both once a round, after warm-up, in an order that changes every round."""
  for _ in range(WARMUP):
    first()
    second()
  pairs = []
  for i in range(rounds):
    if i % 2:
      theirs, ours = second(), first()
    else:
      ours, theirs = first(), second()
    pairs.append((ours, theirs))
  median = lambda rows: Times(*map(statistics.median, zip(*rows, strict=True)))
  ratios = [Times(b.wall / a.wall, b.cpu / a.cpu) for a, b in pairs]
  return Comparison(median([a for a, _ in pairs]), median([b for _, b in pairs]), median(ratios))


def print_table(title: str, rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
  """A Markdown table under the machine, the date and the versions."""
  device = jax.devices()[0]
  today = datetime.date.today().isoformat()
  print(f"{jax.device_count()} × {device.device_kind}, jax {jax.__version__}, {today}, {title}\n")
  print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
  for row in rows:
    print(f"| {' | '.join(row)} |", flush=True)
