"""From replies to numbers: metrics with intervals, slices and baselines."""

import functools
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medflax.evals.trials import Trial
from medflax.metrics.base import Metric
from medflax.metrics.intervals import Measurement, across_seeds, bootstrap
from medflax.metrics.likelihood import LikelihoodMetric, Likelihoods, from_candidates
from medflax.metrics.text import normalise

MAX_SLICES = 20

log = logging.getLogger(__name__)


def score(trials: Sequence[Trial], metrics: Mapping[str, Metric]) -> None:
  """Fills in every trial's `scores`."""
  for name, metric in metrics.items():
    values = metric.samples(*answers(trials), [t.episode.query.choices for t in trials])
    for trial, value in zip(trials, values, strict=True):
      trial.scores[name] = float(value)


def answers(trials: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
  """What was said, and the references of each."""
  return [t.reply.text for t in trials], [references(t) for t in trials]


def references(trial: Trial) -> list[str]:
  """The query's answer and, where its record has them, `answers` that are as good."""
  query = trial.episode.query
  return list(dict.fromkeys((query.answer, *query.meta.get("answers", ()))))


def weighed(trial: Trial, length_normalised: bool) -> list[dict[str, Any]]:
  """Each candidate's "text", "logprob" and "probability" among them; [] if there is none.

  Probabilities are the softmax of log-probabilities, or of those a token.
  """
  if not trial.candidates:
    return []
  logprobs = np.array(trial.reply.logprobs)
  if length_normalised:
    logprobs = logprobs / [len(tokens) for tokens in trial.question.candidates]
  weights = np.exp(logprobs - logprobs.max())
  shares = map(float, weights / weights.sum())
  return [
    {"text": text, "logprob": logprob, "probability": share}
    for text, logprob, share in zip(trial.candidates, trial.reply.logprobs, shares, strict=True)
  ]


def likelihoods(trials: Sequence[Trial], length_normalised: bool) -> list[Likelihoods]:
  """The weighed candidates; the answer's place is -1 where it is not among them."""
  return [
    from_candidates(weighed(trial, length_normalised), trial.episode.query.answer)
    for trial in trials
  ]


def coverage(trials: Sequence[Trial]) -> float | None:
  """The share of questions with candidates whose answer is one of these; None without any."""
  asked = [t for t in trials if t.condition == "image" and t.candidates]
  forms = {texts: frozenset(map(normalise, texts)) for texts in {t.candidates for t in asked}}
  found = [normalise(t.episode.query.answer) in forms[t.candidates] for t in asked]
  return sum(found) / len(found) if found else None


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
  likelihood_metrics: Mapping[str, LikelihoodMetric],
  *,
  seed: int,
  length_normalised: bool,
) -> dict[str, Measurement]:
  """`<prefix>/<metric>[@<condition>]` and the baselines of scored trials at one number of shots.

  Of a question that was asked with several draws of support all answers count, resampled together;
  how far the draws differ stands under `<key>#seeds`.
  """
  measured = {}
  by_condition: dict[str, list[Trial]] = defaultdict(list)
  for trial in trials:
    by_condition[trial.condition].append(trial)
  for condition, chosen in by_condition.items():
    suffix = "" if condition == "image" else f"@{condition}"
    numbers = functools.partial(
      _numbers,
      metrics=metrics,
      likelihood_metrics=likelihood_metrics,
      seed=seed,
      length_normalised=length_normalised,
    )
    found = numbers(chosen)
    draws = sorted({trial.seed for trial in chosen})
    if len(draws) > 1:
      runs = [numbers([trial for trial in chosen if trial.seed == draw]) for draw in draws]
      found |= {f"{name}#seeds": value for name, value in across_seeds(runs).items()}
    measured |= {f"{prefix}/{_with(name, suffix)}": value for name, value in found.items()}
  queries = {t.episode.query.id: t.episode.query for t in by_condition["image"]}.values()
  mean = lambda values, of: bootstrap(values, [query.group for query in of], seed=seed)
  if closed := [query for query in queries if query.choices]:
    measured[f"{prefix}/chance"] = mean([1 / len(q.choices) for q in closed], closed)
  said = [normalise(query.answer) for query in queries]
  [(majority, _)] = Counter(said).most_common(1)
  measured[f"{prefix}/majority"] = mean([answer == majority for answer in said], queries)
  for name in (*metrics, *likelihood_metrics):
    if f"{prefix}/{name}" in measured:
      log.info("%s %s %s", prefix, name, measured[f"{prefix}/{name}"])
  return measured


def _with(name: str, suffix: str) -> str:
  metric, mark, seeds = name.partition("#")
  return f"{metric}{suffix}{mark}{seeds}"


def _numbers(
  trials: Sequence[Trial],
  *,
  metrics: Mapping[str, Metric],
  likelihood_metrics: Mapping[str, LikelihoodMetric],
  seed: int,
  length_normalised: bool,
) -> dict[str, Measurement]:
  """Every metric of some trials; a set may have no number, such as an AUROC of one class."""
  groups, found = [trial.group for trial in trials], {}
  for name, metric in metrics.items():
    if metric.of_corpus is None:
      found[name] = bootstrap([trial.scores[name] for trial in trials], groups, seed=seed)
    else:
      found[name] = metric.measure(*answers(trials), groups, seed=seed)
  questions = likelihoods(trials, length_normalised) if likelihood_metrics else []
  for name, metric in likelihood_metrics.items():
    if (measurement := metric.measure(questions, groups, seed=seed)) is not None:
      found[name] = measurement
  return found
