import json
import os
import pathlib
import subprocess
import sys

import pytest

from medflax.parallel import processes
from medflax.utils import UserError
from tests import nano

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
  ("environ", "cluster"),
  [
    ({}, False),
    ({"SLURM_STEP_NUM_TASKS": "1"}, False),
    ({"SLURM_STEP_NUM_TASKS": "2"}, True),
    ({"JAX_COORDINATOR_ADDRESS": "host:1"}, True),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_COORDINATOR_ADDRESS": "b"}, True),
  ],
)
def test_a_cluster_is_known_by_its_environment(environ, cluster):
  assert processes.in_cluster(environ) is cluster


def test_one_process_agrees_with_itself():
  assert processes.gather({"a": 1}) == [{"a": 1}]
  done = []
  processes.by_first(lambda: done.append(1))
  assert done == [1]
  with pytest.raises(UserError, match="no room"):
    processes.by_first(lambda: (_ for _ in ()).throw(UserError("no room")))


def test_a_process_that_cannot_meet_the_others_says_what_is_missing():
  with pytest.raises(UserError, match="needs JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES"):
    processes.join({"JAX_COORDINATOR_ADDRESS": "localhost:1"})


def test_what_is_wrong_with_a_process():
  peer = processes._Peer(beaten=0.0, moved=0.0)
  peer.hear([1, "node7", 4, ""], 10.0)
  assert not peer.fault(50.0, furthest=4, hang_seconds=60.0)
  assert peer.fault(56.0, 4, 60.0) == "was lost: no sign of life for 46 s, after step 4"
  for count in range(2, 12):  # it lives, but makes no step
    peer.hear([count, "node7", 4, ""], 10.0 * count)
  assert not peer.fault(120.0, furthest=4, hang_seconds=60.0)  # neither does any other
  assert peer.fault(120.0, furthest=5, hang_seconds=60.0) == "is stuck: 110 s after step 4"
  peer.hear([12, "node7", 5, ""], 120.0)
  assert not peer.fault(130.0, furthest=6, hang_seconds=60.0)
  peer.hear([0, "node7", 5, "ended: no such file"], 131.0)
  assert peer.fault(132.0, 6, 60.0) == "ended: no such file"
  peer.hear([0, "node7", 6, "done"], 133.0)
  assert not peer.fault(1e6, 9, 60.0)


def run(tmp_path, *flags):
  """benchmarks/multi_process.py on the nano run, evaluations included."""
  images = nano.write_images(tmp_path / "images")
  ppl = {"type": "perplexity", "every": 5, "task": "vqa", "num_shots": 0, "batch_size": 4}
  ask = {"type": "fewshot_vqa", "every": 0, "task": "vqa", "num_shots": (0, 1), "batch_size": 4}
  command = nano.command(
    images,
    tmp_path / "unused",
    train__num_steps="20",
    train__batch_size="4",
    checkpoint__every="10",
    evals=str({"ppl": ppl, "ask": ask | {"split": "test", "num_episodes": 6}}),
  )[3:-1]
  script = ROOT / "benchmarks" / "multi_process.py"
  done = subprocess.run(
    [sys.executable, script, f"--workdir={tmp_path / 'runs'}", *flags, "--", *command],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.processes
@pytest.mark.timeout(1800)
def test_losses_are_the_same_with_more_processes_and_runs_move_between_them(tmp_path):
  found = run(tmp_path, "--processes", "1", "2", "4")
  assert set(found["differences"]) == {"1", "2", "4", "1, then 2", "2, then 4", "4, then 1"}


@pytest.mark.processes
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("lost", [2, 0])  # 0: the one where all meet
def test_a_lost_process_ends_the_others_who_say_what_to_do(lost, tmp_path):
  found = run(tmp_path, "--processes", "4", f"--kill={lost}")["killed"]
  for line in found["said"]:
    assert "was lost" in line and "with the same command" in line
