"""Questions in, replies out: prompts are batched, read once, continued and weighed.

What an evaluation, `tools.predict` and the Python API have in common. Questions of about the same
length share a program; those that begin alike (one support set for all) share what was read.
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Int32, PyTree

from medflax.data.documents import END_OF_CHUNK, IMAGE_TOKEN, Prompt
from medflax.data.encode import Batch, Encoded, RowShape, collate
from medflax.data.tokenizer import Tokenizer
from medflax.evals.base import lagged
from medflax.inference import decode, likelihood
from medflax.inference.decoding import Decoder, Generation
from medflax.inference.features import MediaFeatures
from medflax.inference.stops import STOP_REASONS, Stops, make_stops

# Prompts up to each of these share a program; compiling costs more than padding.
LENGTH_BUCKETS = (64, 256, 1024, 4096)
LENGTH_MULTIPLE = 32
MAX_CANDIDATES = 32  # weighed in one pass; more take several


@dataclasses.dataclass(frozen=True)
class Question:
  """One prompt, encoded, that the model is to continue.

  Attributes:
    encoded: without its media.
    rows: where `MediaFeatures` has the media, in reading order; -1 shows nothing.
    candidates: tokens of the answers to weigh; () for none.
    shared: equal for questions whose prompts begin with the same support and its media.
    num_shared_media: of that support.
    number: what sampling depends on besides the seed.
  """

  encoded: Encoded
  rows: tuple[int, ...]
  candidates: tuple[tuple[int, ...], ...] = ()
  shared: Hashable = ()
  num_shared_media: int = 0
  number: int = 0

  def showing(self, rows: tuple[int, ...]) -> "Question":
    """The same words with other media."""
    shared = (self.shared, rows[: self.num_shared_media])
    return dataclasses.replace(self, rows=rows, shared=shared)

  def part(self, start: int, stop: int | None) -> "Question":
    """Tokens `start` to `stop` with the media that stand there: support or query."""
    fields = ("tokens", "loss_mask", "media_index", "media_first", "soft_index")
    cut = {name: self.encoded[name][start:stop] for name in fields}
    rows = self.rows[self.num_shared_media :] if start else self.rows[: self.num_shared_media]
    return dataclasses.replace(self, encoded=self.encoded | cut, rows=rows)


@dataclasses.dataclass(frozen=True)
class Reply:
  """What the model said.

  Attributes:
    text: the answer, cut where it ends.
    stop: why it ended, one of `STOP_REASONS`.
    logprobs: of each candidate, the end included, in nats.
  """

  text: str
  stop: str
  logprobs: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Answerer:
  """How questions are answered.

  Attributes:
    model, tokenizer, prompt: of the run.
    inline: whether media stand between the tokens (`data.media_tokens` > 0).
    put: places a host batch, held in full by every process, on the devices.
    decoder: how a prompt is continued.
    stop_strings: end an answer as the prompt's end token does.
    batch_size: of rows, a multiple of the devices that they are divided among.
    constrained: answers are held to the candidates.
    seed: of sampling.
  """

  model: nn.Module
  tokenizer: Tokenizer
  prompt: Prompt
  inline: bool
  put: Callable[[Batch], Mapping[str, Array]]
  decoder: Decoder
  stop_strings: tuple[str, ...] = ()
  batch_size: int = 32
  constrained: bool = False
  seed: int = 0

  @property
  def cuts(self) -> tuple[str, ...]:
    """What no answer holds: the marks, the next question's first words, `stop_strings`."""
    ends = (END_OF_CHUNK, IMAGE_TOKEN, self.prompt.opening, *self.stop_strings)
    return tuple(filter(None, ends))

  def batches(self, questions: Sequence[Question]) -> list["QuestionBatch"]:
    """Divides questions into batches of one shape each; the same for the same questions."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, question in enumerate(questions):
      groups[question.shared].append(i)
    alone, batches = [], []
    for members in groups.values():
      shared = _shared([questions[i] for i in members])
      # Batches of few rows would cost more than what reading once saves.
      few = shared.length < LENGTH_MULTIPLE or 2 * len(members) < self.batch_size
      if few or not self.model.shares_prefixes:
        alone += members
      else:
        batches += self._divided(questions, members, shared)
    return self._divided(questions, sorted(alone), None) + batches

  def _divided(
    self, questions: Sequence[Question], members: Sequence[int], shared: "Shared | None"
  ) -> list["QuestionBatch"]:
    start = shared.length if shared else 0
    buckets: dict[int, list[int]] = defaultdict(list)
    for i in members:
      length = len(questions[i].encoded["tokens"]) - start
      buckets[next((b for b in LENGTH_BUCKETS if length <= b), length)].append(i)
    made = []
    for _, inside in sorted(buckets.items()):
      chosen = [questions[i] for i in inside]
      longest = max(len(question.encoded["tokens"]) for question in chosen) - start
      candidates = [tokens for question in chosen for tokens in question.candidates]
      shape = Shape(
        length=-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE,
        slots=max(len(q.rows) - (q.num_shared_media if shared else 0) for q in chosen),
        candidates=(max(len(q.candidates) for q in chosen), max(map(len, candidates), default=0)),
      )
      starts = range(0, len(inside), self.batch_size)
      made += [QuestionBatch(inside[i : i + self.batch_size], shape, shared) for i in starts]
    return made

  def replies(
    self,
    batches: Sequence["QuestionBatch"],
    questions: Sequence[Question],
    features: MediaFeatures,
    params: PyTree,
  ) -> Iterator[tuple["QuestionBatch", list[Reply]]]:
    """Answers batch by batch: the batch, and the replies in its order.

    Args:
      batches: from `batches`, all or some of them in their order.
      questions: all of them.
      features: of their media, finished.
      params: of the model.
    """

    def launched() -> Iterator[tuple[QuestionBatch, Launched]]:
      shared, prefix = None, None
      for batch in batches:
        chosen = [questions[i] for i in batch.members]
        if batch.shared is not shared:
          shared, prefix = batch.shared, None  # frees the one before
          if shared:
            prefix = self._prefix(chosen[0], shared, features, params)
        yield batch, self._launch(chosen, batch, prefix, features, params)

    for batch, running in lagged(launched()):
      yield batch, self._read(running, [questions[i] for i in batch.members])

  def _prefix(
    self, question: Question, shared: "Shared", features: MediaFeatures, params: PyTree
  ) -> PyTree:
    """What a question, and all others with the same support, begin with."""
    begun = question.part(0, shared.length)
    length = -(-shared.length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    row = self._arrays([begun], 1, (length, len(begun.rows)), 0, features)
    prefix = decode.read_prefix(self.model, params, row)
    return prefix.without_media() if shared.media_unseen else prefix

  def _launch(
    self,
    chosen: Sequence[Question],
    batch: "QuestionBatch",
    prefix: PyTree,
    features: MediaFeatures,
    params: PyTree,
  ) -> "Launched":
    """Starts answering on the device; `_read` waits for it."""
    shape, start = batch.shape, batch.shared.length if batch.shared else 0
    if start:
      chosen = [question.part(start, None) for question in chosen]
    arrays = self._arrays(chosen, self.batch_size, (shape.length, shape.slots), start, features)
    candidates = _candidate_array(chosen, (self.batch_size, *shape.candidates))
    answers = min(shape.candidates[0], MAX_CANDIDATES)
    read = decode.read_prompts(
      self.model,
      params,
      self.put(arrays),
      max(self.decoder.max_new_tokens, shape.candidates[1]),
      prefix,
      branches=max(self.decoder.branches, answers),
    )
    numbers = np.array([q.number for q in chosen] + [0] * (self.batch_size - len(chosen)))
    generation = self.decoder.generate(
      self.model,
      params,
      *read,
      stops=self.stops,
      pad_id=self.tokenizer.pad_id,
      key=jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(self.seed)))(numbers),
      prompt_lengths=np.where(arrays["segment_ids"] > 0, arrays["positions"] + 1, 0).max(axis=1),
      allowed=candidates if self.constrained and candidates.size else None,
    )
    weighed = [
      likelihood.score(self.model, params, *read, candidates[:, i : i + MAX_CANDIDATES])
      for i in range(0, shape.candidates[0], MAX_CANDIDATES)
    ]
    return Launched(generation, weighed)

  def _read(self, launched: "Launched", questions: Sequence[Question]) -> list[Reply]:
    """The replies to a batch's questions, in their order."""
    tokens, reasons = map(decode.fetch, launched.generation)
    weighed = [decode.fetch(part) for part in launched.weighed]
    logprobs = np.concatenate(weighed, axis=1) if weighed else np.zeros((len(tokens), 0))
    replies = []
    for question, row, reason, values in zip(questions, tokens, reasons, logprobs, strict=False):
      text = decode.postprocess(self.tokenizer.decode(row), self.cuts)
      scores = tuple(float(value) for value in values[: len(question.candidates)])
      replies.append(Reply(text, STOP_REASONS[int(reason)], scores))
    return replies

  @functools.cached_property
  def stops(self) -> Stops:
    """The prompt's end and the tokenizer's, and `cuts` as text."""
    end, eos = self.prompt.end, self.tokenizer.eos_id
    ids = ([self.tokenizer.special_id(end)] if end else []) + ([] if eos is None else [eos])
    return make_stops(self.tokenizer, ids, self.cuts)

  def _arrays(
    self,
    questions: Sequence[Question],
    num_rows: int,
    shape: tuple[int, int],
    start: int,
    features: MediaFeatures,
  ) -> Batch:
    """A left-padded batch of prompts, of which `start` tokens were read before."""
    length, slots = shape
    documents = [[q.encoded] for q in questions] + [[]] * (num_rows - len(questions))
    row_shape = RowShape(length, {}, self.inline)
    batch = collate(documents, row_shape, self.tokenizer.pad_id, left_pad=True)
    batch["positions"] += start * (batch["segment_ids"] > 0).astype(np.int32)
    if slots:
      rows = np.full((num_rows, slots), -1, np.int32)
      for row, question in zip(rows, questions, strict=False):
        row[: len(question.rows)] = question.rows
      first = 1 + (questions[0].num_shared_media if start else 0)
      batch["features"] = features.take(rows)
      batch["media_ordinal"] = np.where(rows < 0, 0, first + np.arange(slots)).astype(np.int32)
    return batch


class Shape(NamedTuple):
  """Of a batch: tokens and media slots of a prompt; candidates, and tokens of each."""

  length: int
  slots: int
  candidates: tuple[int, int]


class Shared(NamedTuple):
  """What the prompts of some questions begin with.

  Attributes:
    length: in tokens.
    media_unseen: whether it has media that no later token sees.
  """

  length: int
  media_unseen: bool


class QuestionBatch(NamedTuple):
  """Questions, by number, that are asked at once.

  `shared` is read once for all batches that have the same one; None: there is nothing of that kind.
  """

  members: Sequence[int]
  shape: Shape
  shared: Shared | None


class Launched(NamedTuple):
  """What a batch will have said; `weighed` holds log-probabilities of candidates, by passes."""

  generation: Generation
  weighed: list[Float[Array, "b c"]]


def _shared(questions: Sequence[Question]) -> Shared:
  """The tokens that these prompts begin with alike, without any that sees more media.

  At least one token is left over.
  """
  first = questions[0]
  seen = first.encoded["media_index"] > first.num_shared_media
  length = min(len(q.encoded["tokens"]) for q in questions) - 1
  length = min([length, *np.flatnonzero(seen)[:1].tolist()])
  for question in questions[1:]:
    for name in ("tokens", "media_index", "media_first", "soft_index"):
      differs = first.encoded[name][:length] != question.encoded[name][:length]
      length = min([length, *np.flatnonzero(differs)[:1].tolist()])
  later = np.concatenate([question.encoded["media_first"][length:] for question in questions])
  unseen = not ((later > 0) & (later <= first.num_shared_media)).any()
  return Shared(length, media_unseen=unseen and first.num_shared_media > 0)


def _candidate_array(
  questions: Sequence[Question], shape: tuple[int, int, int]
) -> Int32[np.ndarray, "b c l"]:
  """Candidates of each row, padded by -1."""
  out = np.full(shape, -1, np.int32)
  for row, question in zip(out, questions, strict=False):
    for place, tokens in zip(row, question.candidates, strict=False):
      place[: len(tokens)] = tokens
  return out
