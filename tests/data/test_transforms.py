import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from medflax.data.documents import IMAGE, VOLUME
from medflax.data.transforms import grids, intensity
from medflax.data.transforms.scan import Scan

LENGTHS = st.integers(1, 40)


@hypothesis.given(LENGTHS, LENGTHS)
def test_resampling_weights_average(length, new_length):
  weights = grids.resample_weights(length, new_length)
  assert weights.shape == (new_length, length)
  np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-5)
  assert (weights >= 0).all()
  np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-6)  # no shift to either side
  assert (weights.sum(axis=0) > 0).all() or new_length >= length  # shrinking drops no voxel


def test_resampling_to_the_same_length_changes_nothing():
  np.testing.assert_array_equal(grids.resample_weights(7, 7), np.eye(7, dtype=np.float32))


@hypothesis.given(LENGTHS, LENGTHS, LENGTHS, LENGTHS, st.sampled_from([0.25, 1.0, 3.0]))
@hypothesis.settings(deadline=None)
def test_images_fit_with_their_proportions_kept(height, width, new_height, new_width, aspect):
  white = np.full((height, width, 3), 255, np.uint8)
  fitted = grids.fit(Scan(white, IMAGE, (aspect, 1.0)), (new_height, new_width)).array
  assert fitted.shape == (new_height, new_width, 3)
  assert fitted.dtype == np.uint8
  rows = np.flatnonzero(fitted[:, :, 0].any(axis=1))
  columns = np.flatnonzero(fitted[:, :, 0].any(axis=0))
  have, want = (len(rows), len(columns)), (height * aspect, width)
  scale = min(new_height / want[0], new_width / want[1])
  assert (fitted[np.ix_(rows, columns)] == 255).all()
  for n, ideal in zip(have, want, strict=True):
    assert abs(n - max(1, ideal * scale)) <= 0.5 + 1e-9
  assert have[0] == new_height or have[1] == new_width
  assert abs(rows[0] - (new_height - 1 - rows[-1])) <= 1  # centred


def test_a_volume_fills_the_depth_and_is_padded_within_slices():
  volume = np.repeat(np.arange(3, dtype=np.uint8)[:, None, None, None] * 100 + 20, 10, axis=1)
  volume = np.repeat(volume, 5, axis=2)
  fitted = grids.fit(Scan(volume, VOLUME), (6, 8, 8)).array
  assert fitted.shape == (6, 8, 8, 1)
  assert (fitted[0, :, 2:6] == 20).all()
  assert (fitted[-1, :, 2:6] == 220).all()
  assert (np.diff(fitted[:, 4, 4, 0].astype(int)) >= 0).all()
  assert not fitted[:, :, :2].any()
  assert not fitted[:, :, 6:].any()


def test_shrinking_averages_rather_than_picks():
  stripes = np.zeros((2, 64, 64, 1), np.uint8)
  stripes[:, ::2] = 200
  fitted = grids.fit(Scan(stripes, VOLUME), (2, 8, 8)).array
  assert abs(int(fitted[0, 4, 4, 0]) - 100) <= 2


def test_the_percentile_window_ignores_outliers():
  values = np.linspace(0.0, 100.0, 10_001)
  values[0], values[-1] = -1e6, 1e6
  shown = intensity.percentile_window(values)
  assert shown.dtype == np.float32
  assert shown.min() == 0.0
  assert shown.max() == 1.0
  assert shown[5000] == pytest.approx(0.5, abs=0.01)


def test_a_constant_picture_is_black():
  assert not intensity.percentile_window(np.full((4, 4), 7.0)).any()


@hypothesis.given(st.floats(-1e4, 1e4), st.floats(0.1, 1e4))
def test_windows_map_their_ends_to_zero_and_one(low, width):
  values = np.array([low - 1, low, low + width / 2, low + width, low + width + 1])
  np.testing.assert_allclose(
    intensity.window(values, low, low + width), [0, 0, 0.5, 1, 1], atol=2e-2
  )
