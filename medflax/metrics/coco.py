"""The metrics of COCO captions (Chen et al. 2015), without the Java programs of its evaluation.

Words are lower case between white space; the original's tokenizer, a Java program, also takes
punctuation away. An empty prediction scores 0 (BLEU: below 1e-200).
"""

import collections
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from medflax.metrics.base import words

ORDER = 4
SIGMA = 6.0  # of CIDEr-D's penalty for another length
BETA = 1.2  # recall's weight in ROUGE-L
# BLEU adds them, so that nothing divides by 0.
TINY, SMALL = 1e-15, 1e-9

Counts = collections.Counter[tuple[str, ...]]


def bleu_samples(
  predictions: Sequence[str], references: Sequence[Sequence[str]], *, order: int
) -> Float[np.ndarray, " n"]:
  """BLEU of n-grams up to `order`, 0 to 1, against the reference of the closest length."""
  return _bleu(bleu_counts(predictions, references))[:, order - 1]


def bleu_score(totals: Float[np.ndarray, " counts"], *, order: int) -> float:
  """BLEU with n-grams and lengths counted over the whole set: of the sums of `bleu_counts`."""
  return float(_bleu(totals[None])[0, order - 1])


def cider(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Float[np.ndarray, " n"]:
  """CIDEr-D (Vedantam et al. 2015), 0 to 10: cosine of n-grams weighted by their rarity.

  Rarity is counted over the references of this set: the same answer scores otherwise in another
  set, n-grams that all samples share count nothing, and a set of one sample scores 0. The length
  is that of bigrams, as in the published code.
  """
  documents = [[_ngrams(words(text)) for text in texts] for texts in references]
  frequency = collections.Counter(ngram for counted in documents for ngram in set().union(*counted))
  log_size = np.log(max(1, len(documents)))
  rarity = {ngram: log_size - np.log(number) for ngram, number in frequency.items()}
  vectors = lambda counts: _weighted(counts, rarity, log_size)
  scores = []
  for prediction, counted in zip(predictions, documents, strict=True):
    ours = vectors(_ngrams(words(prediction)))
    scores.append(np.mean([_cider_pair(ours, vectors(counts)) for counts in counted]))
  return 10 * np.array(scores, np.float64)


def rouge_l(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Float[np.ndarray, " n"]:
  """ROUGE-L with recall weighted by 1.2², 0 to 1.

  Precision and recall are each the best over the references, not of one of them.
  """
  scores = []
  for prediction, texts in zip(predictions, references, strict=True):
    ours, theirs = words(prediction) or [""], [words(text) or [""] for text in texts]
    common = [longest_common_subsequence(ours, tokens) for tokens in theirs]
    precision = max(common) / len(ours)
    recall = max(length / len(tokens) for length, tokens in zip(common, theirs, strict=True))
    total = recall + BETA**2 * precision
    scores.append((1 + BETA**2) * precision * recall / total if total else 0.0)
  return np.array(scores, np.float64)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
  """Its length, by rows of bits (Hyyrö 2004): thousands of words take milliseconds."""
  places: dict[str, int] = {}
  for index, token in enumerate(a):
    places[token] = places.get(token, 0) | 1 << index
  full = row = (1 << len(a)) - 1
  for token in b:
    match = row & places.get(token, 0)
    row = (row + match | row - match) & full
  return len(a) - row.bit_count()


def _ngrams(tokens: Sequence[str]) -> Counts:
  return collections.Counter(
    tuple(tokens[start : start + n])
    for n in range(1, ORDER + 1)
    for start in range(len(tokens) - n + 1)
  )


def bleu_counts(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Float[np.ndarray, "n counts"]:
  """N-grams in common and there are, for every order; the lengths of prediction and reference."""
  rows = []
  for prediction, texts in zip(predictions, references, strict=True):
    tokens, theirs = words(prediction), [words(text) for text in texts]
    most: Counts = collections.Counter()
    for reference in theirs:
      most |= _ngrams(reference)
    common = _ngrams(tokens) & most
    right = [sum(k for ngram, k in common.items() if len(ngram) == n + 1) for n in range(ORDER)]
    there = [max(0, len(tokens) - n) for n in range(ORDER)]
    closest = min((abs(len(r) - len(tokens)), len(r)) for r in theirs)[1]
    rows.append([*right, *there, len(tokens), closest])
  return np.array(rows, np.float64).reshape(-1, 2 * ORDER + 2)


def _bleu(counts: Float[np.ndarray, "n counts"]) -> Float[np.ndarray, "n order"]:
  right, there, lengths = np.split(counts, [ORDER, 2 * ORDER], axis=1)
  means = np.cumprod((right + TINY) / (there + SMALL), axis=1) ** (1 / np.arange(1, ORDER + 1))
  ratio = (lengths[:, :1] + TINY) / (lengths[:, 1:] + SMALL)
  return means * np.exp(np.minimum(0, 1 - 1 / ratio))


def _weighted(
  counts: Counts, rarity: dict[tuple[str, ...], float], unseen: float
) -> tuple[list[dict[tuple[str, ...], float]], int]:
  """Weights of n-grams by order, and the number of bigrams."""
  vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDER)]
  for ngram, number in counts.items():
    vectors[len(ngram) - 1][ngram] = number * rarity.get(ngram, unseen)
  return vectors, sum(number for ngram, number in counts.items() if len(ngram) == 2)


def _cider_pair(ours: tuple[list, int], theirs: tuple[list, int]) -> float:
  """Mean over the orders of clipped cosines, times the penalty for another length."""
  cosines = []
  for a, b in zip(ours[0], theirs[0], strict=True):
    norms = np.sqrt(sum(x * x for x in a.values())) * np.sqrt(sum(x * x for x in b.values()))
    dot = sum(min(a[ngram], b[ngram]) * b[ngram] for ngram in a.keys() & b.keys())
    cosines.append(dot / norms if norms else 0.0)
  return float(np.mean(cosines) * np.exp(-((ours[1] - theirs[1]) ** 2) / (2 * SIGMA**2)))
