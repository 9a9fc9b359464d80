"""Rows for new tokens: a language model's table grown as it is imported, cut as it is exported."""

import dataclasses
import re

import numpy as np

from medflax.pretrained.checkpoint import Checkpoint
from medflax.pretrained.lazy import LazyTensor
from medflax.utils import UserError

ROWS = r"lm/(embedding|head/(kernel|bias))"  # our leaves that have a row for each token


def add_tokens(checkpoint: Checkpoint, count: int) -> Checkpoint:
  """The checkpoint with `count` more rows, each the mean of those there (Hewitt 2021).

  So a new token is as likely as tokens are on average, and takes little from the others. The
  rows that were there are kept in `origin["rows"]`, by foreign name.

  Raises:
    UserError: if there is no language model with a table of tokens.
  """
  keys = [x.key for path, x in checkpoint.mapping.items() if re.fullmatch(ROWS, path)]
  keys = [key for key in keys if key in checkpoint.tensors]
  if count < 1 or not keys:
    raise UserError("--add-tokens: needs a causal language model and a number of at least 1")
  lm = checkpoint.sections["lm"]
  return dataclasses.replace(
    checkpoint,
    sections=checkpoint.sections | {"lm": lm | {"vocab_size": lm["vocab_size"] + count}},
    tensors=checkpoint.tensors | {key: _grown(checkpoint.tensors[key], count) for key in keys},
    origin=checkpoint.origin | {"rows": {key: checkpoint.tensors[key].shape[0] for key in keys}},
  )


def _grown(tensor: LazyTensor, count: int) -> LazyTensor:
  def read() -> np.ndarray:
    x = np.asarray(tensor)
    mean = x.mean(axis=0, keepdims=True, dtype=np.float64).astype(x.dtype)
    return np.concatenate([x, np.repeat(mean, count, axis=0)])

  return LazyTensor((tensor.shape[0] + count, *tensor.shape[1:]), tensor.dtype, read)
