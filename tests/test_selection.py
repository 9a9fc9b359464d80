import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax.selection import best_step, last_step, read_values
from medflax.utils import UserError

VALUES = st.dictionaries(st.integers(1, 50), st.integers(-3, 3).map(float), max_size=12)


def test_values_are_read_in_the_order_of_steps(tmp_path):
  for step, value in ((200, 2.5), (50, 3.0), (100, 2.0)):
    folder = tmp_path / "evals" / "ppl" / str(step)
    folder.mkdir(parents=True)
    measured = {"ppl/nll": {"value": value}, "ppl/perplexity": {"value": 9.0}}
    (folder / "results.json").write_text(json.dumps({"metrics": measured}))
  assert list(read_values(tmp_path, "ppl/nll").items()) == [(50, 3.0), (100, 2.0), (200, 2.5)]
  assert read_values(tmp_path, "other/nll") == {}
  with pytest.raises(UserError, match=r"no metric 'ppl/nl'.* 'ppl/nll'"):
    read_values(tmp_path, "ppl/nl")


def test_patience():
  values = {10: 3.0, 20: 2.0, 30: 2.0, 40: 2.5, 50: 1.0, 60: 1.0, 70: 5.0, 80: 0.0}
  assert best_step(values, "min") == 80 and best_step(values, "max") == 70
  assert last_step(values, "min", 1) == 30  # as good is no better
  assert last_step(values, "min", 2) == 40
  assert last_step(values, "min", 3) is None
  assert last_step(values, "max", 5) == 60
  assert last_step(values, "min", 0) is None and best_step({}, "min") is None


@given(VALUES, st.integers(1, 4), st.sampled_from(["min", "max"]))
def test_the_end_is_told_by_what_came_before_it(values, patience, mode):
  """So that a run that has results of later steps, of before a kill, ends where it did."""
  last = last_step(values, mode, patience)
  until = {step: value for step, value in values.items() if last is None or step <= last}
  assert last_step(until, mode, patience) == last
  before = {step: value for step, value in until.items() if step != last}
  assert last_step(before, mode, patience) is None
  if last is not None:
    assert best_step(until, mode) == sorted(until)[-patience - 1]
