"""Benchmarks as declarative records, each as a publication evaluates it; see docs/evaluation.md."""

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
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
from medflax.utils import UserError, pick

__all__ = ["FREE", "TASKS", "Task", "evaluation", "evaluations", "evaluator_name"]

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


def evaluation(
  name: str, root: str | os.PathLike, changes: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
  """The section of `config.evals` that runs a task, complete.

  Args:
    name: of the task in `TASKS`.
    root: the prepared folder of its data set.
    changes: see `Task.section`.

  Raises:
    UserError: if there is no such task.
  """
  return pick(TASKS, name, "task").section(name, root, changes)


def evaluations(
  names: Sequence[str],
  roots: Mapping[str, str],
  changes: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
  """Sections of `config.evals` for several tasks, by the names of their evaluators.

  Args:
    names: of the tasks.
    roots: the prepared folders by the names of their data sets.
    changes: see `Task.section`.

  Raises:
    UserError: if there is no such task, or a folder is missing or not needed.
  """
  needed = {name: pick(TASKS, name, "task").data for name in names}
  for name, data in needed.items():
    if data not in roots:
      raise UserError(f"task {name} is about {data}: give its prepared folder, --data {data}=DIR")
  for data in roots:
    pick(dict.fromkeys(needed.values()), data, "data set of these tasks")
  return {
    evaluator_name(name): evaluation(name, roots[data], changes) for name, data in needed.items()
  }


def evaluator_name(name: str) -> str:
  """What the evaluator of a task is called, of which a folder has to be named."""
  return name.replace("/", "-")
