"""Agreement of raters, on the example of its author."""

import numpy as np
import pytest

from medflax.metrics.agreement import krippendorff_alpha

# Krippendorff, "Computing Krippendorff's alpha-reliability" (2011): four observers, twelve units.
OBSERVERS = ("123321412...", "123322412 5.3".replace(" ", ""), ".3332342251.", "123324412 51.")


def test_the_published_example():
  rows = [row.replace(" ", "") for row in OBSERVERS]
  units = [[float(row[i]) for row in rows if row[i] != "."] for i in range(12)]
  assert krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)


def test_agreement_and_chance():
  assert krippendorff_alpha([[1, 1], [7, 7], [3]]) == 1
  assert krippendorff_alpha([[1, 9], [9, 1]]) < 0
  pairs = np.random.default_rng(0).integers(0, 11, (2000, 2)).tolist()
  assert abs(krippendorff_alpha(pairs)) < 0.1


def test_what_tells_nothing():
  assert krippendorff_alpha([]) is None
  assert krippendorff_alpha([[1], [2]]) is None
  assert krippendorff_alpha([[4, 4], [4, 4]]) is None
