"""Runs of a study on machines that are not this one: a SLURM cluster, or clouds by SkyPilot."""

import argparse
import json
import pathlib
import re
import shlex
import subprocess
from collections.abc import Sequence
from types import ModuleType

from experiments.study import Run, told
from medflax.utils import UserError, write_atomic

SUBMITTED = "submitted.json"  # of SLURM: the number of every run's last job


def add_slurm_flags(parser: argparse.ArgumentParser) -> None:
  """Those of launch/slurm.py, and how many jobs may run at once."""
  _slurm().add_flags(parser)
  parser.add_argument("--jobs", "-j", type=int, default=256, help="of the array, at once")
  parser.set_defaults(output="")  # in the study's folder


def describe_for_slurm(run: Run, flags: argparse.Namespace) -> str:
  """What one job of the array does."""
  return f"srun {told(run.command)}"


def submit_to_slurm(runs: Sequence[Run], folder: pathlib.Path, flags: argparse.Namespace) -> int:
  """Submits the runs as one array, but for those whose job is still in the queue; returns 0.

  Raises:
    UserError: if SLURM does not take them.
  """
  slurm = _slurm()
  path = folder / SUBMITTED
  jobs = json.loads(path.read_text()) if path.exists() else {}
  queue = _queue() if jobs else set()
  new = [run for run in runs if jobs.get(run.name) not in queue]
  for run in runs:
    if run not in new:
      print(f"{run.name}: job {jobs[run.name]} is in the queue")
  if not new:
    return 0
  flags.output = flags.output or str(folder / "slurm")
  more = dict(slurm_array_parallelism=flags.jobs)
  try:
    executor = slurm.make_executor(flags, f"medflax-{folder.name}", **more)
    with executor.batch():
      arguments = [[*run.arguments, f"--workdir={run.workdir}"] for run in new]
      submitted = [executor.submit(slurm.Run(), words) for words in arguments]
  except RuntimeError as error:
    raise UserError(f"SLURM took no job: {str(error).strip().splitlines()[-1]}") from None
  numbers = {run.name: job.job_id for run, job in zip(new, submitted, strict=True)}
  write_atomic(path, json.dumps(jobs | numbers, indent=1) + "\n")
  for name, number in numbers.items():
    print(f"{name}: job {number}")
  print(f"what they say is in {flags.output}; launch again to see how far they are")
  return 0


def _slurm() -> ModuleType:
  try:
    from launch import slurm
  except ModuleNotFoundError as error:
    raise UserError(f"{error.name} is not installed: pip install 'medflax[slurm]'") from None
  return slurm


def _queue() -> set[str]:
  """The numbers of the user's jobs that wait or run, as submitit writes them: `7` or `7_0`."""
  command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError) as error:
    raise UserError(f"cannot tell which jobs are in the queue: squeue: {error}") from None
  return set(done.stdout.split())


def add_skypilot_flags(parser: argparse.ArgumentParser) -> None:
  """Which of launch/*.yaml, and where the workdirs go."""
  parser.add_argument("--yaml", default="launch/gpu_nodes.yaml", help="or launch/tpu_slice.yaml")
  parser.add_argument("--bucket", required=True, help="gs://… or s3://…, mounted at /runs")


def describe_for_skypilot(run: Run, flags: argparse.Namespace) -> str:
  """The command line that launches a managed job."""
  return shlex.join(_sky(run, flags))


def launch_by_skypilot(runs: Sequence[Run], folder: pathlib.Path, flags: argparse.Namespace) -> int:
  """Launches a managed job for each run; returns how many were not taken.

  Whether a run is finished is told by the workdirs of `folder`: let it be the bucket's, mounted or
  copied here.

  Raises:
    UserError: if SkyPilot is not there.
  """
  failed = 0
  for run in runs:
    try:
      status = subprocess.run(_sky(run, flags), check=False).returncode
    except FileNotFoundError:
      raise UserError("sky is not installed: pip install skypilot") from None
    failed += bool(status)
    print(f"{run.name}: {'launched' if not status else f'sky ended with status {status}'}")
  return failed


def _sky(run: Run, flags: argparse.Namespace) -> list[str]:
  place = f"{run.workdir.parent.name}/{run.name}"
  values = {"ARGUMENTS": shlex.join(run.arguments), "BUCKET": flags.bucket, "RUN": place}
  given = [word for name, text in values.items() for word in ("--env", f"{name}={text}")]
  name = re.sub(r"[^a-z0-9]+", "-", place.lower()).strip("-")
  return ["sky", "jobs", "launch", "--yes", "--detach-run", "--name", name, *given, flags.yaml]
