"""Stopping a run by SIGTERM or SIGINT without losing work."""

import contextlib
import signal
from collections.abc import Iterator


class Stopped(Exception):
  """The run was asked to stop; the message names the signal."""


class Interrupt:
  """While entered, SIGTERM and SIGINT only leave a note; a second SIGINT aborts at once.

  Attributes:
    signal: the name of the signal that came, "" before.
  """

  def __init__(self):
    self.signal = ""
    self._raises = False

  def __enter__(self) -> "Interrupt":
    self._before = {n: signal.signal(n, self._handle) for n in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _handle(self, number: int, _) -> None:
    if self.signal and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.signal = signal.Signals(number).name
    if self._raises:
      raise Stopped(self.signal)

  def check(self) -> None:
    """Raises Stopped if a signal has come."""
    if self.signal:
      raise Stopped(self.signal)

  @contextlib.contextmanager
  def at_once(self) -> Iterator[None]:
    """Within, a signal raises Stopped where it strikes: for work that can be thrown away."""
    self._raises = True
    try:
      self.check()
      yield
    finally:
      self._raises = False
