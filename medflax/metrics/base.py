"""What a metric of answers is: a number for every sample and one for the set."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from medflax.utils import UserError

Scorer = Callable[[Sequence[str], Sequence[Sequence[str]]], Float[np.ndarray, " n"]]
CorpusScorer = Callable[[Sequence[str], Sequence[Sequence[str]]], float]


@dataclasses.dataclass(frozen=True)
class Metric:
  """A metric of predictions against one or more references each.

  Attributes:
    version: goes up when the same answers may score otherwise.
    per_sample: the number of every sample.
    of_corpus: the field's number of the whole set where it is not the mean of the samples'.
    package: the distribution that computes it, whose version is part of the signature.
  """

  version: int
  per_sample: Scorer
  of_corpus: CorpusScorer | None = None
  package: str = ""

  def samples(
    self, predictions: Sequence[str], references: Sequence[Sequence[str]]
  ) -> Float[np.ndarray, " n"]:
    """One float64 for each prediction.

    Raises:
      UserError: if a prediction has no reference, or `package` is not installed.
    """
    _check(predictions, references)
    return self._run(self.per_sample, predictions, references)

  def corpus(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The number of the whole set.

    Raises:
      UserError: if there is nothing to score, or as `samples` does.
    """
    _check(predictions, references)
    if not predictions:
      raise UserError("nothing to score: 0 predictions; check the task, the split and the filters")
    if self.of_corpus is None:
      return float(self.samples(predictions, references).mean())
    return self._run(self.of_corpus, predictions, references)

  @property
  def signature(self) -> str:
    """The version of the metric and of its package, to be kept beside every number."""
    if not self.package:
      return f"v{self.version}"
    return f"v{self.version}, {self.package} {importlib.metadata.version(self.package)}"

  def _run(self, scorer: Callable[..., Any], *texts: Sequence) -> Any:
    try:
      return scorer(*texts)
    except ModuleNotFoundError as error:
      raise UserError(
        f"this metric is {self.package}'s, which is not installed ({error}); "
        "run: pip install 'medflax[metrics]'"
      ) from None


def best_of(score: Callable[[str, str], float]) -> Scorer:
  """A metric of one prediction and one reference, at the reference where it is highest."""

  def samples(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
  ) -> Float[np.ndarray, " n"]:
    pairs = zip(predictions, references, strict=True)
    return np.array([max(score(p, r) for r in rs) for p, rs in pairs], np.float64)

  return samples


def words(text: str) -> list[str]:
  """Lower-case words between white space, punctuation attached."""
  return text.lower().split()


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
  if len(predictions) != len(references):
    raise ValueError(f"{len(predictions)} predictions, {len(references)} lists of references")
  if any(isinstance(texts, str) for texts in references):
    raise ValueError("references: a list of texts for every prediction, not a text")
  if empty := [index for index, texts in enumerate(references) if not texts]:
    raise UserError(
      f"prediction {empty[0]} of {len(predictions)} has no reference to score against"
    )
