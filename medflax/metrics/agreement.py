"""How far raters agree."""

from collections.abc import Sequence

import numpy as np


def krippendorff_alpha(ratings: Sequence[Sequence[float | int]]) -> float | None:
  """Krippendorff's alpha of numbers ("Content Analysis", 2004; interval metric).

  1 minus the squared differences within a unit over those of all ratings: 1 is agreement, 0 what
  chance gives. With n pairable ratings it is 1 - Σ_u n_u s²_u / (n s²).

  Args:
    ratings: the ratings of every unit, in any order; a unit with fewer than two says nothing.

  Returns:
    None if no unit has two ratings, or all are the same.
  """
  units = [np.asarray(unit, np.float64) for unit in ratings if len(unit) > 1]
  every = np.concatenate([*units, np.zeros(0)])
  if not len(every) or not np.ptp(every):
    return None
  within = sum(len(unit) * unit.var(ddof=1) for unit in units) / len(every)
  return float(1 - within / every.var(ddof=1))
