"""Launching: what is started, waited for, refused, and found again after a kill."""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import stat
import subprocess
import sys
import time
import types

import pytest
import yaml

from experiments import clusters, launch
from experiments.study import FINISHED, RUNNING, UNFINISHED, load
from medflax.workdir import locked, opened
from tests.experiments.conftest import FAKE, pids_in

LAUNCH = (
  "import sys; from experiments import launch, study; "
  f"study.MAIN = {FAKE!r}; sys.exit(launch.main(sys.argv[1:]))"
)


def run(study, tmp_path, *argv):
  return launch.main([str(study), f"--workdir={tmp_path / 'out'}", *argv])


def runs_of(study, tmp_path):
  return load(str(study), tmp_path / "out").runs


def starts(runs):
  paths = [run.workdir / "started.txt" for run in runs]
  return [path.read_text().count("start") if path.exists() else 0 for path in paths]


@pytest.mark.usefixtures("fake_runs")
def test_missing_runs_are_launched_and_finished_ones_left_alone(study, tmp_path, capsys):
  assert run(study, tmp_path, "--only=seed=0", "--jobs=2") == 0
  out = capsys.readouterr().out
  assert "rules, 2 runs in " in out and ": 2 missing" in out
  assert "[2/2] media_rule=" in out and out.count("finished after") == 2
  runs = runs_of(study, tmp_path)
  assert starts(runs) == [1, 1, 0, 0]
  assert run(study, tmp_path) == 0
  assert ": 2 finished, 2 missing" in capsys.readouterr().out
  assert starts(runs) == [1, 1, 1, 1]
  assert run(study, tmp_path) == 0
  assert ": 4 finished\n" in capsys.readouterr().out
  assert starts(runs) == [1, 1, 1, 1]


@pytest.mark.usefixtures("fake_runs")
def test_a_failing_run_is_told_and_tried_again(study, tmp_path, capsys):
  study.write_text(study.read_text().replace("data.media_rule", "train.batch_size"))
  text = study.read_text().replace('"prev_image", "next_image"', "12, 13")
  study.write_text(text.replace("media_rule=prev_image", "batch_size=12"))
  assert run(study, tmp_path, "--only=seed=0") == 1
  out = capsys.readouterr().out
  log = tmp_path / "out/logs/batch_size=13,seed=0.log"
  assert f"batch_size=13,seed=0: not finished: error: 13 is not liked ({log})" in out
  assert "1 of 2 runs have not finished; launch again" in out
  assert run(study, tmp_path, "--only=seed=0") == 1
  assert "1 finished, 1 unfinished" in capsys.readouterr().out
  assert starts(runs_of(study, tmp_path)) == [1, 2, 0, 0]


@pytest.mark.usefixtures("fake_runs")
def test_runs_and_launchers_of_one_folder_are_refused(study, tmp_path, capsys):
  first = runs_of(study, tmp_path)[0]
  with opened(first.workdir, first.config, {}):
    assert run(study, tmp_path, "--only=prev.*seed=0") == 0  # it is running: nothing to start
    assert ": 1 running\n" in capsys.readouterr().out
    done = subprocess.run(first.command, capture_output=True, text=True, check=False)
    assert "another process is training here" in done.stderr and starts([first]) == [0]
  with locked(tmp_path / "out", ""):
    assert run(study, tmp_path) == 2
  assert capsys.readouterr().err.endswith("another launcher is at work here\n")
  assert run(study, tmp_path, "--config.train.num_steps=7") == 2
  assert "has another config (train.num_steps: 1000 -> 7)" in capsys.readouterr().err
  (tmp_path / "out" / first.name.replace("prev", "next")).mkdir()
  (tmp_path / "out" / first.name.replace("prev", "next") / "thesis.tex").write_text("work")
  assert run(study, tmp_path) == 2
  assert "is not a run (no config.json, but thesis.tex)" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("argument", "complaint"),
  [
    ("--launcher=moon", "unknown --launcher 'moon'; known: local, skypilot, slurm"),
    ("--only=(", "--only '(' is no regular expression"),
    ("--only=seed=7", "--only 'seed=7': no run's name has that"),
    ("--jobs=1000", "--jobs=1000: there are only"),
    ("--config.train.steps=7", "run media_rule=prev_image: unknown field of config.train"),
    ("--nodes=2", "unrecognized arguments: --nodes=2"),
  ],
)
def test_mistakes_take_one_line_and_start_nothing(study, tmp_path, capsys, argument, complaint):
  assert run(study, tmp_path, argument) == 2
  err = capsys.readouterr().err
  assert err.startswith("error: ") and complaint in err and err.count("\n") == 1
  assert not list(tmp_path.glob("out/*/*"))


def test_a_dry_run_prints_commands(study, tmp_path, capsys):
  assert run(study, tmp_path, "--dry_run", "--config.data.max_tokens=64") == 0
  _, *lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4 and not (tmp_path / "out").exists()
  assert shlex.split(lines[0]) == [
    *("python", "-m", "medflax.main", "--config=configs/flamingo_med.py", "--config.seed=0"),
    *("--config.data.max_tokens=64", "--config.data.media_rule=prev_image"),
    f"--workdir={tmp_path}/out/media_rule=prev_image,seed=0",
  ]


def start(study, tmp_path, slow, *argv):
  environ = os.environ | {"FAKE_SLOW": slow}
  command = [sys.executable, "-c", LAUNCH, str(study), f"--workdir={tmp_path / 'out'}", *argv]
  return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)


def wait_for(condition):
  for _ in range(600):
    if condition():
      return
    time.sleep(0.1)
  pytest.fail("nothing happened for a minute")


@pytest.mark.usefixtures("fake_runs")
def test_a_sweep_that_is_killed_goes_on_without_repeating_or_losing(study, tmp_path):
  runs = runs_of(study, tmp_path)
  process = start(study, tmp_path, "next_image,seed=0")
  wait_for(lambda: (runs[1].workdir / "progress.txt").exists())
  process.kill()
  process.communicate()
  assert runs[0].state() == FINISHED and runs[1].state() == RUNNING
  for pid in pids_in(tmp_path / "out"):
    os.kill(pid, signal.SIGKILL)
  wait_for(lambda: runs[1].state() == UNFINISHED)
  progress = int((runs[1].workdir / "progress.txt").read_text())
  out = start(study, tmp_path, "never").communicate(timeout=200)[0]
  assert ": 1 finished, 1 unfinished, 2 missing" in out and progress == 1
  assert starts(runs) == [1, 2, 1, 1]
  assert {run.state() for run in runs} == {FINISHED}


@pytest.mark.usefixtures("fake_runs")
def test_an_interrupt_ends_the_runs(study, tmp_path):
  runs = runs_of(study, tmp_path)
  process = start(study, tmp_path, "prev_image,seed=0")
  wait_for(lambda: (runs[0].workdir / "started.txt").exists())
  process.send_signal(signal.SIGINT)
  out = process.communicate(timeout=200)[0]
  assert process.returncode == 1
  assert "stopped by SIGINT; waiting for 1 to save" in out
  assert "4 of 4 runs have not finished" in out
  assert runs[0].state() == UNFINISHED and not pids_in(tmp_path / "out")


def test_a_run_on_clouds_gets_its_arguments(study, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
  for name, text in (("sky", 'printf "%s\\n" "$@" >> "$0.log"'), ("python", 'printf "%s|" "$@"')):
    (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / name).chmod(stat.S_IRWXU)
  spaced = "--config.prompt.question=Q: {question} 'A'"
  asked = ("--launcher=skypilot", "--bucket=gs://b", "--only=next.*seed=1", spaced)
  assert run(study, tmp_path, *asked) == 0
  words = (tmp_path / "sky.log").read_text().splitlines()
  name = "out-media-rule-next-image-seed-1"
  assert words[:6] == ["jobs", "launch", "--yes", "--detach-run", "--name", name]
  assert words[-1] == "launch/gpu_nodes.yaml"
  values = dict(word.split("=", 1) for word in words[7:-1:2])
  assert values["RUN"] == "out/media_rule=next_image,seed=1" and values["BUCKET"] == "gs://b"
  for file in ("launch/gpu_nodes.yaml", "launch/tpu_slice.yaml"):
    script = yaml.safe_load(pathlib.Path(file).read_text())["run"]
    done = subprocess.run(["bash", "-c", script], env=os.environ | values, capture_output=True)
    given = done.stdout.decode().split("|")[:-1]
    assert given[:2] == ["-m", "medflax.main"] and spaced in given
    assert given[-1] == "--workdir=/runs/out/media_rule=next_image,seed=1"


@pytest.mark.usefixtures("fake_runs")
def test_slurm_gets_one_array_and_no_run_twice(study, tmp_path, capsys, monkeypatch):
  seen = {}

  class Executor:
    def batch(self):
      return contextlib.nullcontext()

    def submit(self, function, words):
      seen.setdefault("words", []).append(words)
      return types.SimpleNamespace(job_id=f"7_{len(seen['words']) - 1}")

  def make(flags, name, **more):
    seen.update(flags=flags, name=name, more=more)
    return Executor()

  def add_flags(parser):
    parser.add_argument("--gpus", type=int)
    parser.add_argument("--output")

  # launch/slurm.py needs submitit, and that a cluster: test_tiny.py has both if they are there.
  slurm = types.SimpleNamespace(add_flags=add_flags, make_executor=make, Run=lambda: None)
  monkeypatch.setattr(clusters, "_slurm", lambda: slurm)
  asked = ("--launcher=slurm", "--only=seed=0", "--gpus=4", "--jobs=3")
  assert run(study, tmp_path, *asked) == 0
  assert "media_rule=prev_image,seed=0: job 7_0" in capsys.readouterr().out
  assert (seen["name"], seen["flags"].gpus) == ("medflax-out", 4)
  assert seen["more"] == {"slurm_array_parallelism": 3}
  assert seen["words"] == [
    [*run.arguments, f"--workdir={run.workdir}"] for run in runs_of(study, tmp_path)[:2]
  ]
  submitted = json.loads((tmp_path / "out/submitted.json").read_text())
  assert submitted == {"media_rule=prev_image,seed=0": "7_0", "media_rule=next_image,seed=0": "7_1"}
  (tmp_path / "squeue").write_text("#!/bin/sh\necho 7_1\necho 9\n")
  (tmp_path / "squeue").chmod(stat.S_IRWXU)
  monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
  assert run(study, tmp_path, "--launcher=slurm") == 0
  out = capsys.readouterr().out
  assert "media_rule=next_image,seed=0: job 7_1 is in the queue" in out
  assert len(seen["words"]) == 2 + 3
