"""BLEU (Papineni et al. 2002) as NLTK and as sacreBLEU have it, and chrF (Popović 2015).

Numbers from different implementations cannot be compared: they differ in words, smoothing and
what an empty count gives. An empty prediction scores 0 in all.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from medflax.metrics.base import words


def nltk_samples(
  predictions: Sequence[str],
  references: Sequence[Sequence[str]],
  *,
  order: int,
  smoothed: bool = True,
) -> Float[np.ndarray, " n"]:
  """NLTK's sentence BLEU of lower-case words, 0 to 1.

  Args:
    order: of the longest n-grams; all orders weigh the same.
    smoothed: 0.1 for a count of 0 (Chen and Cherry 2014, method 1). Without it a short answer
      that has no 4-gram in common scores some 1e-78, as in much published code.
  """
  pairs = zip(predictions, references, strict=True)
  scores = [nltk_corpus([p], [rs], order=order, smoothed=smoothed) for p, rs in pairs]
  return np.array(scores, np.float64)


def nltk_corpus(
  predictions: Sequence[str],
  references: Sequence[Sequence[str]],
  *,
  order: int,
  smoothed: bool = False,
) -> float:
  """NLTK's corpus BLEU of lower-case words, 0 to 1: n-grams are counted over the whole set.

  It takes an answer of fewer than n words to have one n-gram, a wrong one: with short answers
  its numbers are lower than COCO's.
  """
  from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu  # an extra

  smoothing = SmoothingFunction()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of counts that are 0, once for each answer
    return float(
      corpus_bleu(
        [[words(text) for text in texts] for texts in references],
        [words(text) for text in predictions],
        [1 / order] * order,
        smoothing.method1 if smoothed else smoothing.method0,
      )
    )


def sacrebleu(*, effective_order: bool = False, lowercase: bool = False) -> Any:
  """The scorer of sacreBLEU, 0 to 100: its 13a tokens, smoothing `exp` (Post 2018).

  Args:
    effective_order: whether n-grams longer than the answer are left out, as fits single answers.
    lowercase: whether case is ignored.
  """
  from sacrebleu.metrics.bleu import BLEU  # an extra

  # An answer may well end in " .", which it else takes for a sign of split text.
  return BLEU(force=True, effective_order=effective_order, lowercase=lowercase)


def chrf() -> Any:
  """The scorer of characters of sacreBLEU, 0 to 100."""
  from sacrebleu.metrics.chrf import CHRF  # an extra

  return CHRF()


def sacre_samples(
  scorer: Callable[[], Any], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Float[np.ndarray, " n"]:
  """One score for each prediction."""
  metric = scorer()
  pairs = zip(predictions, references, strict=True)
  return np.array([metric.sentence_score(p, list(rs)).score for p, rs in pairs], np.float64)


def sacre_corpus(
  scorer: Callable[[], Any], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
  """The score of the whole set, whose samples may have different numbers of references."""
  streams = [
    [texts[index] if index < len(texts) else None for texts in references]
    for index in range(max(map(len, references)))
  ]
  return float(scorer().corpus_score(list(predictions), streams).score)
