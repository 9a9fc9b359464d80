"""ROUGE (Lin 2004) and METEOR (Lavie and Agarwal 2007) through their libraries."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from medflax.metrics.base import words

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class NoWordNet:
  """A dictionary without synonyms: WordNet would have to be downloaded."""

  def synsets(self, _: str) -> list:
    return []


def rouge(
  predictions: Sequence[str], references: Sequence[Sequence[str]], *, name: str, stemmed: bool
) -> Float[np.ndarray, "n 3"]:
  """Precision, recall and F1 by rouge-score, 0 to 1, at the reference with the highest F1.

  Its words are runs of a–z and 0–9 in lower case: other letters separate words, and an answer
  without any of these scores 0, as does an empty one.

  Args:
    name: one of `NAMES`; rougeLsum takes lines as sentences.
    stemmed: whether words are cut to their stems (Porter) where longer than 3 letters.
  """
  from rouge_score.rouge_scorer import RougeScorer  # an extra

  scorer = RougeScorer([name], use_stemmer=stemmed)
  pairs = zip(predictions, references, strict=True)
  scores = [scorer.score_multi(list(rs), p)[name] for p, rs in pairs]
  return np.array(scores, np.float64).reshape(-1, 3)


def rouge_f1(
  predictions: Sequence[str], references: Sequence[Sequence[str]], *, name: str, stemmed: bool
) -> Float[np.ndarray, " n"]:
  """The last column of `rouge`."""
  return rouge(predictions, references, name=name, stemmed=stemmed)[:, 2]


def meteor(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Float[np.ndarray, " n"]:
  """NLTK's METEOR of lower-case words, 0 to 1, at the best reference.

  Words are aligned if equal or of the same stem; there are no synonyms and no paraphrases, so
  that numbers are lower than the Java program's. The penalty for fragments leaves a single
  right word 0.5.
  """
  from nltk.translate.meteor_score import meteor_score  # an extra

  pairs = zip(predictions, references, strict=True)
  scores = [meteor_score([words(r) for r in rs], words(p), wordnet=NoWordNet()) for p, rs in pairs]
  return np.array(scores, np.float64)
