"""Benchmarks' own scores, their quirks included."""

import pytest

from medflax.metrics.official import (
  open_recall,
  pathvqa_exact,
  pathvqa_f1,
  vqa_accuracy,
  vqa_med_accuracy,
  vqa_med_bleu,
  vqa_text,
)
from medflax.utils import UserError


@pytest.mark.parametrize(
  ("text", "form"),
  [
    ("The left Lung.", "left lung"),
    ("two x-rays", "2 x rays"),
    ("two x- rays", "2 x rays"),
    ("yes, an MRI", "yes mri"),
    ("1,000 c/d", "1000 cd"),  # a number with a comma takes all signs away
    ("None", "0"),
    ("it isnt", "it isn't"),
    ("3.5", "3.5"),
    ("couldn'tve shes", "couldn't've shes"),
    ("", ""),
  ],
)
def test_text_of_vqa(text, form):
  assert vqa_text(text) == form


def test_three_other_annotators_make_a_right_answer():
  given = ["left"] * 4 + ["right"] * 3 + ["The Middle.", "both", "none"]
  answers = ["left", "right", "middle", "up", "0"]
  scores = vqa_accuracy(answers, [given] * 5)
  assert scores == pytest.approx([1, (3 * 2 / 3 + 7) / 10, 0.9 / 3, 0, 0.9 / 3])
  # Where all agree nothing is processed but case.
  agreed = vqa_accuracy(["YES", "yes."], [["yes"] * 10] * 2)
  assert agreed.tolist() == [1, 0]
  with pytest.raises(UserError, match="question 0 has 1; score exact_match"):
    vqa_accuracy(["yes"], [["yes"]])


def test_open_recall_counts_repeats_of_the_answer():
  assert open_recall("the left lung", "left lung and heart") == pytest.approx(2 / 4)
  assert open_recall("lung lung lung", "left lung") == pytest.approx(3 / 4)
  assert open_recall("", "lung") == open_recall("heart", "lung") == open_recall("x", "") == 0


def test_pathvqa_exact_match_is_a_share_of_words():
  assert pathvqa_exact("yes it is", "yes") == pytest.approx(1 / 3)
  assert pathvqa_exact("yes", "yes it is") == 1
  assert pathvqa_exact("no no", "no") == pytest.approx(1 / 2)
  assert pathvqa_exact("T1", "t") == 1  # letters alone
  assert pathvqa_exact("", "yes") == 0


def test_pathvqa_f1():
  assert pathvqa_f1("left lung", "the left lung") == pytest.approx(2 * 1 * (2 / 3) / (5 / 3))
  assert pathvqa_f1("lung lung", "left lung") == pytest.approx(2 * 1 * (2 / 3) / (5 / 3))
  assert pathvqa_f1("5", "5") == 0


def test_vqa_med_reads_words():
  assert vqa_med_accuracy("XR - plain film", "xr-plain film") == 0
  assert vqa_med_accuracy("CT (w/ contrast)", "ct w contrast") == 1
  assert vqa_med_bleu("Fractures of the hip.", "fracture, hip") == 1  # stems, no stop words
  assert vqa_med_bleu("axial", "axial") == 1
  assert vqa_med_bleu("no", "not") == 1  # nothing is left of either
  assert vqa_med_bleu("no", "axial") == vqa_med_bleu("coronal", "axial") == 0
  assert vqa_med_bleu("hip", "hip fracture") == pytest.approx(2.718281828 ** (1 - 2))
  assert vqa_med_bleu("acute hip bone", "hip bone") == pytest.approx(((2 / 3) * (1 / 2)) ** 0.25)
