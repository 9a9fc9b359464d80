"""Tables as models write them out in one line, and how alike two are (DePlot, Liu et al. 2023).

DePlot separates cells by ` | ` and rows by `<0x0A>`, the byte of a line break.
"""

import itertools
import math

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

Row = tuple[str, ...]
BREAK = "<0x0A>"
TEXT_TOLERANCE, NUMBER_TOLERANCE = 0.5, 0.5  # the paper's τ and θ


def parse_table(text: str) -> list[Row]:
  """The rows of a linearised table, cells stripped; line breaks of any kind end a row.

  Whatever is there is kept: rows may differ in length, cells may be empty. Rows without anything
  in them are left out.
  """
  lines = text.replace(BREAK, "\n").splitlines()
  rows = (tuple(cell.strip() for cell in line.split("|")) for line in lines)
  return [row for row in rows if any(row)]


def cell_accuracy(prediction: str, reference: str) -> float:
  """The share of the reference's cells that stand at their place; more rows than it has cost."""
  ours, theirs = parse_table(prediction), parse_table(reference)
  pairs = [
    pair
    for row in itertools.zip_longest(ours, theirs, fillvalue=())
    for pair in itertools.zip_longest(*row)
  ]
  return sum(a == b for a, b in pairs) / len(pairs) if pairs else 1.0


def rms_f1(prediction: str, reference: str) -> float:
  """The F1 of DePlot's Relative Mapping Similarity (section 3.2).

  A table is the set of its entries (row's header, column's header) → value. Entries are matched
  so that their headers differ least; a match counts as much as its headers are alike times as
  much as its values are, numbers by relative distance, other values by edit distance.
  """
  ours, theirs = _entries(prediction), _entries(reference)
  if not ours or not theirs:  # headers at most, or no table at all
    return float(parse_table(prediction) == parse_table(reference))
  heads = np.array([[_alike(p, t) for t, _ in theirs] for p, _ in ours])
  rows, columns = linear_sum_assignment(-heads)
  matched = zip(rows.tolist(), columns.tolist(), strict=True)
  total = sum(heads[i, j] * _same_value(ours[i][1], theirs[j][1]) for i, j in matched)
  return float(2 * total / (len(ours) + len(theirs)))


def _entries(text: str) -> list[tuple[str, str]]:
  """Each cell below the first row and right of the first column, behind its two headers."""
  first, *rest = parse_table(text) or [()]
  named = lambda row: zip(first[1:], row[1:], strict=False)
  return [(f"{row[0]} {column}", value) for row in rest for column, value in named(row)]


def _alike(a: str, b: str) -> float:
  """1 less the edit distance in lengths of the longer text; 0 beyond the tolerance."""
  longest = max(len(a), len(b))
  distance = _edits(a.casefold(), b.casefold()) / longest if longest else 0.0
  return 1 - distance if distance <= TEXT_TOLERANCE else 0.0


def _same_value(prediction: str, reference: str) -> float:
  ours, theirs = _number(prediction), _number(reference)
  if ours is None or theirs is None:
    return _alike(prediction, reference)
  if theirs == 0:
    return float(ours == 0)
  distance = abs(ours - theirs) / abs(theirs)
  return 1 - distance if distance <= NUMBER_TOLERANCE else 0.0


def _number(text: str) -> float | None:
  """`1,200`, `35 %` or `-1e3`; None for anything else."""
  try:
    number = float(text.replace(",", "").rstrip("% "))
  except ValueError:
    return None
  return number if math.isfinite(number) else None


def _edits(a: str, b: str) -> int:
  """Levenshtein's distance."""
  row: Float[np.ndarray, " n"] = np.arange(len(b) + 1.0)
  letters = np.array([*b])
  for i, letter in enumerate(a, start=1):
    new = np.minimum(row[1:] + 1, row[:-1] + (letters != letter))
    # Insertions run along the row: the least of what stands before, one more for each step.
    steps = np.arange(len(b) + 1.0)
    row = np.minimum.accumulate(np.concatenate([[i], new]) - steps) + steps
  return int(row[-1])
