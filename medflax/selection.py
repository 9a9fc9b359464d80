"""The best step of a run by a metric of its evaluations, and the step at which training ends early.

Both are told by the results on disk alone, so that a run that was killed decides as it would have.
"""

import json
import math
import pathlib
from collections.abc import Mapping

from medflax.utils import UserError, nearest

SIGNS = {"min": 1.0, "max": -1.0}  # of `config.best.mode`: what makes less the better


def read_values(workdir: pathlib.Path, metric: str) -> dict[int, float]:
  """The metric at every step that it was measured at, by rising step.

  Args:
    metric: as in results.json, beginning with its evaluator's name: `perplexity/nll`.

  Raises:
    UserError: if the evaluator does not measure it.
  """
  values = {}
  for path in (workdir / "evals" / evaluator(metric)).glob("*/results.json"):
    measured = json.loads(path.read_text())["metrics"]
    if metric not in measured:
      hint = nearest(metric, measured) or f"; there are {', '.join(measured)}"
      raise UserError(f"config.best.metric: {path} has no metric {metric!r}{hint}")
    values[int(path.parent.name)] = measured[metric]["value"]
  return dict(sorted(values.items()))


def evaluator(metric: str) -> str:
  """The name in `config.evals` of the evaluator that measures it."""
  return metric.partition("/")[0]


def best_step(values: Mapping[int, float], mode: str) -> int | None:
  """The step of the best value, the first of equal ones; None: nothing was measured."""
  return min(values, key=lambda step: (SIGNS[mode] * values[step], step), default=None)


def last_step(values: Mapping[int, float], mode: str, patience: int) -> int | None:
  """The step at which `patience` values in a row were no better than the best before; else None.

  With a patience of 0 there is none.
  """
  best, waited = math.inf, 0
  for step in sorted(values):
    value = SIGNS[mode] * values[step]
    waited = 0 if value < best else waited + 1
    best = min(best, value)
    if patience and waited == patience:
      return step
  return None
