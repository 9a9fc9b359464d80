"""Searching block by block finds what the matrix of all pairs holds."""

import numpy as np

from medflax.leakage import search


def unit(rng, *shape):
  vectors = rng.standard_normal(shape).astype(np.float32)
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_pairs_above(monkeypatch):
  monkeypatch.setattr(search, "BLOCK", 7)
  rng = np.random.default_rng(0)
  a, b = unit(rng, 23, 5), unit(rng, 17, 5)
  cosines = a @ b.T
  found = {(i, j): score for i, j, score in search.pairs_above(a, b, 0.6)}
  assert set(found) == set(zip(*map(list, np.nonzero(cosines >= 0.6)), strict=True))
  assert all(abs(score - cosines[pair]) < 1e-6 for pair, score in found.items())


def test_nearest(monkeypatch):
  monkeypatch.setattr(search, "BLOCK", 7)
  rng = np.random.default_rng(1)
  a, b = unit(rng, 3, 20, 5), unit(rng, 30, 5)
  best = (a @ b.T).max(axis=0)
  found = search.nearest(a, b, 4)
  expected = np.sort(best, axis=1)[:, ::-1][:, :4]
  np.testing.assert_allclose(np.take_along_axis(best, found, axis=1), expected, rtol=1e-5)
  assert search.nearest(a, b[:2], 4).shape == (20, 2)
