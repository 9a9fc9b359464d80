"""Few-shot question answering: greedy answers, exact match, and two blind controls.

Every question is asked as it is ("image") and, with the same support, under each control of
`medflax.evals.trials`.
"""

import dataclasses
import itertools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree
from tqdm import tqdm

from medflax.data.documents import (
  END_OF_CHUNK,
  IMAGE_TOKEN,
  Media,
  Sample,
  episode_document,
)
from medflax.data.encode import RowShape, collate, encode_document, media_options
from medflax.evals import base
from medflax.evals.trials import CONTROLS, LEFT_OUT, Trial, check_support, without_media
from medflax.inference import decode
from medflax.metrics.intervals import Measurement, bootstrap
from medflax.metrics.text import normalise

# Prompts share a program with all of up to so many shots; compiling costs more than padding.
SHOT_BUCKETS = (2, 8, 32, 128)
LENGTH_MULTIPLE = 32
MAX_SLICES = 20

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
  """`config.evals.<name>` of type `fewshot_vqa`.

  Attributes:
    num_shots: the numbers of support samples to evaluate.
    num_episodes: questions at each number of shots, or all there are if fewer.
    controls: which of `CONTROLS` to run.
    num_pictured: questions at each number of shots whose media are saved as pictures.
    slice_by: keys, "task" or those of `Sample.meta`, each of whose values is reported by itself
      as well, as `<name>/<value>/<k>shot/…`.
  """

  task: str
  split: str = "val"
  num_shots: tuple[int, ...] = (0, 1, 2, 4, 8)
  num_episodes: int = 512
  controls: tuple[str, ...] = ("shuffled", "no_image")
  max_new_tokens: int = 8
  batch_size: int = 128
  num_pictured: int = 8
  slice_by: tuple[str, ...] = ()


class FewshotVQA:
  """Evaluator; see the module's docstring and `Settings`."""

  def __init__(self, name: str, config: Any, context: base.EvalContext):
    self.name, self.context = name, context
    self.settings = base.read_settings(Settings, name, config)
    base.check_task(name, self.settings.task, context.dataset)
    base.check_names(name, "controls", self.settings.controls, CONTROLS)
    tokenizer, prompt = context.tokenizer, context.prompt
    special = [tokenizer.special_id(prompt.end)] if prompt.end else []
    special += [tokenizer.eos_id] if tokenizer.eos_id is not None else []
    self._stop_ids = np.array(special, np.int32)
    self._cuts = tuple(filter(None, (END_OF_CHUNK, IMAGE_TOKEN, prompt.opening, "\n")))

  def run(self, params: PyTree, step: int) -> dict[str, Measurement]:
    """Asks every question, scores, writes the results; see `base.Evaluator`."""
    start = time.monotonic()
    settings, notes = self.settings, []
    features = decode.MediaFeatures(
      lambda media: decode.embed(self.context.model, params, base.put_all(media, self.context)),
      settings.batch_size,
    )
    trials = [trial for k in settings.num_shots for trial in self._trials(k, features, notes)]
    features.finish()
    num_programs = self._answer(trials, features, params)
    metrics = {}
    for k in settings.num_shots:
      metrics |= self._metrics(self.name, k, [trial for trial in trials if trial.num_shots == k])
    for name, members in self._slices(trials, notes).items():
      for k in settings.num_shots:
        metrics |= self._metrics(name, k, [trial for trial in members if trial.num_shots == k])
    base.write_results(
      self.context,
      self.name,
      step,
      task=settings.task,
      split=settings.split,
      metrics=metrics,
      samples=self._records(trials, step),
      notes=notes,
      programs={"embed": features.programs, "generate": num_programs},
    )
    for note in notes:
      log.warning("%s: %s", self.name, note)
    seconds = time.monotonic() - start
    log.info("%s: %d answers in %.1f s", self.name, len(trials), seconds)
    return metrics

  def _trials(
    self, num_shots: int, features: decode.MediaFeatures, notes: list[str]
  ) -> list[Trial]:
    """All trials at one number of shots; their media are handed to `features`."""
    settings, context = self.settings, self.context
    episodes = context.dataset.episodes(
      settings.task, settings.split, num_shots, settings.num_episodes
    )
    asked = []
    for index in range(len(episodes)):
      episode = episodes[index]
      check_support(episode)
      document = episode_document(episode, context.prompt, with_answer=False)
      encoded = encode_document(document, context.tokenizer, **media_options(context.data_config))
      rows = [features.add(media.array, media.kind) for media in encoded["media"]]
      places = iter(zip((media.kind for media in encoded["media"]), rows, strict=True))
      samples = (*episode.support, episode.query)
      blanks = [Media(np.zeros_like(media.array), media.kind) for media in encoded["media"]]
      trial = Trial(
        num_shots=num_shots,
        condition="image",
        index=index,
        episode=without_media(episode),
        encoded=encoded | {"media": []},
        shown=tuple(tuple(itertools.islice(places, len(s.media))) for s in samples),
        rows=tuple(rows),
        blank_rows=tuple(features.add(blank.array, blank.kind) for blank in blanks),
      )
      asked.append(trial)
    trials = list(asked)
    for condition in settings.controls:
      replaced = CONTROLS[condition](asked, (context.seed, num_shots))
      trials += [
        dataclasses.replace(trial, condition=condition, rows=rows)
        for trial, rows in zip(asked, replaced, strict=True)
        if rows
      ]
      if left_out := replaced.count(()):
        notes.append(
          f"{num_shots}shot@{condition} leaves out {left_out} of {len(asked)} questions: "
          f"{LEFT_OUT[condition]}"
        )
    return trials

  def _answer(self, trials: Sequence[Trial], features: decode.MediaFeatures, params: PyTree) -> int:
    """Fills in every trial's prediction; returns how many shapes of prompts there were."""
    buckets: dict[int, list[Trial]] = defaultdict(list)
    for trial in trials:
      buckets[bucket_of(trial.num_shots)].append(trial)
    with tqdm(total=len(trials), desc=self.name, unit=" answers", leave=False, disable=None) as bar:
      for bucket, members in sorted(buckets.items()):
        longest = max(len(trial.encoded["tokens"]) for trial in members)
        length = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        slots = max(-(-len(trial.rows) // (trial.num_shots + 1)) for trial in members)
        shape = (length, slots * (bucket + 1))
        chunks = base.batched(members, self.settings.batch_size)
        launched = ((chunk, self._launch(chunk, shape, features, params)) for chunk in chunks)
        for chunk, generation in base.lagged(launched):
          self._read(chunk, generation)
          bar.update(len(chunk))
    return len(buckets)

  def _launch(
    self,
    trials: Sequence[Trial],
    shape: tuple[int, int],
    features: decode.MediaFeatures,
    params: PyTree,
  ) -> decode.Generation:
    """Starts generating for a batch, filled up with empty rows."""
    length, slots = shape
    missing = self.settings.batch_size - len(trials)
    documents = [[trial.encoded] for trial in trials] + [[]] * missing
    pad_id = self.context.tokenizer.pad_id
    inline = self.context.data_config.media_tokens > 0
    batch = collate(documents, RowShape(length, {}, inline), pad_id, left_pad=True)
    if slots:
      rows = np.full((self.settings.batch_size, slots), -1, np.int32)
      for row, trial in zip(rows, trials, strict=False):
        row[: len(trial.rows)] = trial.rows
      batch["features"] = features.take(rows)
      batch["media_ordinal"] = np.where(rows < 0, 0, np.arange(1, slots + 1)).astype(np.int32)
    return decode.generate(
      self.context.model,
      params,
      base.put_all(batch, self.context),
      max_new_tokens=self.settings.max_new_tokens,
      stop_ids=self._stop_ids,
      pad_id=pad_id,
    )

  def _read(self, trials: Sequence[Trial], generation: decode.Generation) -> None:
    tokens, stopped = map(decode.fetch, generation)
    for trial, row, stop in zip(trials, tokens, stopped, strict=False):  # empty rows at the end
      text = self.context.tokenizer.decode(row)
      trial.prediction = decode.postprocess(text, self._cuts)
      trial.stop = decode.STOP_REASONS[bool(stop)]

  def _slices(self, trials: Sequence[Trial], notes: list[str]) -> dict[str, list[Trial]]:
    """The trials of each value of each key of `slice_by`, by the name to report them under."""
    slices: dict[str, list[Trial]] = {}
    for key in self.settings.slice_by:
      by_value: dict[str, list[Trial]] = defaultdict(list)
      for trial in trials:
        query = trial.episode.query
        value = {**query.meta, "task": query.task}.get(key, f"no {key}")
        by_value[str(value).replace("/", "-")].append(trial)
      if len(by_value) > MAX_SLICES:
        notes.append(f"slice_by: the {len(by_value)} values of {key} are too many to show")
      elif len(by_value) > 1:
        slices |= {f"{self.name}/{value}": by_value[value] for value in sorted(by_value)}
    return slices

  def _metrics(self, name: str, num_shots: int, trials: Sequence[Trial]) -> dict[str, Measurement]:
    prefix = f"{name}/{num_shots}shot"
    metrics = {}
    for condition in ("image", *self.settings.controls):
      chosen = [trial for trial in trials if trial.condition == condition]
      if chosen or condition == "image":
        suffix = "" if condition == "image" else f"@{condition}"
        correct = [trial.correct for trial in chosen]
        queries = [trial.episode.query for trial in chosen]
        metrics[f"{prefix}/exact_match{suffix}"] = self._mean(correct, queries)
    queries = [trial.episode.query for trial in trials if trial.condition == "image"]
    if closed := [query for query in queries if query.choices]:
      metrics[f"{prefix}/chance"] = self._mean([1 / len(q.choices) for q in closed], closed)
    answers = [normalise(query.answer) for query in queries]
    [(majority, _)] = Counter(answers).most_common(1)
    is_majority = [answer == majority for answer in answers]
    metrics[f"{prefix}/majority"] = self._mean(is_majority, queries)
    log.info("%s %s", prefix, metrics[f"{prefix}/exact_match"])
    return metrics

  def _mean(self, values: Sequence[float | int], queries: Sequence[Sample]) -> Measurement:
    return bootstrap(values, [query.group for query in queries], seed=self.context.seed)

  def _records(self, trials: Sequence[Trial], step: int) -> Iterator[dict[str, Any]]:
    """The lines of samples.jsonl, saving the pictures they name."""
    folder = base.results_folder(self.context, self.name, step)
    for trial in trials:
      query, support = trial.episode.query, trial.episode.support
      pictures: list[list[str]] = [[] for _ in (query, *support)]
      if trial.condition == "image" and trial.index < self.settings.num_pictured:
        pictures = self._pictures(folder, trial)
      yield {
        "id": query.id,
        "group": query.group,
        "task": query.task,
        "num_shots": trial.num_shots,
        "condition": trial.condition,
        "question": query.question,
        "answer": query.answer,
        "prediction": trial.prediction,
        "correct": trial.correct,
        "stop": trial.stop,
        "choices": query.choices,
        "meta": dict(query.meta),
        "media": pictures[0],
        "support": [
          {"id": s.id, "question": s.question, "answer": s.answer, "media": paths}
          for s, paths in zip(support, pictures[1:], strict=True)
        ],
      }

  def _pictures(self, folder: Any, trial: Trial) -> list[list[str]]:
    """Saves the media of the query and of each support sample, which are read once more."""
    settings = self.settings
    episodes = self.context.dataset.episodes(
      settings.task, settings.split, trial.num_shots, settings.num_episodes
    )
    episode = episodes[trial.index]
    stem = f"{trial.num_shots}shot-{trial.index}"
    return [
      base.write_pictures(folder, f"{stem}-{role}", sample.media)
      for role, sample in zip(
        ("query", *(f"support{i}" for i in range(len(episode.support)))),
        (episode.query, *episode.support),
        strict=True,
      )
    ]


def bucket_of(num_shots: int) -> int:
  """The number of shots whose program these prompts share."""
  return next((bucket for bucket in SHOT_BUCKETS if num_shots <= bucket), num_shots)
