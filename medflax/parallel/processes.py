"""Several processes as one run: how they meet, agree, and notice that one of them is lost.

Everything else about processes is jax's own multi-controller runtime.
"""

import atexit
import dataclasses
import glob
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from medflax.utils import UserError

LOST = 3  # exit status of the processes that are left
_BEAT_SECONDS = 5.0
_SILENT_SECONDS = 45.0  # without a beat, after which a process counts as lost
_SUSPECT_SECONDS = 15.0  # the same, once jax has failed here: most likely, because of that
_REMEDY = "start all processes again with the same command, and the run goes on from its last save"
_FOLDER = "medflax/beat"
_PLAIN = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}


def in_cluster(environ: Mapping[str, str]) -> bool:
  """Whether this process was started as one of several: by hand, SLURM, or on a TPU pod."""
  if "JAX_COORDINATOR_ADDRESS" in environ or int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
    return True
  if "TPU_WORKER_HOSTNAMES" in environ:  # GKE, and one host that asks nobody
    return "," in environ["TPU_WORKER_HOSTNAMES"] or "MEGASCALE_COORDINATOR_ADDRESS" in environ
  on_tpu_host = importlib.util.find_spec("libtpu") and glob.glob("/dev/accel[0-9]*")
  return bool(on_tpu_host) and "TPU_SKIP_MDS_QUERY" not in environ  # its metadata name the others


def join(environ: Mapping[str, str]) -> None:
  """Meets the other processes, if there are any; before anything else that jax does.

  The environment says who they are: SLURM's, GKE's, a TPU host's metadata, or, by hand,
  `JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=n JAX_PROCESS_ID=i`.

  Raises:
    UserError: if the others do not come, or a variable is missing.
  """
  if not in_cluster(environ):
    return
  try:
    plain = {name: int(environ[key]) for name, key in _PLAIN.items() if key in environ}
    # Beats below are faster, and tell more than jax, which only aborts.
    jax.distributed.initialize(**plain, heartbeat_timeout_seconds=300)
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f"could not meet the other processes of this run: {str(error).splitlines()[0]}; by hand, "
      "every process needs JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
    ) from None


def gather(value: Any) -> list[Any]:
  """The JSON values of all processes, in their order; all must call this together."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.asarray(len(text)))
  room = 1 << int(sizes.max() - 1).bit_length()  # few sizes, few programs
  rows = multihost_utils.process_allgather(np.pad(text, (0, room - len(text))))
  return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def by_first(action: Callable[[], Any]) -> None:
  """Process 0 does it, the others wait; its UserError is everyone's."""
  mistake = ""
  if jax.process_index() == 0:
    try:
      action()
    except UserError as error:
      mistake = str(error)
  if mistake := gather(mistake)[0]:
    raise UserError(mistake)


@dataclasses.dataclass
class _Peer:
  """What is known of a process: its last beat, when it came, and when its step was another."""

  beaten: float
  moved: float
  count: int = 0
  host: str = "an unknown host"
  step: int = 0
  word: str = ""

  def hear(self, beat: list[Any], now: float) -> None:
    if beat[0] != self.count:
      self.beaten = now
    if beat[2] != self.step:
      self.moved = now
    self.count, self.host, self.step, self.word = beat

  def fault(self, now: float, furthest: int, hang_seconds: float, silent_seconds: float) -> str:
    """Why the run cannot go on with it, "" if it can."""
    if self.word.startswith("ended"):
      return self.word
    if self.word:  # it is done
      return ""
    if now - self.beaten > silent_seconds:
      return f"was lost: no sign of life for {now - self.beaten:.0f} s, after step {self.step}"
    if self.step < furthest and now - self.moved > hang_seconds:
      return f"is stuck: {now - self.moved:.0f} s after step {self.step}"
    return ""


class Watch:
  """While entered, ends this process, with one clear line, if another is lost or stuck.

  Every process leaves a beat with jax's coordinator every few seconds and looks for the others'.
  The coordinator is in process 0: when that is lost, jax aborts the others at once, and a child
  of each says the line instead. With one process nothing of this is there.
  """

  def __init__(self, *, hang_seconds: float):
    """`hang_seconds`: how long a process may stay at a step that another is beyond."""
    self._hang_seconds = hang_seconds
    self._silent_seconds = _SILENT_SECONDS
    self._step, self._word = 0, ""
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
    self._several = jax.process_count() > 1

  def note(self, step: int) -> None:
    """This process has launched `step`."""
    self._step = step

  def explain(self) -> None:
    """After an error of jax's: waits until another process is known to be lost, which ends this.

    Returns if none is, so that the error is this process's own.
    """
    if self._several:
      self._silent_seconds = _SUSPECT_SECONDS
      time.sleep(_SUSPECT_SECONDS + 2 * _BEAT_SECONDS)

  def __enter__(self) -> "Watch":
    if self._several:
      self._client = _client()
      self._witness = _witness()
      atexit.register(self._hush)
      self._thread.start()
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _) -> None:
    if not self._several:
      return
    self._stop.set()
    self._thread.join()
    self._word = "done" if error is None else f"ended: {error or kind.__name__}"
    self._beat(0)
    if error is not None:
      if jax.process_index() == 0:
        time.sleep(2 * _BEAT_SECONDS)  # the coordinator goes last, so that the others hear of it
      # jax would wait for all to leave in good order.
      atexit.register(self._end, 2 if isinstance(error, UserError) else 1)

  def _run(self) -> None:
    began, count = time.monotonic(), 0
    peers = {i: _Peer(beaten=began, moved=began) for i in range(jax.process_count())}
    while not self._stop.wait(_BEAT_SECONDS):
      count, now = count + 1, time.monotonic()
      for i, beat in self._beat(count).items():
        peers[i].hear(json.loads(beat), now)
      furthest = max(peer.step for peer in peers.values())
      for i, peer in peers.items():
        why = peer.fault(now, furthest, self._hang_seconds, self._silent_seconds)
        if why:
          self._leave(f"process {i} of {len(peers)} on {peer.host} {why}")

  def _beat(self, count: int) -> dict[int, str]:
    """Leaves this process's beat; the beats of all, none if the coordinator does not answer."""
    beat = json.dumps([count, socket.gethostname(), self._step, self._word])
    try:
      self._client.key_value_set(f"{_FOLDER}/{jax.process_index()}", beat, True)
      beats = self._client.key_value_dir_get(_FOLDER)
    except jax.errors.JaxRuntimeError:
      return {}
    return {int(key.rpartition("/")[2]): value for key, value in beats}

  def _leave(self, why: str) -> NoReturn:
    """Ends the process from this thread: the main one may wait forever."""
    print(f"error: {why}; {_REMEDY}", file=sys.stderr, flush=True)
    if jax.process_index() == 0:
      time.sleep(2 * _BEAT_SECONDS)
    self._end(LOST)

  def _end(self, status: int) -> NoReturn:
    """Leaves at once, and needs no witness."""
    self._hush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

  def _hush(self) -> None:
    """The witness need not speak."""
    if self._witness.poll() is None:
      self._witness.communicate(b"\n")


def _witness() -> subprocess.Popen:
  """A shell that says why this process ended, should it end without a line to the shell."""
  why = (
    f"error: process {jax.process_index()} of {jax.process_count()} was ended, by jax if "
    f"process 0, where all meet, was lost; {_REMEDY}"
  )
  program = ["sh", "-c", 'read line || echo "$1" >&2', "sh", why]
  return subprocess.Popen(program, stdin=subprocess.PIPE, start_new_session=True)


def _client() -> Any:
  """Of jax's coordinator, whose keys and values have no public name; Orbax uses it as well."""
  from jax._src import distributed

  return distributed.global_state.client
