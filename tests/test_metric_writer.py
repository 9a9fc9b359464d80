import dataclasses
import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest

from medflax.metric_writer import MetricWriter, Progress, Window, log_to_console


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_lines_are_there_at_once(tmp_path):
  with MetricWriter(tmp_path, step=0) as writer:
    writer.write(1, {"a": 0.5})
    assert lines(tmp_path) == [{"step": 1, "a": 0.5}]
    writer.write(2, {"a": float("nan"), "b": float("inf")})
    writer.write(3, {})
  assert lines(tmp_path) == [{"step": 1, "a": 0.5}, {"step": 2, "a": None, "b": None}]
  assert list((tmp_path / "tensorboard").glob("events*"))


def test_resuming_drops_the_future_and_a_torn_line(tmp_path):
  with MetricWriter(tmp_path, step=0) as writer:
    for step in (1, 2, 3):
      writer.write(step, {"a": step, "b": -step})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "a"')
  with MetricWriter(tmp_path, step=2) as writer:
    assert writer.last == {"a": 2, "b": -2}
    writer.write(2, {"a": 2})  # there already
    writer.write(2, {"c": 9})  # a kill came between the two
    writer.write(3, {"a": 30})
  assert [(x["step"], x["a"]) for x in lines(tmp_path) if "a" in x] == [(1, 1), (2, 2), (3, 30)]
  assert {"step": 2, "c": 9} in lines(tmp_path)


@dataclasses.dataclass
class Data:
  """What a window reads of the data."""

  wait_seconds: float = 0.0
  counters: dict = dataclasses.field(default_factory=dict)


def step_metrics(loss, bad=0):
  values = {"loss": loss, "accuracy": 0.5, "grad_norm": 1.0, "bad_total": bad, "bad_in_a_row": 0}
  return {name: jnp.asarray(value) for name, value in values.items()}


def test_a_window_averages_its_steps_and_starts_anew(monkeypatch):
  now, data = [0.0], Data(wait_seconds=5.0, counters={"tokens": 100})
  monkeypatch.setattr("time.perf_counter", lambda: now[0])
  window = Window(8, data, shares=2)
  window.add(step_metrics(9.0))
  now[0] = 100.0  # compilation
  window.restart_clock()
  for loss in (1.0, 2.0):
    window.add(step_metrics(loss, bad=3))
  with window.spent("save"):
    now[0] = 102.0
  now[0], data.wait_seconds, data.counters = 104.0, 6.0, {"tokens": 300, "media": 8}
  scalars = window.close()
  np.testing.assert_allclose(scalars["train/loss"], 4.0)
  assert scalars["train/bad_steps"] == 3
  assert scalars["train/samples_per_s"] == 4.0  # two steps of eight rows in four seconds
  assert scalars["train/step_seconds"] == 2.0
  assert scalars["train/tokens_per_s"] == 100.0  # of both shares
  assert scalars["train/media_per_s"] == 4.0
  assert scalars["train/data_wait"] == 0.25 and scalars["train/save_wait"] == 0.5
  window.add(step_metrics(7.0))
  now[0] = 105.0
  assert window.close()["train/loss"] == 7.0


def test_a_window_of_compilation_alone_has_no_speed():
  window = Window(8, Data())
  window.add(step_metrics(1.0))
  window.restart_clock()
  assert "train/samples_per_s" not in window.close()


@pytest.fixture
def console():
  log = logging.getLogger("medflax")
  before = log.level, log.handlers, log.propagate
  yield log
  log.setLevel(before[0])
  log.handlers, log.propagate = before[1:]


def test_plain_lines_where_there_is_no_terminal(console, capsys):
  log_to_console(quiet=False)
  with Progress(0, 100) as progress:
    progress.advance()
    progress.show(10, {"train/loss": 1.25, "train/samples_per_s": 31.4})
  console.warning("careful")
  out, err = capsys.readouterr()
  first, second = out.splitlines()
  assert first.startswith("step 10/100  loss 1.2500  31.4 samples/s  0:0") and err == ""
  assert second == "warning: careful"


def test_other_processes_keep_silent(console, capsys):
  log_to_console(quiet=True)
  console.warning("said by the first process already")
  assert capsys.readouterr().out == ""
