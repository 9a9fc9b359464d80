"""Batches ahead of time: host work and transfers while the devices compute."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from medflax.data.encode import Batch


@runtime_checkable
class Resumable(Protocol):
  """What `prefetch_to_device` reads from."""

  counters: dict[str, int]

  def __next__(self) -> Batch: ...
  def get_state(self) -> bytes: ...


class prefetch_to_device:
  """Runs an iterator ahead in a thread, so that host work and transfers overlap compute.

  A class in lower case, because it is called like a function.

  Attributes:
    wait_seconds: how long the consumer has waited for batches in all.
    counters: the iterator's, as of the batch last handed out.
  """

  def __init__(self, iterator: Resumable, put: Callable[[Batch], Any], size: int = 2):
    """Starts the thread.

    Args:
      iterator: yields NumPy batches; from here on only the thread touches it.
      put: sends a batch to the devices.
      size: how many batches to hold ready.
    """
    self._state, self.counters = iterator.get_state(), dict(iterator.counters)
    self.wait_seconds = 0.0
    self._ready: queue.Queue = queue.Queue(size)
    self._stop = threading.Event()
    self._thread = threading.Thread(
      target=self._produce, args=(iterator, put), name="prefetch", daemon=True
    )
    self._thread.start()

  def _produce(self, iterator: Resumable, put: Callable[[Batch], Any]) -> None:
    while not self._stop.is_set():
      try:
        item = (put(next(iterator)), iterator.get_state(), dict(iterator.counters))
      except BaseException as error:  # handed to the consumer, StopIteration included
        item = error
      self._offer(item)
      if isinstance(item, BaseException):
        return

  def _offer(self, item: Any) -> None:
    while not self._stop.is_set():
      try:
        return self._ready.put(item, timeout=0.1)
      except queue.Full:
        pass

  def __iter__(self) -> "prefetch_to_device":
    return self

  def __next__(self) -> Any:
    if self._stop.is_set():
      raise StopIteration
    start = time.perf_counter()
    item = self._ready.get()
    self.wait_seconds += time.perf_counter() - start
    if isinstance(item, BaseException):
      self.close()
      raise item
    batch, self._state, self.counters = item
    return batch

  def get_state(self) -> bytes:
    """The iterator's state right after the batch last handed out."""
    return self._state

  def close(self) -> None:
    """Stops the thread and waits for it; the iterator is then the caller's again."""
    self._stop.set()
    self._thread.join()
