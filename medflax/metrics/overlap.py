"""Shares of tokens that a prediction and a reference have in common."""

import collections
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from medflax.metrics.text import exact_match, normalise


class Overlap(NamedTuple):
  """Precision, recall and their harmonic mean, each from 0 to 1."""

  precision: float
  recall: float
  f1: float


def overlap(prediction: Sequence[Hashable], reference: Sequence[Hashable]) -> Overlap:
  """How far two multisets of tokens agree: words, characters, or a tokenizer's ids.

  Of ids it is the F1 of prefix tuning's code (van Sonsbeek et al. 2023). Two empty sequences
  agree; one that is empty has nothing in common with another.
  """
  if not prediction or not reference:
    return Overlap(*[float(len(prediction) == len(reference))] * 3)
  common = (collections.Counter(prediction) & collections.Counter(reference)).total()
  return Overlap(
    common / len(prediction),
    common / len(reference),
    2 * common / (len(prediction) + len(reference)),
  )


def token_overlap(prediction: str, reference: str) -> Overlap:
  """`overlap` of the words of two answers, after `normalise`.

  As with `exact_match`, a reference of nothing but punctuation is compared as it is.
  """
  if not normalise(reference):
    return Overlap(*[float(exact_match(prediction, reference))] * 3)
  return overlap(normalise(prediction).split(), normalise(reference).split())


def char_bleu1(prediction: str, reference: str) -> float:
  """What prefix tuning's code prints as BLEU-1 (van Sonsbeek et al. 2023).

  It hands NLTK strings where lists of words are meant: every character of the reference
  counts as a reference of its own, so that this is the number of distinct characters in common
  over the prediction's length. 0 for an empty prediction. To compare with its numbers alone.
  """
  return len(set(prediction) & set(reference)) / len(prediction) if prediction else 0.0
