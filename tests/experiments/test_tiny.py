"""The study `tiny`, for real: launched, killed, launched again, collected; and by SLURM."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from experiments.study import FINISHED, load

ROOT = pathlib.Path(__file__).parents[2]
STUDY = "experiments/studies/tiny.py"


def script(name, folder, *argv, **kwargs):
  command = [sys.executable, f"experiments/{name}.py", STUDY, f"--workdir={folder}", *argv]
  return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **kwargs)


def output(process):
  out = process.communicate(timeout=280)[0]
  assert process.returncode == 0, out
  return out


def wait_for(condition, seconds=240):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "nothing happened"
    time.sleep(0.1)


def steps(run):
  return sorted(int(p.name) for p in run.workdir.glob("checkpoints/*") if p.name.isdigit())


def check_collected(folder, runs):
  table = output(script("collect", folder))
  assert "## finding/0shot/exact_match" in table and "Missing" not in table
  assert "| peft=lora | " in table and (folder / "collected/report.html").exists()
  assert all(run.state() == FINISHED for run in runs)


@pytest.mark.slow
def test_launched_killed_launched_again_and_collected(tmp_path):
  runs = load(str(ROOT / STUDY), tmp_path).runs
  process = script("launch", tmp_path, "--jobs=1")
  wait_for(lambda: steps(runs[0]))
  process.kill()
  process.communicate()
  children = subprocess.run(["pgrep", "-f", f"--workdir={tmp_path}/"], stdout=subprocess.PIPE)
  for pid in map(int, children.stdout.split()):
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
  assert "is in the queue" in output(script("launch", tmp_path, *flags))
  wait_for(lambda: all(run.state() == FINISHED for run in runs))
  check_collected(tmp_path, runs)
