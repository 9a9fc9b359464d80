r"""Submits a run to SLURM by submitit (`pip install 'medflax[slurm]'`), a process for each GPU.

python launch/slurm.py --nodes 2 --gpus 8 --hours 24 --partition PARTITION -- \
  --config=configs/flamingo_med.py:variant=9b --workdir=/shared/runs/mine

The processes find each other by SLURM's variables. A job that SLURM cuts short is put in the queue
again and goes on from its last save. The workdir must be on a file system that all nodes share.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import submitit

from medflax.main import main as train


class Run(submitit.helpers.Checkpointable):
  """One process of the run; being `Checkpointable`, it is submitted again if it is cut short."""

  def __call__(self, command: Sequence[str]) -> None:
    if status := train(command):
      raise SystemExit(status)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """What a job asks SLURM for."""
  parser.add_argument("--nodes", type=int, default=1)
  parser.add_argument("--gpus", type=int, default=1, help="of a node; 0: one process without")
  parser.add_argument("--cpus", type=int, default=8, help="for each process")
  parser.add_argument("--memory", type=int, default=64, help="GiB for each process")
  parser.add_argument("--hours", type=float, default=24.0)
  parser.add_argument("--partition", default="")
  parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more of sbatch's")
  parser.add_argument("--output", default="slurm", help="the folder of what the processes say")
  parser.add_argument("--cluster", default="slurm", help="debug: run it here, to try it out")


def make_executor(flags: argparse.Namespace, name: str, **more: object) -> submitit.AutoExecutor:
  """What jobs of this name are submitted with; `more` are submitit's parameters."""
  executor = submitit.AutoExecutor(
    folder=pathlib.Path(flags.output),
    cluster=flags.cluster,
    slurm_max_num_timeout=1000,  # by itself submitit gives up after the third time limit
  )
  processes = max(1, flags.gpus)
  executor.update_parameters(
    name=name,
    nodes=flags.nodes,
    tasks_per_node=processes,
    cpus_per_task=flags.cpus,
    mem_gb=flags.memory * processes,
    timeout_min=int(60 * flags.hours),
    slurm_additional_parameters=dict(pair.split("=", 1) for pair in flags.set),
    **({"gpus_per_node": flags.gpus} if flags.gpus else {}),
    **({"slurm_partition": flags.partition} if flags.partition else {}),
    **more,
  )
  return executor


def main() -> int:
  """Prints the job's number and where its output is."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add_flags(parser)
  parser.add_argument("command", nargs="+", help="of python -m medflax.main")
  flags = parser.parse_args()
  if not any(argument.startswith("--workdir") for argument in flags.command):
    parser.error("the command needs --workdir, or it could not be resumed")
  job = make_executor(flags, "medflax").submit(Run(), flags.command)
  print(f"job {job.job_id}; its output is in {flags.output}")
  if flags.cluster == "debug":
    job.result()
  return 0


if __name__ == "__main__":
  sys.exit(main())
