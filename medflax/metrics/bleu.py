"""BLEU (Papineni et al. 2002) as NLTK and as sacreBLEU have it, and chrF (Popović 2015).

Numbers from different implementations cannot be compared: they differ in words, smoothing and
what an empty count gives. An empty prediction scores 0 in all.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from medflax.metrics.base import words
from medflax.metrics.intervals import Statistic


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
  from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu  # an extra

  smoothing = SmoothingFunction()
  scores = []
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of counts that are 0, once for each answer
    for prediction, texts in zip(predictions, references, strict=True):
      score = sentence_bleu(
        [words(text) for text in texts],
        words(prediction),
        [1 / order] * order,
        smoothing.method1 if smoothed else smoothing.method0,
      )
      scores.append(score)
  return np.array(scores, np.float64)


def nltk_counts(
  predictions: Sequence[str], references: Sequence[Sequence[str]], *, order: int
) -> Float[np.ndarray, "n counts"]:
  """N-grams right and there are, for every order; the lengths of prediction and reference."""
  from nltk.translate.bleu_score import closest_ref_length, modified_precision

  rows = []
  for prediction, texts in zip(predictions, references, strict=True):
    tokens, theirs = words(prediction), [words(text) for text in texts]
    shares = [modified_precision(theirs, tokens, n) for n in range(1, order + 1)]
    right, there = [x.numerator for x in shares], [x.denominator for x in shares]
    rows.append([*right, *there, len(tokens), closest_ref_length(theirs, len(tokens))])
  return np.array(rows, np.float64).reshape(-1, 2 * order + 2)


def nltk_score(totals: Float[np.ndarray, " counts"]) -> float:
  """NLTK's corpus BLEU of the sums of `nltk_counts`, 0 to 1.

  It takes an answer of fewer than n words to have one n-gram, a wrong one: with short answers
  its numbers are lower than COCO's.
  """
  from nltk.translate.bleu_score import brevity_penalty

  order = len(totals) // 2 - 1
  right, there, (ours, theirs) = np.split(totals, [order, 2 * order])
  if not right[0]:
    return 0.0
  shares = np.where(right > 0, right / there, sys.float_info.min)
  return float(brevity_penalty(int(theirs), int(ours)) * np.exp(np.log(shares).mean()))


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


def sacre_set(
  scorer: Callable[[], Any], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Statistic:
  """The score of the whole set, whose samples may have different numbers of references."""
  streams = [
    [texts[index] if index < len(texts) else None for texts in references]
    for index in range(max(map(len, references)))
  ]
  metric = scorer()
  # What the package itself does to resample: its public methods count all samples every time.
  counts = np.array(metric._extract_corpus_statistics(list(predictions), streams))
  return lambda rows: float(
    metric._compute_score_from_stats(counts[rows].sum(axis=0).tolist()).score
  )
