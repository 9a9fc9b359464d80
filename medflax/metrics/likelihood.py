"""What answers' likelihoods are worth: who is right, how sure, and what to leave to a human.

A question is here the probabilities of its candidate answers. Of equal ones the first counts as
the answer given; the highest is the confidence.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from medflax.metrics.intervals import Measurement, Statistic, bootstrap, jackknife
from medflax.metrics.text import exact_match, normalise

BINS = 15  # of ECE, equally wide, as Guo et al. have them


class Likelihoods(NamedTuple):
  """One question: its candidates, their probabilities (adding up to 1), and the right one.

  `answer` is an index, -1 if the right answer is none of the candidates.
  """

  choices: tuple[str, ...]
  probabilities: Float[np.ndarray, " c"]
  answer: int


def from_candidates(candidates: Sequence[Mapping[str, Any]], answer: str) -> Likelihoods:
  """Of the "candidates" of a line in samples.jsonl, which have "text" and "probability"."""
  choices = tuple(candidate["text"] for candidate in candidates)
  right = (index for index, text in enumerate(choices) if exact_match(text, answer))
  probabilities = np.array([candidate["probability"] for candidate in candidates], np.float64)
  return Likelihoods(choices, probabilities, next(right, -1))


class Bin(NamedTuple):
  """Questions of one range of confidence: how many, how sure and how right on average."""

  low: float
  high: float
  n: int
  confidence: float
  accuracy: float


@dataclasses.dataclass(frozen=True)
class LikelihoodMetric:
  """A number of questions: the mean of `per_sample`, or that of the set.

  Attributes:
    version: goes up when the same likelihoods may score otherwise.
  """

  version: int
  per_sample: Callable[[Sequence[Likelihoods]], Float[np.ndarray, " n"]] | None = None
  of_set: Callable[[Sequence[Likelihoods]], Statistic] | None = None

  def measure(
    self, questions: Sequence[Likelihoods], groups: Sequence[str], *, seed: int
  ) -> Measurement | None:
    """The number with its interval; None if there is none (an AUROC of one class).

    Raises:
      UserError: if there is no question.
    """
    if self.per_sample is not None:
      return bootstrap(self.per_sample(questions), groups, seed=seed)
    assert self.of_set is not None
    statistic = self.of_set(questions)
    if len(questions) and not np.isfinite(statistic(np.arange(len(questions)))):
      return None
    return jackknife(statistic, groups, seed=seed)

  @property
  def signature(self) -> str:
    """The version, to be kept beside every number."""
    return f"v{self.version}"


def right(questions: Sequence[Likelihoods]) -> Float[np.ndarray, " n"]:
  """1 where the likeliest candidate is the answer, else 0."""
  return np.array([float(q.probabilities.argmax() == q.answer) for q in questions], np.float64)


def brier(questions: Sequence[Likelihoods]) -> Float[np.ndarray, " n"]:
  """Squared errors of all candidates' probabilities, from 0 to 2 (Brier 1950).

  An answer that is no candidate is one of probability 0.
  """
  scores = []
  for probabilities, answer in ((q.probabilities, q.answer) for q in questions):
    hit = probabilities[answer] if answer >= 0 else 0.0
    scores.append((probabilities**2).sum() - 2 * hit + 1)
  return np.array(scores, np.float64)


def reliability(questions: Sequence[Likelihoods], bins: int = BINS) -> list[Bin]:
  """Equally wide ranges of confidence that have questions, by rising confidence."""
  confidence, correct = _confidence(questions), right(questions)
  places = _places(confidence, bins)
  found = []
  for place in np.unique(places):
    inside = places == place
    ends = float(place / bins), float((place + 1) / bins)
    means = float(confidence[inside].mean()), float(correct[inside].mean())
    found.append(Bin(*ends, int(inside.sum()), *means))
  return found


def calibration_error(questions: Sequence[Likelihoods]) -> Statistic:
  """ECE (Naeini et al. 2015; Guo et al. 2017): how far confidence is from accuracy, by `BINS`.

  It is above 0 for perfect models too, the more the fewer the questions.
  """
  confidence, correct = _confidence(questions), right(questions)
  places, gaps = _places(confidence, BINS), correct - confidence
  return lambda rows: float(
    np.abs(np.bincount(places[rows], gaps[rows], minlength=BINS)).sum() / len(rows)
  )


def auroc(questions: Sequence[Likelihoods]) -> Statistic:
  """Mean over the classes of how often the class is likelier where it is right, ties half.

  A class is a candidate, normalised; it is ranked over the questions that offer it, if it is
  right in some of them and wrong in others. nan without such classes, as where every question
  has choices of its own.
  """
  offered: dict[str, list[tuple[int, float, bool]]] = {}
  for row, (choices, probabilities, answer) in enumerate(questions):
    for index, choice in enumerate(choices):
      told = (row, float(probabilities[index]), index == answer)
      offered.setdefault(normalise(choice), []).append(told)
  classes = []
  for entries in offered.values():
    rows, scores, positive = map(np.array, zip(*entries, strict=True))
    if positive.any() and not positive.all():
      classes.append((rows, np.unique(scores, return_inverse=True)[1], positive))

  def statistic(chosen: Int[np.ndarray, " n"]) -> float:
    weights = np.bincount(chosen, minlength=len(questions))
    areas = [_area(places, weights[rows], positive) for rows, places, positive in classes]
    areas = [area for area in areas if np.isfinite(area)]
    return float(np.mean(areas)) if areas else float("nan")

  return statistic


def risk_coverage(
  questions: Sequence[Likelihoods],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
  """Coverage and risk: answering the surest share of the questions, how many are wrong of it.

  Questions of the same confidence are taken in a random order, on average.
  """
  return _curve(_confidence(questions), 1 - right(questions))


def risk_coverage_area(questions: Sequence[Likelihoods]) -> Statistic:
  """AURC (Geifman & El-Yaniv 2017): the mean risk over all coverages, 0 for a perfect model."""
  confidence, wrong = _confidence(questions), 1 - right(questions)
  return lambda rows: float(_curve(confidence[rows], wrong[rows])[1].mean())


LIKELIHOOD_METRICS: dict[str, LikelihoodMetric] = {
  "likelihood_accuracy": LikelihoodMetric(1, per_sample=right),
  "brier": LikelihoodMetric(1, per_sample=brier),
  "ece": LikelihoodMetric(1, of_set=calibration_error),
  "auroc": LikelihoodMetric(1, of_set=auroc),
  "aurc": LikelihoodMetric(1, of_set=risk_coverage_area),
}


def _confidence(questions: Sequence[Likelihoods]) -> Float[np.ndarray, " n"]:
  return np.array([q.probabilities.max() for q in questions], np.float64)


def _places(confidence: Float[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " n"]:
  """The bin of each, whose upper end belongs to it."""
  return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def _area(
  places: Int[np.ndarray, " n"], weights: Int[np.ndarray, " n"], positive: np.ndarray
) -> float:
  """Mann and Whitney's share of pairs in order, of samples that count so many times."""
  ups, downs = np.bincount(places, weights * positive), np.bincount(places, weights * ~positive)
  pairs = ups.sum() * downs.sum()
  below = np.cumsum(downs) - downs / 2
  return float(ups @ below / pairs) if pairs else float("nan")


def _curve(
  confidence: Float[np.ndarray, " n"], wrong: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
  _, blocks = np.unique(-confidence, return_inverse=True)
  order = np.argsort(blocks, kind="stable")
  rates = np.bincount(blocks, wrong) / np.bincount(blocks)
  answered = np.arange(1, len(wrong) + 1)
  return answered / len(wrong), np.cumsum(rates[blocks[order]]) / answered
