"""MIRP (Wolf et al. 2025): where structures lie, in all its research questions."""

from medflax.data.builders.mirp import MIRP
from medflax.tasks.base import Task

TASKS = {
  f"mirp/{task}": Task(
    data="mirp",
    source="Wolf et al. 2025, Your other left!: accuracy of yes and no, which are also ranked "
    "by likelihood here, so that no answer goes unread",
    task=task,
    metrics=("exact_match", "likelihood_accuracy", "auroc"),
    candidates="choices",
    slice_by=("orientation",),
  )
  for task in MIRP.tasks
}
