"""The numbers and points of scored answers are those of the metrics."""

import re

import numpy as np
import pytest

from medflax.metrics.likelihood import LIKELIHOOD_METRICS, reliability
from medflax.report.calibration import _intervals, _scored, calibration_section
from medflax.report.results import read_evaluation
from tests.report import made


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
  folder = tmp_path_factory.mktemp("evals") / "plane/400"
  return read_evaluation(made.make_scored_evaluation(folder))


def test_questions_are_those_with_images(evaluation):
  scored = _scored(evaluation)
  assert {shots: len(of.questions) for shots, of in scored.items()} == {0: 60, 4: 60}
  question = scored[4].questions[1]
  assert question.choices[question.answer] == "coronal"
  assert question.probabilities.sum() == pytest.approx(1)


def test_table_and_diagram_show_the_metrics(evaluation):
  page = calibration_section(evaluation)
  of = _scored(evaluation)[4]
  [cells] = re.findall(r"<td>4 shots</td>(.*?)</tr>", page)
  shown = re.findall(r"<td>([\d.]+)</td>", cells)
  error = LIKELIHOOD_METRICS["ece"].measure(of.questions, of.groups, seed=0)
  assert shown[:3:2] == ["60", f"{error.value:.3f}"]
  circles = page.count("<circle") - 2  # in the legend
  assert circles == sum(len(reliability(s.questions)) for s in _scored(evaluation).values())


def test_intervals_are_of_the_bins_own_answers(evaluation):
  of = _scored(evaluation)[4]
  bins = reliability(of.questions)
  ends = np.array(_intervals(of, bins))
  accuracy = np.array([found.accuracy for found in bins])
  assert ends.shape == (len(bins), 2)
  assert (ends[:, 0] <= accuracy).all() and (accuracy <= ends[:, 1]).all()
  assert (ends[:, 1] > ends[:, 0]).all()


def test_nothing_scored_is_no_section(tmp_path):
  folder = made.make_workdir(tmp_path) / "evals/binding/1200"
  assert calibration_section(read_evaluation(folder)) == ""
