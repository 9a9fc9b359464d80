"""Bar charts: what is drawn is what the table says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax.data import DATASETS
from medflax.data.phantoms import charts
from medflax.data.phantoms.charts import COLUMNS, TOP, Charts, draw_chart, render_chart
from medflax.defaults import base_config
from medflax.metrics.tables import parse_table
from medflax.utils import UserError


@given(st.integers(0, 2**31 - 1), st.sampled_from(charts.LABELS))
def test_a_chart_is_what_was_asked_for(seed, label):
  rng = np.random.default_rng(seed)
  chart = draw_chart(rng, highest=label)
  assert max(zip(chart.steps, chart.labels, strict=True))[1] == label
  assert len(set(chart.labels)) == len(set(chart.steps)) == len(chart.labels)
  assert all(0 < step < TOP for step in chart.steps)
  assert label in draw_chart(rng, first=label).labels
  assert parse_table(charts.linearised(chart)) == [COLUMNS, *chart.rows]
  assert parse_table(charts.linearised(chart, "\n")) == [COLUMNS, *chart.rows]


@pytest.mark.parametrize("size", [(48, 48), (64, 96)])
def test_bars_are_as_high_as_their_values(size):
  rng = np.random.default_rng(0)
  for _ in range(5):
    chart = draw_chart(rng)
    image = render_chart(chart, size, rng).astype(int)
    assert image.shape == (*size, 3)
    # Bars are the only thing of their colours: count how high each of their columns is.
    bar = (np.abs(image[:, :, None] - np.array(charts._BARS)).sum(-1) == 0).any(-1)
    columns = bar.sum(0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], columns, [0]])))
    heights = [int(columns[a]) for a in edges[:-1] if columns[a]]
    order = lambda values: np.argsort(np.argsort(values)).tolist()
    assert order(heights) == order(chart.steps)
    unit = np.array(heights) / np.array(chart.steps)
    assert np.ptp(unit * np.array(chart.steps) - unit.mean() * np.array(chart.steps)) < 3


def test_episodes_are_a_function_of_their_index():
  data = Charts((48, 48), seed=1)
  few, many = (data.episodes("highest", "test", shots, 24) for shots in (0, (1, 2)))
  assert len(few) == 24 and not few[3].support and 1 <= len(many[3].support) <= 2
  np.testing.assert_array_equal(few[3].query.media[0].array, many[3].query.media[0].array)
  answers = [episode.query.answer for episode in few]
  assert {answers.count(label) for label in charts.LABELS} == {3}
  other = Charts((48, 48), seed=2).episodes("highest", "test", 0)[3]
  assert (other.query.media[0].array != few[3].query.media[0].array).any()
  train = data.episodes("highest", "train", 0)[3].query
  assert train.source.split == "train" and len(data.episodes("table", "train", 0)) > 2**30
  with pytest.raises(IndexError):
    few[24]


def test_answers_follow_from_the_table():
  data = Charts((48, 48))
  for i in range(8):
    sample = data.episodes("value", "val", 0)[i].query
    table = dict(parse_table(sample.meta["caption"]))
    assert sample.answer == table[sample.question.removesuffix("?")[-1]]
    sample = data.episodes("highest", "val", 0)[i].query
    table = {k: float(v) for k, v in parse_table(sample.meta["caption"])[1:]}
    assert sample.answer == max(table, key=lambda label: table[label])
    assert sample.choices == tuple(sorted(table))


def test_it_is_a_data_set_of_configs():
  config = base_config("x", "tiny")
  config.data.image_size = (48, 48)
  assert DATASETS["charts"](config.data, 3).name == "charts"


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: Charts((32, 32)), "image_size .* of 48 or more"),
    (lambda: Charts().episodes("tables", "test", 0), "no task 'tables'; did you mean 'table'"),
    (lambda: Charts().episodes("table", "tests", 0), "no split 'tests'"),
    (lambda: Charts().episodes("table", "test", (2, 1)), r"num_shots is \(2, 1\)"),
  ],
)
def test_mistakes_are_named(make, message):
  with pytest.raises(UserError, match=message):
    make()
