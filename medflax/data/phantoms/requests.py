"""What may be asked of generated data sets: the same of phantoms and of charts."""

from collections.abc import Iterable

from medflax.data.documents import shots_range
from medflax.data.manifest import SPLITS
from medflax.utils import UserError, nearest

EVAL_LENGTH = 2048  # episodes of "val" and of "test", where no number is asked for


def check_request(
  name: str, tasks: Iterable[str], task: str, split: str, num_shots: int | tuple[int, int]
) -> tuple[int, int]:
  """The fewest and the most shots that are asked for, of the data set `name`.

  Raises:
    UserError: for an unknown task or split, or a bad `num_shots`.
  """
  if task not in tasks:
    raise UserError(f"{name} have no task {task!r}{nearest(task, tasks)}")
  if split not in SPLITS:
    raise UserError(f"{name} have no split {split!r}{nearest(split, SPLITS)}")
  return shots_range(num_shots)
