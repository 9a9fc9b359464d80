import json
import shutil

import numpy as np
import pytest

from benchmarks import multi_process
from medflax import workdir as workdir_lib
from medflax.parallel import processes
from medflax.utils import UserError
from tests import nano


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
  assert not peer.fault(50.0, furthest=4, hang_seconds=60.0, silent_seconds=45.0)
  assert peer.fault(56.0, 4, 60.0, 45.0) == "was lost: no sign of life for 46 s, after step 4"
  for count in range(2, 12):  # it lives, but makes no step
    peer.hear([count, "node7", 4, ""], 10.0 * count)
  assert not peer.fault(120.0, 4, 60.0, 45.0)  # neither does any other
  assert peer.fault(120.0, 5, 60.0, 45.0) == "is stuck: 110 s after step 4"
  peer.hear([12, "node7", 5, ""], 120.0)
  assert not peer.fault(130.0, 6, 60.0, 45.0)
  peer.hear([0, "node7", 5, "ended: no such file"], 131.0)
  assert peer.fault(132.0, 6, 60.0, 45.0) == "ended: no such file"
  peer.hear([0, "node7", 6, "done"], 133.0)
  assert not peer.fault(1e6, 9, 60.0, 45.0)


def command(images, **more):
  """A run of twenty steps that up to four processes may make."""
  usual = dict(train__num_steps="20", train__batch_size="4", train__log_every="1")
  usual |= dict(data__shards="4", checkpoint__every="5", checkpoint__keep="4")
  return nano.command(images, "", **usual | more)[3:-1]


def evaluated(workdir, name):
  """Values of an evaluation, and its samples in some order."""
  path = workdir_lib.results_path(workdir, name, 20)
  values = {k: x["value"] for k, x in json.loads(path.read_text())["metrics"].items()}
  samples = path.with_name("samples.jsonl")
  return values, sorted(samples.read_text().splitlines()) if samples.exists() else []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_any_number_of_processes_makes_the_same_run_and_goes_on_with_it(tmp_path):
  """In one test, since the runs of the first part are what the others compare with."""
  images, runs = nano.write_images(tmp_path / "images"), {n: tmp_path / str(n) for n in (1, 2, 4)}
  ask = {"type": "fewshot_vqa", "every": 0, "task": "vqa", "split": "test", "batch_size": 4}
  ppl = {"type": "perplexity", "every": 0, "task": "vqa", "num_shots": 0, "batch_size": 4}
  evals = str({"ask": ask | {"num_shots": (0, 1), "num_episodes": 6}, "ppl": ppl})
  for count, more in {1: {"evals": evals}, 2: {"evals": evals}, 4: {}}.items():
    multi_process.train(command(images, **more), runs[count], count)
  wanted = multi_process.losses(runs[1])
  assert len(wanted) == 20
  for count in (2, 4):
    losses = multi_process.losses(runs[count])
    np.testing.assert_allclose(losses, wanted, rtol=0, atol=1e-5, err_msg=str(count))
  assert evaluated(runs[2], "ppl")[0] == pytest.approx(evaluated(runs[1], "ppl")[0], rel=1e-6)
  assert evaluated(runs[2], "ask") == evaluated(runs[1], "ask")
  assert len(evaluated(runs[1], "ask")[1]) > 20

  for before, after in ((1, 4), (4, 2), (2, 1)):  # from step 10
    workdir = tmp_path / f"{before}_to_{after}"
    shutil.copytree(runs[before], workdir)
    for step in (15, 20):
      shutil.rmtree(workdir / "checkpoints" / str(step))
    other = command(images, checkpoint__allow_config_change="true")  # it is not evaluated again
    multi_process.train(other, workdir, after)
    losses = multi_process.losses(workdir)
    np.testing.assert_allclose(losses, wanted, rtol=0, atol=1e-5, err_msg=workdir.name)

  workdir = tmp_path / "killed"
  for lost in (2, 0):  # 0: the one where all meet
    found = multi_process.kill(command(images), workdir, 4, lost)
    assert found["seconds"] < 60 and all(found["statuses"]), found
    for line in found["said"]:
      assert "was lost" in line and "with the same command" in line
  multi_process.train(command(images), workdir, 4)
  assert multi_process.same_bits(workdir, runs[4])
