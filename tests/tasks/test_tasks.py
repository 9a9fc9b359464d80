"""Task records hold what the evaluator, the metrics and the data sets know."""

import dataclasses

import pytest

from medflax import tasks
from medflax.data.builders import BUILDERS
from medflax.data.builders.base import CLOSED, OPEN
from medflax.data.documents import Prompt
from medflax.data.folder import ALL_TASKS
from medflax.evals.base import read_settings
from medflax.evals.fewshot_vqa import Settings
from medflax.inference.decoding import make_decoder
from medflax.metrics.likelihood import LIKELIHOOD_METRICS
from medflax.metrics.scorers import make_metrics
from medflax.tasks import TASKS, Task, evaluation, evaluator_name
from medflax.utils import UserError

every = pytest.mark.parametrize("name", TASKS)


@every
def test_its_data_set_has_what_is_asked_for(name):
  task = TASKS[name]
  builder = BUILDERS[task.data]
  assert task.task in (ALL_TASKS, *builder.tasks)
  assert set(task.where) <= {"answer_type"}
  assert task.where.get("answer_type", OPEN) in (OPEN, CLOSED)
  if "answer_type" in task.where:
    assert task.where["answer_type"] in builder.answers
  assert task.split in ("val", "test")


@every
def test_its_protocol_is_one_that_can_be_run(name):
  task = TASKS[name]
  Prompt(**task.prompt)
  make_decoder(dict(task.decoding))
  assert task.version >= 1 and task.source and task.metrics
  assert len(set(task.metrics)) == len(task.metrics)
  scored = set(task.metrics) & LIKELIHOOD_METRICS.keys()
  assert bool(scored) == bool(task.candidates)
  # Few shots need a pool of other groups, which benchmarks that are one split do not have.
  assert task.num_shots == (0,) or task.data != "mirp"


@every
def test_its_section_is_complete(name):
  settings = read_settings(Settings, "a", evaluation(name, "prepared/x"))
  assert settings.data == {"source": "prepared", "root": "prepared/x"}
  assert settings.protocol == (name, str(TASKS[name].version))
  assert "/" not in evaluator_name(name)


def test_names_stay_apart():
  assert len({evaluator_name(name) for name in TASKS}) == len(TASKS)
  assert all(name.count("/") == 1 for name in TASKS)


def test_a_new_task_is_one_record(monkeypatch):
  record = Task(
    data="slake_en", source="A. Author 2026", task=CLOSED, metrics=("token_f1",), num_shots=(2,)
  )
  monkeypatch.setitem(tasks.TASKS, "slake_en/author", record)
  section = evaluation("slake_en/author", "x")
  settings = read_settings(Settings, "a", section)
  assert (settings.task, settings.num_shots, settings.metrics) == (CLOSED, (2,), ("token_f1",))
  assert {field.name for field in dataclasses.fields(Task)} - {"source", "version"} < set(section)


def test_an_unknown_task_is_told_with_the_nearest():
  with pytest.raises(UserError, match="unknown task 'vqa_rad/medflamingo'; did you mean 'vqa_rad/"):
    evaluation("vqa_rad/medflamingo", "x")


def test_closed_candidates_are_the_annotations():
  """Issue 113 of LLaVA-Med: closed is not yes and no."""
  closed = [task for task in TASKS.values() if task.where.get("answer_type") == CLOSED]
  assert closed and all(task.candidates in ("choices", "train") for task in closed)


def test_metrics_are_known():
  named = {metric for task in TASKS.values() for metric in task.metrics}
  plain = (
    named - LIKELIHOOD_METRICS.keys() - {"bert_sim", "umls_precision", "umls_recall", "umls_f1"}
  )
  make_metrics(sorted(plain))
