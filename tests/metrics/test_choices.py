"""Which choice an answer means."""

import pytest

from medflax.metrics.choices import MATCHES, by_letter, by_similarity, choice_scores

PMC = [" A:heart", " B:A", " C:left lung", " D:LUNG"]


@pytest.mark.parametrize(
  ("answer", "index"),
  [
    ("A", 1),  # the published code's quirk: the shortest choice with this capital
    ("left lung", 2),
    ("C:left lung", 2),
    ("LUNG", 3),
    ("", None),
    ("ß", None),
  ],
)
def test_similarity(answer, index):
  assert by_similarity(answer, PMC) == index


def test_the_first_of_equals_wins():
  assert by_similarity("x", ["ax", "xb"]) == 0
  assert by_similarity("x", []) is None


@pytest.mark.parametrize(
  ("answer", "index"),
  [
    ("B", 1),
    ("(c) ", 2),
    ("The answer is C: left lung", 2),
    ("D. A", 3),
    ("a mass", None),
    ("E", None),
    ("MRI", None),
    ("", None),
  ],
)
def test_letter(answer, index):
  assert by_letter(answer, PMC) == index
  assert by_letter(answer, []) is None


def test_scores_compare_by_one_rule():
  predictions, labels = ["C", "x", "left", "A"], [["C:left lung"], [""], ["C"], ["D", "A"]]
  letters = choice_scores(MATCHES["choice_letter"], predictions, labels, [PMC] * 4)
  assert letters.tolist() == [1, 0, 0, 1]
  similar = choice_scores(MATCHES["choice_similarity"], ["left"], [["C:left lung"]], [PMC])
  assert similar.tolist() == [1]


def test_a_reference_that_is_a_choice_needs_no_rule():
  plain = ["heart", "left lung"]
  scores = choice_scores(MATCHES["choice_letter"], ["B", "A"], [["left lung"]] * 2, [plain] * 2)
  assert scores.tolist() == [1, 0]
