"""Where numbers go: `metrics.jsonl`, TensorBoard events, and the terminal."""

import contextlib
import json
import logging
import math
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import jax
import numpy as np
import tqdm
from tensorboardX import SummaryWriter

from medflax.utils import write_atomic

log = logging.getLogger("medflax")


class MetricWriter:
  """Appends scalars to `metrics.jsonl` and to TensorBoard; a line is on disk when `write` returns.

  Use as a context manager. Only the first process's writes.

  Attributes:
    last: the newest value of every scalar.
  """

  def __init__(self, workdir: pathlib.Path, *, step: int):
    """Opens the files of a run that goes on from `step`.

    Lines after `step` belong to a future that a kill cut off and that will be made again; they
    are dropped, and so is a line that the kill cut in the middle.
    """
    self.last: dict[str, int | float] = {}
    self._at_step: set[str] = set()  # names already written at the step resumed from
    self._step = step
    path = workdir / "metrics.jsonl"
    kept = [line for line in _lines(path) if self._keep(line)]
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    if path.exists():
      write_atomic(path, "".join(line + "\n" for line in kept))
    self._file = path.open("a")
    self._events = SummaryWriter(
      str(workdir / "tensorboard"), purge_step=step + 1 if step else None
    )

  def _keep(self, line: str) -> bool:
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      return False
    step = record.pop("step")
    if step <= self._step:
      self.last |= record
    if step == self._step:
      self._at_step |= record.keys()
    return step <= self._step

  def __enter__(self) -> "MetricWriter":
    return self

  def __exit__(self, *_) -> None:
    if self._writes:
      self._file.close()
      self._events.close()

  def write(self, step: int, scalars: Mapping[str, int | float]) -> None:
    """Records scalars at a step; those that a resumed run has already are left out."""
    if step == self._step:
      scalars = {name: value for name, value in scalars.items() if name not in self._at_step}
    self.last |= scalars
    if not scalars or not self._writes:
      return
    # JSON has neither NaN nor infinity; train/bad_steps tells of a loss that is one.
    values = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
    self._file.write(json.dumps({"step": step, **values}) + "\n")
    self._file.flush()
    for name, value in values.items():
      if value is not None:
        self._events.add_scalar(name, value, step)


def _lines(path: pathlib.Path) -> list[str]:
  return path.read_text().splitlines() if path.exists() else []


@runtime_checkable
class Data(Protocol):
  """What tells of the data: seconds that were spent waiting for them, and totals so far."""

  wait_seconds: float
  counters: Mapping[str, int]


class Window:
  """What the steps since the last log entry measured, left on the devices until then.

  The host runs at most `AHEAD` steps ahead of the devices, so that batches do not pile up.
  """

  AHEAD = 2

  def __init__(self, rows: int, data: Data, shares: int = 1):
    """Starts the clock.

    Args:
      rows: of a batch.
      data: where batches come from.
      shares: how many such sources a batch has, this one among them.
    """
    self._rows, self._data, self._shares = rows, data, shares
    self._metrics: list[Mapping[str, jax.Array]] = []
    self.restart_clock()

  def restart_clock(self) -> None:
    """Leaves what came before (compilation, an evaluation) out of the speed."""
    self._timed, self._start = 0, time.perf_counter()
    self._spent = dict.fromkeys(("launch", "device", "save"), 0.0)
    self._waited_before, self._counted_before = self._data.wait_seconds, dict(self._data.counters)

  @contextlib.contextmanager
  def spent(self, on: str) -> Iterator[None]:
    """Counts the seconds within as spent on "launch", "device" or "save"."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self._spent[on] += time.perf_counter() - start

  def add(self, metrics: Mapping[str, jax.Array]) -> None:
    """Takes the metrics of one launched step."""
    self._metrics.append(metrics)
    self._timed += 1
    with self.spent("device"):
      jax.block_until_ready(self._metrics[-self.AHEAD - 1 : -self.AHEAD])

  def close(self) -> dict[str, int | float]:
    """Fetches and forgets: means over the steps; speed where at least one step was timed.

    What is left of the time besides `data_wait`, `launch_wait`, `device_wait` and `save_wait`,
    shares of it, is the loop's own.
    """
    with self.spent("device"):
      fetched, self._metrics = jax.device_get(self._metrics), []
    seconds = time.perf_counter() - self._start
    scalars = {
      f"train/{name}": float(np.mean([metrics[name] for metrics in fetched]))
      for name in ("loss", "accuracy", "grad_norm")
    }
    scalars["train/bad_steps"] = int(fetched[-1]["bad_total"])
    if self._timed:
      scalars["train/step_seconds"] = seconds / self._timed
      scalars["train/samples_per_s"] = self._timed * self._rows / seconds
      for name in ("tokens", "media"):
        counted = self._data.counters.get(name, 0) - self._counted_before.get(name, 0)
        scalars[f"train/{name}_per_s"] = counted * self._shares / seconds
      scalars["train/data_wait"] = (self._data.wait_seconds - self._waited_before) / seconds
      for on, spent in self._spent.items():
        scalars[f"train/{on}_wait"] = spent / seconds
    self.restart_clock()
    return scalars


class Progress:
  """A progress bar on a terminal, a plain line per log entry otherwise."""

  def __init__(self, start: int, total: int):
    self._total, self._begin = total, (start, time.monotonic())
    self._bar = tqdm.tqdm(
      total=total,
      initial=start,
      desc="train",
      unit="step",
      dynamic_ncols=True,
      disable=None if jax.process_index() == 0 else True,  # None: where there is no terminal
    )

  def advance(self) -> None:
    """One more step was launched."""
    self._bar.update()

  def show(self, step: int, scalars: Mapping[str, int | float]) -> None:
    """The state of training, once per log entry."""
    text = f"loss {scalars['train/loss']:.4f}"
    if "train/samples_per_s" in scalars:
      text += f"  {scalars['train/samples_per_s']:.1f} samples/s"
    if not self._bar.disable:
      self._bar.set_postfix_str(text)
      return
    start, began = self._begin
    left = (time.monotonic() - began) / (step - start) * (self._total - step)
    log.info("step %d/%d  %s  %d:%02d left", step, self._total, text, *divmod(round(left), 60))

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *_) -> None:
    self._bar.close()


class ConsoleHandler(logging.Handler):
  """Log messages as plain lines on standard output that do not tear a progress bar."""

  def emit(self, record: logging.LogRecord) -> None:
    prefix = "warning: " if record.levelno >= logging.WARNING else ""
    tqdm.tqdm.write(prefix + record.getMessage(), file=sys.stdout)
    sys.stdout.flush()


def log_to_console(*, quiet: bool) -> None:
  """Sends medflax's messages to the terminal, and quiets the libraries' chatter.

  Args:
    quiet: nothing below an error; for all but the first process.
  """
  log.setLevel(logging.ERROR if quiet else logging.INFO)
  log.handlers = [ConsoleHandler()]
  log.propagate = False
  for library in ("jax", "orbax", "absl", "grain"):
    logging.getLogger(library).setLevel(logging.ERROR)
