"""Benchmarks as declarative records, each as a publication evaluates it; see docs/evaluation.md."""

import os
from typing import Any

from medflax.tasks import (
  captions,
  mirp,
  path_vqa,
  pmc_vqa,
  radbench,
  slake,
  usmle,
  vqa_med,
  vqa_rad,
)
from medflax.tasks.base import FREE, Task
from medflax.utils import pick

__all__ = ["FREE", "TASKS", "Task", "evaluation", "evaluator_name"]

# "benchmark/protocol" → the task. A new one is one more record here or in a file beside.
TASKS: dict[str, Task] = {
  **vqa_rad.TASKS,
  **slake.TASKS,
  **path_vqa.TASKS,
  **pmc_vqa.TASKS,
  **vqa_med.TASKS,
  **usmle.TASKS,
  **radbench.TASKS,
  **mirp.TASKS,
  **captions.TASKS,
}


def evaluation(name: str, root: str | os.PathLike) -> dict[str, Any]:
  """The section of `config.evals` that runs a task, complete.

  Args:
    name: of the task in `TASKS`.
    root: the prepared folder of its data set.

  Raises:
    UserError: if there is no such task.
  """
  return pick(TASKS, name, "task").section(name, root)


def evaluator_name(name: str) -> str:
  """What the evaluator of a task is called, of which a folder has to be named."""
  return name.replace("/", "-")
