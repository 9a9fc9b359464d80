"""Answers that name classes: one, or a list of them ("effusion, cardiomegaly; oedema").

A list is separated by commas or semicolons; its order does not matter, and every label is compared
after `normalise`. An empty answer names no class.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from medflax.metrics.intervals import Statistic
from medflax.metrics.overlap import overlap
from medflax.metrics.text import normalise

# A comma between digits belongs to the number, as in `normalise`.
_SEPARATOR = re.compile(r";|,(?!(?<=\d,)\d)")


def labels(answer: str) -> frozenset[str]:
  """The classes that an answer names."""
  return frozenset(filter(None, map(normalise, _SEPARATOR.split(answer))))


def same_labels(prediction: str, reference: str) -> float:
  """1 if the answers name the same classes, else 0: accuracy, of subsets if there are several."""
  return float(labels(prediction) == labels(reference))


def label_f1(prediction: str, reference: str) -> float:
  """F1 of the classes that the answers name; 1 if neither names one."""
  return overlap(sorted(labels(prediction)), sorted(labels(reference))).f1


def macro_f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Statistic:
  """Mean F1 of the classes that the first references name, whatever else the predictions name.

  A prediction of no such class counts as a miss of the right one. In a resample, classes that no
  reference of it names are left out; nan if that leaves none.
  """
  table = _counts(predictions, references)

  def statistic(rows: np.ndarray) -> float:
    hits, named, right = table[rows].sum(axis=0).T
    there = right > 0
    return (
      float((2 * hits / (named + right + (1 - there)))[there].mean()) if there.any() else np.nan
    )

  return statistic


def micro_f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Statistic:
  """F1 of all labels of the set together; other texts than classes count as wrong ones."""
  pairs = [(labels(p), labels(rs[0])) for p, rs in zip(predictions, references, strict=True)]
  table = np.array([(len(p & r), len(p) + len(r)) for p, r in pairs], np.float64)

  def statistic(rows: np.ndarray) -> float:
    hits, total = table[rows].sum(axis=0)
    return float(2 * hits / total) if total else np.nan

  return statistic


def _counts(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Float[np.ndarray, "n classes 3"]:
  """Of every class: whether a sample names it rightly, in the prediction, in the reference."""
  pairs = [(labels(p), labels(rs[0])) for p, rs in zip(predictions, references, strict=True)]
  classes = sorted(frozenset().union(*(right for _, right in pairs)))
  rows = [[(c in p and c in r, c in p, c in r) for c in classes] for p, r in pairs]
  return np.array(rows, np.float64).reshape(len(pairs), len(classes), 3)
