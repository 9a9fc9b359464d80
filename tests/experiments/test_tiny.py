"""The study `tiny`, for real: launched, killed, launched again, collected; and by SLURM."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from experiments.study import FINISHED, load
from tests.experiments.conftest import pids_in

ROOT = pathlib.Path(__file__).parents[2]
STUDY = "experiments/studies/tiny.py"


def script(name, folder, *argv, **kwargs):
  command = [sys.executable, f"experiments/{name}.py", STUDY, f"--workdir={folder}", *argv]
  return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **kwargs)


def output(process):
  out = process.communicate()[0]
  assert process.returncode == 0, out
  return out


def wait_for(condition):
  while not condition():  # the test's timeout ends this
    time.sleep(0.1)


def steps(run):
  return sorted(int(p.name) for p in run.workdir.glob("checkpoints/*") if p.name.isdigit())


def check_collected(folder, runs):
  table = output(script("collect", folder))
  assert "## finding/0shot/exact_match" in table and "Missing" not in table
  assert "| peft=lora | " in table and (folder / "collected/report.html").exists()
  assert all(run.state() == FINISHED for run in runs)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_launched_killed_launched_again_and_collected(tmp_path):
  runs = load(str(ROOT / STUDY), tmp_path).runs
  with script("launch", tmp_path, "--jobs=1") as process:
    try:
      wait_for(lambda: steps(runs[0]))
    finally:
      process.kill()
      for pid in pids_in(tmp_path):
        os.kill(pid, signal.SIGKILL)
  kept = steps(runs[0])
  out = output(script("launch", tmp_path))
  assert ": 1 unfinished, 1 missing" in out and out.count("finished after") == 2
  log = (tmp_path / "logs" / f"{runs[0].name}.log").read_text()
  assert kept and "resumed from step" in log
  check_collected(tmp_path, runs)
  before = {p: p.stat().st_mtime_ns for run in runs for p in run.workdir.rglob("*") if p.is_file()}
  assert ": 2 finished\n" in output(script("launch", tmp_path))
  assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
  not shutil.which("sbatch")
  or bool(subprocess.run(["sinfo"], capture_output=True, check=False).returncode),
  reason="needs a SLURM cluster",
)
def test_by_slurm(tmp_path):
  pytest.importorskip("submitit")
  runs = load(str(ROOT / STUDY), tmp_path).runs
  flags = ("--launcher=slurm", "--gpus=0", "--cpus=1", "--memory=4", "--hours=0.5")
  assert output(script("launch", tmp_path, *flags)).count(": job ") == 2
  again = output(script("launch", tmp_path, *flags))
  assert not re.search(r": job \S+$", again, re.MULTILINE)  # waiting or running: not once more
  wait_for(lambda: all(run.state() == FINISHED for run in runs))
  check_collected(tmp_path, runs)
