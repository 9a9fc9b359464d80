"""From replies to numbers: metrics with intervals, slices and baselines."""

import logging
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from medflax.evals.trials import Trial
from medflax.metrics.base import Metric
from medflax.metrics.intervals import Measurement, across_seeds, bootstrap, bootstrap_of
from medflax.metrics.likelihood import Likelihoods
from medflax.metrics.text import exact_match, normalise

MAX_SLICES = 20
CORPUS_RESAMPLES = 200  # of a metric of the whole set, which is dear to compute

T = TypeVar("T")

log = logging.getLogger(__name__)


def score(trials: Sequence[Trial], metrics: Mapping[str, Metric]) -> None:
  """Fills in every trial's `scores`."""
  for name, metric in metrics.items():
    values = metric.samples(*answers(trials))
    for trial, value in zip(trials, values, strict=True):
      trial.scores[name] = float(value)


def answers(trials: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
  """What was said, and the references of each."""
  return [t.reply.text for t in trials], [references(t) for t in trials]


def references(trial: Trial) -> list[str]:
  """The query's answer and, where its record has them, `answers` that are as good."""
  query = trial.episode.query
  return list(dict.fromkeys((query.answer, *query.meta.get("answers", ()))))


def probabilities(trial: Trial, length_normalised: bool) -> np.ndarray:
  """Of each candidate, among them: the softmax of log-probabilities, or of those a token."""
  logprobs = np.array(trial.reply.logprobs)
  if length_normalised:
    logprobs = logprobs / [len(tokens) for tokens in trial.question.candidates]
  weights = np.exp(logprobs - logprobs.max())
  return weights / weights.sum()


def likelihoods(trials: Sequence[Trial], length_normalised: bool) -> list[Likelihoods]:
  """The weighed candidates; the answer's place is -1 where it is not among them."""
  made = []
  for trial in trials:
    right = [exact_match(text, trial.episode.query.answer) for text in trial.candidates]
    answer = right.index(True) if any(right) else -1
    made.append(Likelihoods(trial.candidates, probabilities(trial, length_normalised), answer))
  return made


def by_slice(
  trials: Sequence[Trial], name: str, keys: Sequence[str], notes: list[str]
) -> dict[str, list[Trial]]:
  """The trials of each value of each of `keys`, by the name to report them under."""
  slices: dict[str, list[Trial]] = {}
  for key in keys:
    by_value: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
      query = trial.episode.query
      value = {**query.meta, "task": query.task}.get(key, f"no {key}")
      by_value[str(value).replace("/", "-")].append(trial)
    if len(by_value) > MAX_SLICES:
      notes.append(f"slice_by: the {len(by_value)} values of {key} are too many to show")
    elif len(by_value) > 1:
      slices |= {f"{name}/{value}": by_value[value] for value in sorted(by_value)}
  return slices


def measure(
  trials: Sequence[Trial],
  prefix: str,
  metrics: Mapping[str, Metric],
  weighed: Mapping[str, Callable[[Sequence[Likelihoods]], float]],
  *,
  seed: int,
  length_normalised: bool,
) -> dict[str, Measurement]:
  """`<prefix>/<metric>[@<condition>]` and the baselines of scored trials at one number of shots.

  A question that was asked with several draws of support counts once, by its mean; how far the
  draws differ stands under `<key>#seeds`.
  """
  measured = {}
  by_condition: dict[str, list[Trial]] = defaultdict(list)
  for trial in trials:
    by_condition[trial.condition].append(trial)
  for condition, chosen in by_condition.items():
    suffix = "" if condition == "image" else f"@{condition}"
    cell = Cell(chosen, seed)
    for name, metric in metrics.items():
      measured |= cell.of_metric(f"{prefix}/{name}{suffix}", name, metric)
    draws = [likelihoods(draw, length_normalised) for draw in cell.draws if weighed]
    for name, function in weighed.items():
      measured |= cell.of_set(f"{prefix}/{name}{suffix}", draws, function)
  queries = {t.episode.query.id: t.episode.query for t in by_condition["image"]}.values()
  mean = lambda values, of: bootstrap(values, [query.group for query in of], seed=seed)
  if closed := [query for query in queries if query.choices]:
    measured[f"{prefix}/chance"] = mean([1 / len(q.choices) for q in closed], closed)
  said = [normalise(query.answer) for query in queries]
  [(majority, _)] = Counter(said).most_common(1)
  measured[f"{prefix}/majority"] = mean([answer == majority for answer in said], queries)
  for name in (*metrics, *weighed):
    log.info("%s %s %s", prefix, name, measured[f"{prefix}/{name}"])
  return measured


class Cell:
  """The trials of one number of shots and condition: the same questions with each draw."""

  def __init__(self, trials: Sequence[Trial], seed: int):
    by_seed: dict[int, dict[int, Trial]] = defaultdict(dict)
    for trial in trials:
      by_seed[trial.seed][trial.index] = trial
    asked = set.intersection(*map(set, by_seed.values()))  # a control may leave some out
    self.draws = [[draw[index] for index in sorted(asked)] for draw in by_seed.values()]
    self.groups = [trial.episode.query.group for trial in self.draws[0]]
    self.seed = seed

  def of_metric(self, key: str, name: str, metric: Metric) -> dict[str, Measurement]:
    """The mean of scores, or the metric's number of the whole set where that is another."""
    if metric.of_corpus is not None:
      return self.of_set(key, self.draws, lambda trials: metric.corpus(*answers(trials)))
    scores = np.array([[trial.scores[name] for trial in draw] for draw in self.draws])
    measured = {key: bootstrap(scores.mean(axis=0), self.groups, seed=self.seed)}
    return measured | self._spread(key, scores.mean(axis=1).tolist())

  def of_set(
    self, key: str, draws: Sequence[Sequence[T]], statistic: Callable[[Sequence[T]], float]
  ) -> dict[str, Measurement]:
    """A number that only a set has, of something about every question with each draw."""
    mean = lambda index: statistics.fmean(statistic([draw[i] for i in index]) for draw in draws)
    measurement = bootstrap_of(mean, self.groups, seed=self.seed, num_resamples=CORPUS_RESAMPLES)
    return {key: measurement} | self._spread(key, [statistic(draw) for draw in draws])

  @staticmethod
  def _spread(key: str, values: Sequence[float]) -> dict[str, Measurement]:
    if len(values) < 2:
      return {}
    [spread] = across_seeds([{key: Measurement(v, 0.0, (v, v), 1)} for v in values]).values()
    return {f"{key}#seeds": spread}
