"""The files of launch/: what they ask of SLURM and SkyPilot, and the command that they end in."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from medflax import config as config_lib
from medflax.main import parse_flags
from medflax.parallel import processes

ROOT = pathlib.Path(__file__).resolve().parent.parent
YAMLS = [ROOT / "launch" / name for name in ("gpu_nodes.yaml", "tpu_slice.yaml")]
COMMAND = ["--config=configs/flamingo_med.py", "--config.evals={}", "--workdir=runs/mine"]


def program(path, *lines):
  """A shell script at `path`."""
  path.write_text("\n".join(("#!/bin/sh", *lines, "")))
  path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  """`slurm(*argv)` → what launch/slurm.py gives to sbatch, and the folder of submitit's files."""
  pytest.importorskip("submitit", reason="an extra")
  from launch import slurm as module

  (tmp_path / "bin").mkdir()
  program(tmp_path / "bin/srun")
  program(tmp_path / "bin/sbatch", f'cp "$1" "{tmp_path}/job.sh"', "echo Submitted batch job 7")
  monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

  def submit(*argv):
    folder = tmp_path / "slurm"
    monkeypatch.setattr(sys, "argv", ["slurm.py", f"--output={folder}", *argv])
    assert module.main() == 0
    return (tmp_path / "job.sh").read_text(), folder

  return submit


def test_slurm_is_asked_for_a_process_for_each_gpu(slurm, capsys):
  sizes = ["--nodes=2", "--gpus=8", "--hours=24", "--memory=32"]
  text, folder = slurm(*sizes, "--partition=big", "--set", "account=me", "--", *COMMAND)
  assert capsys.readouterr().out == f"job 7; its output is in {folder}\n"
  options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", text, re.MULTILINE))
  wanted = {"nodes": "2", "ntasks-per-node": "8", "gpus-per-node": "8", "cpus-per-task": "8"}
  wanted |= {"mem": "256GB", "time": "1440", "partition": "big", "account": "me"}
  assert {name: options.get(name) for name in wanted} == wanted
  assert "srun " in text and "submitit.core._submit" in text


def test_slurm_runs_the_command_and_again_if_it_is_cut_short(slurm, monkeypatch):
  _, folder = slurm("--", *COMMAND)
  from submitit.core.utils import DelayedSubmission

  from launch import slurm as module

  (pickled,) = folder.glob("7_submitted.pkl")
  job = DelayedSubmission.load(pickled)
  assert job._timeout_countdown == 1000
  ran = []
  monkeypatch.setattr(module, "train", lambda argv: ran.append(list(argv)) or 2)
  for submitted in (job, job.function.checkpoint(*job.args)):
    with pytest.raises(SystemExit) as ended:
      module.Run()(*submitted.args)
    assert ended.value.code == 2  # so that SLURM's record tells that it failed
  assert ran == [COMMAND, COMMAND]


def test_slurm_refuses_what_could_not_be_resumed(slurm, capsys):
  with pytest.raises(SystemExit):
    slurm("--", COMMAND[0])
  assert "needs --workdir, or it could not be resumed" in capsys.readouterr().err


@pytest.fixture(params=YAMLS, ids=lambda path: path.stem)
def task(request):
  return yaml.safe_load(request.param.read_text())


def run_lines(task, tmp_path):
  """The arguments and the variables that `python` gets where `run` is run on the second node."""
  program(tmp_path / "python", 'printf "%s\\n" "$@"', "echo --", "env")
  nodes = {"NODE_IPS": "10.0.0.1\n10.0.0.2", "NUM_NODES": "2", "NODE_RANK": "1"}
  envs = {name: value or "gs://b" for name, value in task["envs"].items()}
  envs |= {f"SKYPILOT_{name}": value for name, value in nodes.items()}
  envs["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
  command = ["bash", "-euc", task["run"]]  # -u: a variable that nobody sets is an error
  done = subprocess.run(command, env=envs, capture_output=True, text=True, check=True)
  words, _, said = done.stdout.partition("\n--\n")
  return words.splitlines(), dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def test_skypilot_runs_a_command_that_there_is(task, tmp_path):
  words, _ = run_lines(task, tmp_path)
  assert words[:2] == ["-m", "medflax.main"] and words[-1] == "--workdir=/runs/mine"
  flags, overrides = parse_flags(words[2:])
  path, _, arg = flags.config.partition(":")
  config_lib.load_config(f"{ROOT / path}:{arg}", overrides)


def test_skypilot_installs_and_mounts_what_there_is(task):
  (extra,) = re.findall(r"pip install -e \.\[(\w+)\]", task["setup"])
  assert f'"{extra}": [' in (ROOT / "setup.py").read_text()
  named = set(re.findall(r"\$\{(\w+)\}", str(task["file_mounts"])))
  assert named == {"BUCKET"} and named <= task["envs"].keys()
  assert list(task["file_mounts"]) == ["/runs"]  # where `run` has its workdir


def test_nodes_of_gpus_find_each_other(tmp_path):
  _, variables = run_lines(yaml.safe_load(YAMLS[0].read_text()), tmp_path)
  assert processes.in_cluster(variables)
  wanted = {"COORDINATOR_ADDRESS": "10.0.0.1:8476", "NUM_PROCESSES": "2", "PROCESS_ID": "1"}
  assert {name: variables[f"JAX_{name}"] for name in wanted} == wanted
