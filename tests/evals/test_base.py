"""Batching, result files and pictures."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medflax.data.documents import Media
from medflax.evals import base


@given(st.lists(st.integers()), st.integers(1, 5))
def test_batched_keeps_order_and_size(items, size):
  batches = list(base.batched(items, size))
  assert [item for batch in batches for item in batch] == items
  assert all(len(batch) == size for batch in batches[:-1])


def test_lagged_yields_each_after_the_next_was_made():
  events = []

  def make():
    for item in "abc":
      events.append(f"made {item}")
      yield item

  for item in base.lagged(make()):
    events.append(f"read {item}")
  assert events == ["made a", "made b", "read a", "made c", "read b", "read c"]


def test_results_cannot_hold_what_is_not_a_number(make_context, lungs):
  context = make_context(lungs)
  with pytest.raises(ValueError, match="JSON compliant"):
    base.write_results(context, "x", 1, task="t", metrics={}, samples=[{"nll": float("nan")}])
  assert not (base.results_folder(context, "x", 1) / "results.json").exists()


def test_evaluating_a_step_again_is_told(make_context, lungs, caplog):
  context = make_context(lungs)
  for _ in range(2):
    base.write_results(context, "x", 1, task="t", metrics={}, samples=[{"id": "é"}])
  assert "x: step 1 was evaluated before" in caplog.text
  folder = base.results_folder(context, "x", 1)
  assert (folder / "samples.jsonl").read_text(encoding="utf-8") == '{"id": "é"}\n'
  assert json.loads((folder / "results.json").read_text())["metrics"] == {}


@pytest.mark.parametrize(
  ("array", "kind", "expected"),
  [
    (np.full((2, 3, 1), 0.5, np.float32), "image", np.full((2, 3), 128)),
    (np.full((2, 3, 3), 7, np.uint8), "image", np.full((2, 3, 3), 7)),
    (np.full((2, 3, 4), 9, np.uint8), "image", np.full((2, 3), 9)),
    (np.arange(2, dtype=np.uint8).reshape(2, 1, 1, 1), "volume", [[0, 1]]),
    (np.arange(23, dtype=np.uint8).reshape(23, 1, 1, 1), "volume", [range(0, 23, 2)]),
  ],
)
def test_pictures(tmp_path, array, kind, expected):
  [path] = base.write_pictures(tmp_path, "q", [Media(array, kind)])
  assert path == "media/q-0.png"
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / path)), expected)


def test_a_signal_is_drawn(tmp_path):
  wave = np.sin(np.linspace(0, 9, 100, dtype=np.float32))
  late = np.full(9 * base.MAX_SAMPLES, 50, np.float32)  # beyond what is shown, so no trace shrinks
  signal = np.stack([np.resize(wave, late.shape), 1000 * np.resize(wave, late.shape)], axis=1)
  signal[base.MAX_SAMPLES :] = late[base.MAX_SAMPLES :, None]
  base.write_pictures(tmp_path, "q", [Media(signal, "signal")])
  picture = np.asarray(Image.open(tmp_path / "media/q-0.png"))
  height, width = base.SIGNAL_LANE
  assert picture.shape == (2 * height, width)
  for lane in picture[:height], picture[height:]:  # in whatever units
    assert (lane == 0).any(axis=0).all()  # every column is crossed by the trace
    assert (lane[[0, -1]] == 0).any(axis=1).all()  # from top to bottom
  np.testing.assert_array_equal(picture[:height], picture[height:])
