"""Nearest neighbours among unit vectors, block by block: never a matrix of all pairs in memory."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

BLOCK = 2048


def pairs_above(
  a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], threshold: float
) -> Iterator[tuple[int, int, float]]:
  """All (row of a, row of b, cosine) with a cosine of at least `threshold`."""
  for i in range(0, len(a), BLOCK):
    for j in range(0, len(b), BLOCK):
      cosines = a[i : i + BLOCK].astype(np.float32) @ b[j : j + BLOCK].astype(np.float32).T
      rows, columns = np.nonzero(cosines >= threshold)
      found = zip(rows.tolist(), columns.tolist(), cosines[rows, columns].tolist(), strict=True)
      yield from ((i + row, j + column, cosine) for row, column, cosine in found)


def nearest(
  a: Float[np.ndarray, "v n d"], b: Float[np.ndarray, "m d"], count: int
) -> Int[np.ndarray, "n k"]:
  """For each of n, the `count` rows of b (or all) that are nearest to any of its v vectors."""
  count = min(count, len(b))
  found = np.zeros((a.shape[1], count), int)
  for i in range(0, a.shape[1], BLOCK):
    block = a[:, i : i + BLOCK]
    scores = np.zeros((block.shape[1], 0), np.float32)
    rows = np.zeros((block.shape[1], 0), int)
    for j in range(0, len(b), BLOCK):
      part = b[j : j + BLOCK].T
      best = block[0] @ part
      for view in block[1:]:
        np.maximum(best, view @ part, out=best)
      scores = np.concatenate([scores, best], axis=1)
      new = np.broadcast_to(np.arange(j, j + best.shape[1]), best.shape)
      rows = np.concatenate([rows, new], axis=1)
      keep = np.argsort(-scores, axis=1, kind="stable")[:, :count]
      scores = np.take_along_axis(scores, keep, axis=1)
      rows = np.take_along_axis(rows, keep, axis=1)
    found[i : i + BLOCK] = rows
  return found
