import importlib.util
import json
import sys

import jax
import pytest

from medflax.analysis.hardware import CHIPS
from medflax.tools import aot

FLAMINGO = "configs/flamingo_med.py"
SMALL = (
  *("--config.init=", "--config.train.batch_size=2", "--config.model.lm.depth=1"),
  *("--config.data.max_tokens=16", "--config.data.max_media={'image': 2}", "--config.evals={}"),
)

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="compiling for TPUs needs libtpu: pip install 'medflax[aot]'",
)


@pytest.fixture
def here(monkeypatch):
  """The tool, compiling for this machine's CPU under the figures of a v5e."""
  monkeypatch.setattr(aot, "topology_devices", lambda name, slices: (CHIPS["v5e"], jax.devices()))


def command(*more, config=FLAMINGO, topology="v5e:2x2"):
  return [f"--config={config}", f"--topology={topology}", *SMALL, *more]


def error_of(capsys, *arguments, **named):
  assert aot.main(command(*arguments, **named)) == 2
  (line,) = capsys.readouterr().err.splitlines()
  return line


def test_all_programs(here, capsys, tmp_path):
  path = tmp_path / "report.json"
  assert aot.main(command(f"--json={path}")) == 0
  out = capsys.readouterr().out
  for words in ("train: 2 rows, 32 tokens", "prefill: 2 rows", "decode: 2 rows, 2 tokens"):
    assert words in out
  train, prefill, decode = json.loads(path.read_text())["programs"]
  assert train["flops"]["model"] > prefill["flops"]["model"] > decode["flops"]["model"] > 0
  assert 0 < train["memory"]["peak"] < CHIPS["v5e"].hbm
  assert train["bytes_moved"] > train["memory"]["arguments"]
  assert train["collectives"] == [] and train["uncounted_loops"] == []
  roofs = train["roofline"]
  assert roofs["seconds"] == max(roofs["compute"], roofs["memory"])
  assert roofs["compute"] == train["flops"]["executed"] / CHIPS["v5e"].flops
  told = aot.told(train | {"uncounted_loops": ["while.3", "while.7"]})
  assert "2 do not say how often they run; what they move and send counts once: while.3" in told


def test_the_largest_batch(here, capsys, monkeypatch):
  def analyse(name, parts, chip):
    peak = (10 + 2 * parts.config.train.batch_size) * 2**28
    work = dict(model=1, forward=1, activation_gradient=0, weight_gradient=0, executed=1, parts={})
    return dict(
      program=name,
      rows=1,
      tokens=1,
      fits=True,
      memory=dict(peak=peak, capacity=chip.hbm),
      flops=work,
    )

  monkeypatch.setattr(aot, "analyse", analyse)
  arguments = ("--find-batch", "--programs=train", "--config.optimizer.accumulate=2")
  report = aot.run(*aot._parser().parse(command(*arguments)))
  # 15.75 GiB are 63 units: 26 rows, in two micro-batches of 13.
  assert report["programs"][0]["memory"]["peak"] == (10 + 2 * 26) * 2**28


def test_a_topology_that_there_is_not(capsys):
  line = error_of(capsys, topology="v5e:3x5")
  assert line.startswith("error: unknown topology 'v5e:3x5'; of v5e there are 2x2, 2x4, 4x4")


def test_without_libtpu(capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "libtpu", None)
  assert error_of(capsys) == ("error: compiling for TPUs needs libtpu: pip install 'medflax[aot]'")


def test_a_mesh_that_does_not_fit(here, capsys):
  assert "does not fit 1 device" in error_of(capsys, "--config.mesh.fsdp=3")


def test_a_batch_that_does_not_divide(here, capsys):
  assert "must be a multiple of" in error_of(capsys, "--config.optimizer.accumulate=3")


def test_an_unknown_program(here, capsys):
  line = error_of(capsys, "--programs=training")
  assert line == "error: unknown program 'training'; did you mean 'train'?"


@needs_libtpu
@pytest.mark.tpu_aot
def test_a_sharded_step_is_compiled_for_tpus(capsys, tmp_path):
  path, mesh = tmp_path / "report.json", ("--config.mesh.data=1", "--config.mesh.fsdp=4")
  batch = "--config.train.batch_size=4"
  assert aot.main(command(f"--json={path}", batch, "--programs=train", *mesh)) == 0
  report = json.loads(path.read_text())
  assert report["chips"] == 4
  (train,) = report["programs"]
  assert any(one["axes"] == ["fsdp"] for one in train["collectives"])
  assert train["roofline"]["communication"]["fsdp"] > 0
