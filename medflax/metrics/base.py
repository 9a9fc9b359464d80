"""What a metric of answers is: a number for every sample and one for the set."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from medflax.metrics.intervals import Measurement, Statistic, bootstrap, jackknife
from medflax.utils import UserError

Scorer = Callable[[Sequence[str], Sequence[Sequence[str]]], Float[np.ndarray, " n"]]
ChoiceScorer = Callable[
  [Sequence[str], Sequence[Sequence[str]], Sequence[Sequence[str]]], Float[np.ndarray, " n"]
]
# What a set scores, by its samples' indices, so that resamples of them are cheap.
SetScorer = Callable[[Sequence[str], Sequence[Sequence[str]]], Statistic]


@dataclasses.dataclass(frozen=True)
class Metric:
  """A metric of predictions against one or more references each.

  Attributes:
    version: goes up when the same answers may score otherwise.
    per_sample: the number of every sample; `with_choices`: of the offered choices too.
    of_corpus: the field's number of the whole set where it is not the mean of the samples'.
    package: the distribution that computes it, whose version is part of the signature.
    source: the user's file that scores depend on, as the signature names it.
    highest: what the set may score at most; the least is 0.
    with_choices: whether answers are read by the choices that the questions offer.
  """

  version: int
  per_sample: Scorer | ChoiceScorer
  of_corpus: SetScorer | None = None
  package: str = ""
  source: str = ""
  highest: float = 1.0
  with_choices: bool = False

  def samples(
    self,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    choices: Sequence[Sequence[str]] = (),
  ) -> Float[np.ndarray, " n"]:
    """One float64 for each prediction.

    Args:
      choices: of every question, in order; metrics that need none take no notice.

    Raises:
      UserError: if a prediction has no reference or, where they are needed, no choices, or if
        `package` is not installed.
    """
    _check(predictions, references)
    if not self.with_choices:
      return self._run(self.per_sample, predictions, references)
    _check_choices(predictions, choices)
    return self._run(self.per_sample, predictions, references, choices)

  def corpus(
    self,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    choices: Sequence[Sequence[str]] = (),
  ) -> float:
    """The number of the whole set.

    Raises:
      UserError: if there is nothing to score, or as `samples` does.
    """
    _check_some(predictions)
    if self.of_corpus is None:
      return float(self.samples(predictions, references, choices).mean())
    _check(predictions, references)
    return float(self._run(self.of_corpus, predictions, references)(np.arange(len(predictions))))

  def measure(
    self,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    groups: Sequence[str],
    *,
    seed: int,
    choices: Sequence[Sequence[str]] = (),
  ) -> Measurement:
    """`corpus` with its interval; `groups` and `seed` as of `intervals.bootstrap`.

    Raises:
      UserError: as `corpus` does.
    """
    _check_some(predictions)
    if self.of_corpus is None:
      return bootstrap(self.samples(predictions, references, choices), groups, seed=seed)
    _check(predictions, references)
    statistic = self._run(self.of_corpus, predictions, references)
    return jackknife(statistic, groups, seed=seed, highest=self.highest)

  @property
  def signature(self) -> str:
    """The version of the metric, its package's and its source, to be kept beside every number.

    Raises:
      UserError: if `package` is not installed.
    """
    parts = [f"v{self.version}", *filter(None, [self.source])]
    try:
      if self.package:
        parts.append(f"{self.package} {importlib.metadata.version(self.package)}")
      return ", ".join(parts)
    except importlib.metadata.PackageNotFoundError as error:
      raise self._missing(error) from None

  def _run(self, scorer: Callable[..., Any], *texts: Sequence) -> Any:
    try:
      return scorer(*texts)
    except ModuleNotFoundError as error:
      raise self._missing(error) from None

  def _missing(self, error: Exception) -> UserError:
    return UserError(
      f"this metric is {self.package}'s, which is not installed ({error}); "
      "run: pip install 'medflax[metrics]'"
    )


def best_of(score: Callable[[str, str], float]) -> Scorer:
  """A metric of one prediction and one reference, at the reference where it is highest."""

  def samples(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
  ) -> Float[np.ndarray, " n"]:
    pairs = zip(predictions, references, strict=True)
    return np.array([max(score(p, r) for r in rs) for p, rs in pairs], np.float64)

  return samples


def of_totals(
  counts: Callable[[Sequence[str], Sequence[Sequence[str]]], Float[np.ndarray, "n k"]],
  score: Callable[[Float[np.ndarray, " k"]], float],
) -> SetScorer:
  """What a set scores whose counts add up over its samples."""

  def of_set(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Statistic:
    table = counts(predictions, references)
    return lambda rows: float(score(table[rows].sum(axis=0)))

  return of_set


def words(text: str) -> list[str]:
  """Lower-case words between white space, punctuation attached."""
  return text.lower().split()


def _check_some(predictions: Sequence[str]) -> None:
  if not predictions:
    raise UserError("nothing to score: 0 predictions; check the task, the split and the filters")


def _check_choices(predictions: Sequence[str], choices: Sequence[Sequence[str]]) -> None:
  if len(choices) != len(predictions) or not all(choices):
    without = sum(not offered for offered in choices) or len(predictions)
    raise UserError(
      f"{without} of {len(predictions)} questions have no choices to match answers with; "
      "keep those that have some (`where`), or drop this metric"
    )


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
  if len(predictions) != len(references):
    raise ValueError(f"{len(predictions)} predictions, {len(references)} lists of references")
  if any(isinstance(texts, str) for texts in references):
    raise ValueError("references: a list of texts for every prediction, not a text")
  if empty := [index for index, texts in enumerate(references) if not texts]:
    raise UserError(
      f"prediction {empty[0]} of {len(predictions)} has no reference to score against"
    )
