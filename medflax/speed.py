"""What a run makes of its devices: utilisation, memory, programs compiled again, traces."""

import logging
import pathlib
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from medflax.analysis import flops
from medflax.analysis.hardware import find_chip

log = logging.getLogger("medflax")

_COMPILED = "/jax/core/compile/backend_compile_duration"  # also where the cache has the program


class Utilisation:
  """Model FLOPs utilisation (PaLM, Chowdhery et al. 2022, appendix B).

  Attributes:
    flops: of one step, without what is computed again; frozen weights have no gradient.
    peak: FLOP/s of all devices: the maker's dense bfloat16 rate, on CPUs what a large float32
      product reaches; None for accelerators without figures.
  """

  def __init__(self, model: Any, state: Any, batch: Any, mesh: Mesh):
    """Abstract arrays will do."""
    self.flops = flops.total(flops.training(model, state, batch)).total
    self.peak = peak_flops(mesh)

  def __call__(self, step_seconds: float) -> dict[str, float]:
    """`train/mfu`, if it is known."""
    return {} if self.peak is None else {"train/mfu": self.flops / (step_seconds * self.peak)}


def peak_flops(mesh: Mesh) -> float | None:
  """FLOP/s that all devices of a mesh could reach together; see `Utilisation.peak`."""
  device = mesh.devices.flat[0]
  if device.platform == "cpu":
    return _measured_flops() * jax.process_count()  # devices of one process share its cores
  chip = find_chip(device.device_kind)
  return None if chip is None else chip.flops * mesh.size


def _measured_flops(size: int = 1024, repeats: int = 5) -> float:
  """Of the fastest of some square float32 products on this process's cores."""
  best = float("inf")
  # By itself: the run's mesh may have devices of other processes.
  with jax.set_mesh(jax.make_mesh((1,), ("alone",), devices=jax.local_devices()[:1])):
    x, product = jnp.ones((size, size)), jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    for _ in range(repeats):
      start = time.perf_counter()
      product(x, x).block_until_ready()
      best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best


def peak_memory() -> dict[str, float]:
  """GiB that were in use at most: of this process, and of its fullest device if that counts."""
  unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
  peaks = {"host_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
  counted = [device.memory_stats() or {} for device in jax.local_devices()]
  if devices := [stats["peak_bytes_in_use"] for stats in counted if "peak_bytes_in_use" in stats]:
    peaks["device_gib"] = max(devices)
  return {f"memory/{name}": peak / 2**30 for name, peak in peaks.items()}


class Launcher:
  """Compiles the train step and calls it; warns of further programs, traces the steps asked for.

  Use as a context manager.

  Attributes:
    recompilations: how many programs the steps needed beyond that of `compile`.
  """

  def __init__(self, step_fn: Callable[..., Any], trace: Sequence[int], folder: pathlib.Path):
    """`trace`: () or the first and the last step to trace, into `folder`."""
    self._step_fn, self._folder = step_fn, folder
    self._first, self._last = trace or (0, 0)
    self._tracing, self._compiled = False, 0
    self.recompilations = 0

  def __enter__(self) -> "Launcher":
    self._thread = threading.get_ident()
    jax.monitoring.register_event_duration_secs_listener(self._hear)
    return self

  def __exit__(self, *_) -> None:
    jax.monitoring.unregister_event_duration_listener(self._hear)
    self._stop_trace()

  def _hear(self, event: str, seconds: float, **_: Any) -> None:
    if event == _COMPILED and threading.get_ident() == self._thread:
      self._compiled += 1

  def compile(self, state: Any, batch: Any) -> None:
    """Has the step's program ready for arguments such as these, of which nothing is read."""
    self._step_fn.lower(state, batch).compile()

  def __call__(self, step: int, state: Any, batch: Any) -> tuple[Any, dict[str, jax.Array]]:
    """Makes step number `step`."""
    if step == self._first:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
      self._tracing = True
    before = self._compiled
    state, metrics = self._step_fn(state, batch)
    if self._compiled > before:
      self.recompilations += 1
      log.warning(
        "step %d: the train step was compiled again (%d times so far): a shape or a sharding of "
        "its arguments has changed",
        *(step, self.recompilations),
      )
    if step == self._last:
      jax.block_until_ready(metrics)
      self._stop_trace()
    return state, metrics

  def _stop_trace(self) -> None:
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
      log.info("trace     %s; open it with xprof or ui.perfetto.dev", self._folder)
