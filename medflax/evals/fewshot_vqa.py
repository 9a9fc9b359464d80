"""Few-shot question answering: answers, candidates' likelihoods, metrics, and blind controls.

Every question is asked as it is ("image") and, with the same support, under each control of
`medflax.evals.trials`. docs/evaluation.md explains what the files of an evaluation hold.
"""

import dataclasses
import functools
import hashlib
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree
from tqdm import tqdm

from medflax.data.documents import Episode, Media, Prompt
from medflax.data.mixture import resolve
from medflax.data.support import select
from medflax.evals import base, scoring
from medflax.evals.answering import Answerer
from medflax.evals.asking import Asker, under_controls
from medflax.evals.demonstrations import ChosenSupport, make_demonstrations, make_support
from medflax.evals.progress import Progress, drop
from medflax.evals.trials import CONTROLS, Trial
from medflax.inference.decoding import make_decoder
from medflax.inference.features import FeatureStore, MediaFeatures, embed_with
from medflax.metrics.intervals import Measurement
from medflax.metrics.likelihood import LIKELIHOOD_METRICS
from medflax.metrics.scorers import make_metrics
from medflax.metrics.text import normalise
from medflax.utils import UserError, pick

OWN_CHOICES, TRAIN_ANSWERS = "choices", "train"  # of `Settings.candidates`

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
  """`config.evals.<name>` of type `fewshot_vqa`.

  Attributes:
    task, split: of the data set.
    num_shots: the numbers of support samples to evaluate.
    num_episodes: questions at each number of shots, or all there are if fewer.
    num_seeds: draws of the support; results are means over them, with their spread.
    demonstrations: how support is chosen, fields of `demonstrations.Demonstrations`.
    where: keys of the records and the values that they must have; {}: all are asked.
    decoding: how answers are made, fields of a decoder of `inference.decoding.DECODERS`.
    stop_strings: end an answer, beside the prompt's own marks and its first words.
    candidates: answers whose likelihood is told: "choices", each question's own; "train", all
      answers of the training split to such questions; the path of a file with one a line; "":
      none.
    length_normalised: candidates are compared by their log-probability a token.
    constrained: answers are held to the candidates.
    metrics: of the answers, names that `metrics.scorers.make_metrics` knows, or of the
      candidates' likelihoods, names in `metrics.likelihood.LIKELIHOOD_METRICS`.
    bert_model, umls_lexicon: what some metrics need: "FOLDER:LAYER" and a file.
    controls: which of `CONTROLS` to run.
    num_pictured: questions at each number of shots whose media are saved as pictures.
    slice_by: keys, "task" or those of `Sample.meta`, each of whose values is reported by itself
      as well, as `<name>/<value>/<k>shot/…`.
    data: what is other than in `config.data`, for a data set of its own.
    prompt: what is other than in `config.prompt`.
    protocol: name and version of the published protocol that these settings follow, for the record.
  """

  task: str
  split: str = "val"
  num_shots: tuple[int, ...] = (0, 1, 2, 4, 8)
  num_episodes: int = 512
  num_seeds: int = 1
  demonstrations: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  stop_strings: tuple[str, ...] = ("\n",)
  candidates: str = ""
  length_normalised: bool = True
  constrained: bool = False
  metrics: tuple[str, ...] = ("exact_match",)
  bert_model: str = ""
  umls_lexicon: str = ""
  controls: tuple[str, ...] = tuple(CONTROLS)
  batch_size: int = 128
  num_pictured: int = 8
  slice_by: tuple[str, ...] = ()
  data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  prompt: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  protocol: tuple[str, ...] = ()


class FewshotVQA:
  """Evaluator; see the module's docstring and `Settings`."""

  def __init__(self, name: str, config: Any, context: base.EvalContext):
    self.name = name
    self.settings = settings = base.read_settings(Settings, name, config)
    self.context = context = _own_context(context, settings, name)
    base.check_task(name, settings.task, context.dataset)
    base.check_names(name, "controls", settings.controls, CONTROLS)
    field = f"config.evals.{name}"
    with base.named(f"{field}.decoding"):
      decoder = make_decoder(settings.decoding)
    self._demonstrations = make_demonstrations(name, settings.demonstrations)
    self._support = make_support(
      name,
      self._demonstrations,
      context.dataset,
      task=settings.task,
      split=settings.split,
      where=settings.where,
      num_shots=settings.num_shots,
      num_episodes=settings.num_episodes,
      num_seeds=settings.num_seeds,
    )
    self._weighed = {
      name: LIKELIHOOD_METRICS[name] for name in settings.metrics if name in LIKELIHOOD_METRICS
    }
    others = [metric for metric in settings.metrics if metric not in self._weighed]
    with base.named(f"{field}.metrics"):
      files = dict(bert_model=settings.bert_model, umls_lexicon=settings.umls_lexicon)
      self._metrics = make_metrics(others, **files)
    self._candidates = self._read_candidates(f"{field}.candidates")
    for what, needs in {
      "constrained": settings.constrained,
      "metrics": bool(self._weighed),
    }.items():
      if needs and not settings.candidates:
        raise UserError(f"{field}.{what} needs {field}.candidates; set it to 'choices'")
    if settings.num_seeds < 1:
      raise UserError(f"{field}.num_seeds = {settings.num_seeds} must be at least 1")
    self._answerer = Answerer(
      model=context.model,
      tokenizer=context.tokenizer,
      prompt=context.prompt,
      inline=context.data_config.media_tokens > 0,
      put=lambda batch: base.put_all(batch, context),
      decoder=decoder,
      stop_strings=settings.stop_strings,
      batch_size=settings.batch_size,
      constrained=settings.constrained,
      seed=context.seed,
    )

  def run(
    self, params: PyTree, step: int, store: FeatureStore | None = None
  ) -> dict[str, Measurement]:
    """Asks every question, scores, writes the results; see `base.Evaluator`."""
    start = time.monotonic()
    settings, notes = self.settings, []
    embed = embed_with(self.context.model, params, self._answerer.put)
    features = MediaFeatures(embed, settings.batch_size, store)
    support = self._support.read(lambda media: _vectors(media, features))
    notes += support.notes
    asker = Asker(
      self.context.tokenizer,
      self.context.prompt,
      self.context.data_config,
      features,
      self._candidates,
      alike=bool(self._demonstrations.weights),
    )
    trials = []
    for k in settings.num_shots:
      for seed in range(settings.num_seeds if k else 1):
        episodes = support.episodes(k, self.context.seed + seed)
        asked = [asker.trial(episodes[i], index=i, seed=seed) for i in range(len(episodes))]
        draw = (self.context.seed, k, seed)[: 2 + (seed > 0)]
        trials += asked + under_controls(asked, settings.controls, draw, notes)
    features.finish()
    num_programs = self._answer(trials, features, params, step)
    metrics = self._measure(trials, notes)
    base.write_results(
      self.context,
      self.name,
      step,
      task=settings.task,
      split=settings.split,
      metrics=metrics,
      samples=self._records(trials, support, step),
      notes=notes,
      protocol=dict(zip(("name", "version"), settings.protocol, strict=False)) or None,
      dataset={"name": self.context.dataset.name, "version": self.context.dataset.version},
      prompt=dataclasses.asdict(self.context.prompt),
      decoding={**dataclasses.asdict(self._answerer.decoder), "stop_strings": self._answerer.cuts},
      demonstrations=dataclasses.asdict(self._demonstrations)
      | {"seeds": list(range(settings.num_seeds))},
      candidates=settings.candidates,
      coverage=scoring.coverage(trials),
      scorers={name: metric.signature for name, metric in (self._metrics | self._weighed).items()},
      programs={"embed": features.programs, "generate": num_programs},
    )
    drop(base.results_folder(self.context, self.name, step))
    for note in notes:
      log.warning("%s: %s", self.name, note)
    seconds = time.monotonic() - start
    log.info("%s: %d answers in %.1f s", self.name, len(trials), seconds)
    return metrics

  def _read_candidates(self, field: str) -> tuple[str, ...] | None:
    """What every question is weighed with; None for its own choices, () for nothing."""
    given, settings = self.settings.candidates, self.settings
    if not given or given == OWN_CHOICES:
      return None if given else ()
    if given == TRAIN_ANSWERS:
      part, task = resolve(self.context.dataset, settings.task)
      if not (samples := getattr(part, "samples", None)):
        raise UserError(f"{field}: {part.name} is generated; it has no training answers to list")
      pool = select(field, samples(task, "train"), settings.where)
      texts = [pool.text(i).answer for i in range(len(pool))]
    else:
      texts = _lines(given, field)
    by_form = {normalise(text): text for text in reversed(texts) if text}
    if not by_form:
      raise UserError(f"{field}: {given} has no answers")
    return tuple(sorted(by_form.values()))

  def _answer(
    self, trials: Sequence[Trial], features: MediaFeatures, params: PyTree, step: int
  ) -> int:
    """Fills in every trial's reply; returns how many shapes of prompts there were."""
    questions = [trial.question for trial in trials]
    batches = self._answerer.batches(questions)
    folder = base.results_folder(self.context, self.name, step)
    with (
      Progress(folder, self._fingerprint(params, step)) as progress,
      tqdm(total=len(trials), desc=self.name, unit=" answers", leave=False, disable=None) as bar,
    ):
      numbers = [number for number in range(len(batches)) if number not in progress.replies]
      waiting = [batches[number] for number in numbers]
      answered = self._answerer.replies(waiting, questions, features, params)
      for number, (batch, replies) in zip(numbers, answered, strict=True):
        progress.add(number, replies)
        bar.update(len(batch.members))
      for number, batch in enumerate(batches):
        for i, reply in zip(batch.members, progress.replies[number], strict=True):
          trials[i].reply = reply
    return len({(batch.shape, batch.shared is not None) for batch in batches})

  def _fingerprint(self, params: PyTree, step: int) -> str:
    """Tells whether replies that an interrupted evaluation left are this one's."""
    sums = [float(jnp.sum(leaf, dtype=jnp.float32)) for leaf in jax.tree.leaves(params)]
    context = self.context
    made_of = (
      dataclasses.asdict(self.settings) | {"data": None, "bert_model": None},
      *(context.prompt, context.dataset.name, context.dataset.version, context.seed, step, sums),
    )
    return hashlib.sha256(repr(made_of).encode()).hexdigest()

  def _measure(self, trials: Sequence[Trial], notes: list[str]) -> dict[str, Measurement]:
    settings, metrics = self.settings, {}
    scoring.score(trials, self._metrics)
    slices = scoring.by_slice(trials, self.name, settings.slice_by, notes)
    for name, members in ({self.name: trials} | slices).items():
      for k in settings.num_shots:
        metrics |= scoring.measure(
          [trial for trial in members if trial.num_shots == k],
          f"{name}/{k}shot",
          self._metrics,
          self._weighed,
          seed=self.context.seed,
          length_normalised=settings.length_normalised,
        )
    return metrics

  def _records(
    self, trials: Sequence[Trial], support: ChosenSupport, step: int
  ) -> Iterator[dict[str, Any]]:
    """The lines of samples.jsonl, saving the pictures they name."""
    folder = base.results_folder(self.context, self.name, step)
    # Media are not kept, so that those shown as pictures are read once more.
    episodes = functools.cache(lambda k: support.episodes(k, self.context.seed))
    for trial in trials:
      query, examples = trial.episode.query, trial.episode.support
      pictures: list[list[str]] = [[] for _ in (query, *examples)]
      shown = trial.condition == "image" and trial.seed == 0
      if shown and trial.index < self.settings.num_pictured:
        episode = episodes(trial.num_shots)[trial.index]
        pictures = _pictures(folder, f"{trial.num_shots}shot-{trial.index}", episode)
      yield {
        "id": query.id,
        "group": query.group,
        "task": query.task,
        "num_shots": trial.num_shots,
        "seed": trial.seed,
        "condition": trial.condition,
        "question": query.question,
        "answer": query.answer,
        "prediction": trial.reply.text,
        "correct": trial.correct,
        "scores": trial.scores,
        "candidates": scoring.weighed(trial, self.settings.length_normalised),
        "stop": trial.reply.stop,
        "choices": query.choices,
        "meta": dict(query.meta),
        "media": pictures[0],
        "support": [
          {"id": s.id, "question": s.question, "answer": s.answer, "media": paths}
          for s, paths in zip(examples, pictures[1:], strict=True)
        ],
      }


def _pictures(folder: pathlib.Path, stem: str, episode: Episode) -> list[list[str]]:
  """Saves the media of the query, then of each support sample."""
  roles = ("query", *(f"support{i}" for i in range(len(episode.support))))
  return [
    base.write_pictures(folder, f"{stem}-{role}", sample.media)
    for role, sample in zip(roles, (episode.query, *episode.support), strict=True)
  ]


def _own_context(context: base.EvalContext, settings: Settings, name: str) -> base.EvalContext:
  """The run's context with the evaluation's own data and prompt."""
  if settings.prompt:
    known = {field.name: field for field in dataclasses.fields(Prompt)}
    for field in settings.prompt:
      pick(known, field, f"field of config.evals.{name}.prompt")
    prompt = dataclasses.replace(context.prompt, **settings.prompt)
    context = dataclasses.replace(context, prompt=prompt)
  if settings.data:
    data, dataset = base.own_data(name, context.data_config, settings.data, context.seed)
    context = dataclasses.replace(context, data_config=data, dataset=dataset)
  return context


def _lines(path: str, field: str) -> list[str]:
  try:
    return [line.strip() for line in pathlib.Path(path).read_text("utf-8").splitlines()]
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"{field}: {path!r} is neither {OWN_CHOICES!r} nor {TRAIN_ANSWERS!r} nor a file of answers "
      f"({error})"
    ) from None


def _vectors(media: Sequence[Media], features: MediaFeatures) -> Float[np.ndarray, "n d"]:
  """The mean feature of each."""
  rows = np.array([[features.add(item.array, item.kind)] for item in media])
  features.finish()
  return features.take(rows)[:, 0].mean(axis=1)
