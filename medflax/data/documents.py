"""Documents: what every data set, real or generated, turns into before tokenisation.

Three small value types, all host-side NumPy:

* `Sample`: one question about some media, with its answer and where it came from.
* `Episode`: a query `Sample` with the `support` samples (the shots) shown before it.
* `Document`: an ordered list of `Text`, `Special` and `Media` segments; few-shot prompts,
  captions, interleaved textbook pages and instruction turns are all documents.
"""

import dataclasses
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from medflax.utils import UserError

IMAGE, VOLUME, SIGNAL = "image", "volume", "signal"
# Array rank of one item of each media kind: (H, W, C), (D, H, W, C), (T, C).
MEDIA_RANKS = {IMAGE: 3, VOLUME: 4, SIGNAL: 2}

IMAGE_TOKEN = "<image>"  # marks where a media item stands, of whatever kind
END_OF_CHUNK = "<|endofchunk|>"  # closes one question-answer pair (OpenFlamingo's name)

# The length of an endless sequence of episodes, which comes in random order; training shuffles
# a shorter one anew for every pass.
ENDLESS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Text:
  """A run of plain text: a special token's name in it is spelt out, never taken as that token.

  `loss`: whether the model is trained to produce it. `apart`: whether it is tokenised by itself
  and not in one piece with the text before it.
  """

  text: str
  loss: bool = False
  apart: bool = False


@dataclasses.dataclass(frozen=True)
class Special:
  """One special token, by name; only code puts it there, so users' text cannot forge it."""

  token: str
  loss: bool = False


@dataclasses.dataclass(frozen=True)
class Media:
  """One image (H, W, C), volume (D, H, W, C) or signal (T, C).

  `array` is uint8 in [0, 255] or float32 in [0, 1]; the vision tower normalises further.

  Raises:
    ValueError: if `kind` is unknown or the array's rank or dtype does not fit it.
  """

  array: np.ndarray
  kind: str = IMAGE

  def __post_init__(self):
    if self.kind not in MEDIA_RANKS:
      raise ValueError(f"unknown media kind {self.kind!r}; known: {', '.join(MEDIA_RANKS)}")
    if self.array.ndim != MEDIA_RANKS[self.kind] or self.array.dtype not in (np.uint8, np.float32):
      raise ValueError(
        f"{self.kind} needs a uint8 or float32 array of rank {MEDIA_RANKS[self.kind]}, "
        f"got {self.array.dtype} of shape {self.array.shape}"
      )


Segment = Text | Special | Media


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a sample came from; written beside every prediction."""

  dataset: str
  version: str
  split: str


@dataclasses.dataclass(frozen=True)
class Document:
  """Segments in reading order.

  Attributes:
    id: names the document (its query sample) in messages.
    starts: the segments at which its parts begin, which truncation drops whole: the samples of
      an episode. None: a part begins at every run of media.
    bos: whether the tokenizer's `<bos>`, if it has one, comes first.
    whole: whether all of its text carries loss, though what is not marked so may be cut.
  """

  segments: tuple["Segment", ...]
  source: Source
  id: str = ""
  starts: tuple[int, ...] | None = None
  bos: bool = True
  whole: bool = False


@dataclasses.dataclass(frozen=True)
class Sample:
  """One question about `media` and its answer.

  `group` names what must not straddle a split or a support set (a patient, a case);
  `choices` are the allowed answers where the question is closed; `meta` holds any other
  keys of the record, by which results can be sliced.
  """

  id: str
  media: tuple[Media, ...]
  question: str
  answer: str
  source: Source
  task: str = "vqa"
  choices: tuple[str, ...] = ()
  group: str = ""
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Episode:
  """A query and the support samples shown before it, first to last."""

  query: Sample
  support: tuple[Sample, ...] = ()


@runtime_checkable
class SampleSource(Protocol):
  """Random access to samples; `groups[i]` is known without decoding sample i."""

  groups: Sequence[str]

  def __len__(self) -> int: ...
  def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class Dataset(Protocol):
  """A named, versioned collection of tasks.

  `media_per_sample` tells for each kind of media the most that one sample has.
  """

  name: str
  version: str
  tasks: tuple[str, ...]
  media_per_sample: Mapping[str, int]

  def episodes(
    self, task: str, split: str, num_shots: int | tuple[int, int], num_episodes: int | None = None
  ) -> Sequence[Episode]:
    """Random access to episodes, deterministic in (data set, its seed, task, split, index).

    `num_shots` is the number of support samples, or an inclusive range to draw from.
    `num_episodes` None means all there are: the length of a finite split, or the largest
    index of a generator. Support samples never share the query's group.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Prompt:
  """How an episode reads: templates whose fields are filled per sample.

  A field is `{question}`, `{answer}`, `{media}` (what `media` makes of each media item),
  `{choices}` ("A: left B: right"), any key of the sample's record, such as `{caption}`, or a
  special token by name, such as `{</s>}`. The
  default is Med-Flamingo's prompt (snap-stanford/med-flamingo, demo) without its instruction.

  Attributes:
    instruction: once, before everything; plain text.
    question: what the model reads of a sample; media come first unless `{media}` says where.
    answer: what it is to produce.
    end: the special token after an answer; "": none.
    media: one media item; "" leaves media out.
    bos: whether a document begins with the tokenizer's `<bos>`.

  Raises:
    UserError: for a template that is none.
  """

  instruction: str = ""
  question: str = "Question: {question} Answer:"
  answer: str = " {answer}"
  end: str = END_OF_CHUNK
  media: str = "{media}"
  bos: bool = True

  def __post_init__(self):
    for name in ("question", "answer", "media"):
      try:
        _fields(getattr(self, name))
      except ValueError as error:
        raise UserError(f"prompt.{name} = {getattr(self, name)!r}: {error}") from None

  @property
  def opening(self) -> str:
    """The first words of every sample, by which an answer that runs on can be cut."""
    texts = [text.strip() for text, _ in _fields(self.question)]
    return next(filter(None, texts), "")

  def question_segments(self, sample: Sample) -> list[Segment]:
    """A sample up to its answer."""
    shown = [x for media in sample.media for x in self._fill("media", sample, False, [media])]
    placed = any(field == "media" for _, field in _fields(self.question))
    text = self._fill("question", sample, False, shown)
    return text if placed else shown + text

  def answer_segments(self, sample: Sample, loss: bool) -> list[Segment]:
    """A sample's answer and what ends it.

    Behind a space it is tokenised apart, as it is generated: no token may have the space too.
    """
    text = self._fill("answer", sample, loss, [])
    if text and isinstance(text[0], Text) and self.question.endswith(" "):
      text[0] = dataclasses.replace(text[0], apart=True)
    return [*text, Special(self.end, loss)] if self.end else text

  def _fill(
    self, template: str, sample: Sample, loss: bool, media: Sequence[Segment]
  ) -> list[Segment]:
    values = {**sample.meta, "question": sample.question, "answer": sample.answer}
    if sample.choices:
      lettered = zip(string.ascii_uppercase, sample.choices, strict=False)
      values["choices"] = " ".join(f"{letter}: {choice}" for letter, choice in lettered)
    segments: list[Segment] = []
    text = ""
    for literal, field in _fields(getattr(self, template)):
      text += literal
      if field == "media" or field.startswith("<"):
        segments += [Text(text, loss)] if text else []
        segments += media if field == "media" else [Special(field, loss)]
        text = ""
      elif field in values:
        text += str(values[field])
      elif field:
        raise UserError(
          f"prompt.{template} has {{{field}}}, which the record of sample {sample.id!r} lacks; "
          f"it has {', '.join(sorted(values))}"
        )
    return [*segments, Text(text, loss)] if text else segments


def _fields(template: str) -> list[tuple[str, str]]:
  """Pairs of literal text and the field after it, "" where there is none."""
  return [(text, field or "") for text, field, _, _ in string.Formatter().parse(template)]


def shots_range(num_shots: int | tuple[int, int]) -> tuple[int, int]:
  """The fewest and the most shots that an episode may have.

  Raises:
    UserError: unless it is a number ≥ 0 or a range of two.
  """
  low, high = (num_shots, num_shots) if isinstance(num_shots, int) else num_shots
  if not 0 <= low <= high:
    raise UserError(f"num_shots is {num_shots}; it must be a number ≥ 0 or a range (low, high)")
  return low, high


def _repeated(episode: Episode) -> list[bool]:
  answers = [sample.answer for sample in episode.support]
  return [answer in answers[:i] for i, answer in enumerate(answers)]


# Which support answers a model is trained to produce, beside the query's: "all" is Flamingo's
# interleaved objective; "repeated" leaves out those that no earlier example of the episode has
# shown, for answers that are arbitrary until then, whose loss is noise; "none" leaves the query's;
# "whole" adds all other text, as Alpaca-LoRA does ("train on inputs").
WHOLE = "whole"
TARGETS: dict[str, Callable[[Episode], list[bool]]] = {
  "all": lambda episode: [True] * len(episode.support),
  "repeated": _repeated,
  "none": lambda episode: [False] * len(episode.support),
  WHOLE: lambda episode: [True] * len(episode.support),
}


def episode_document(
  episode: Episode, prompt: Prompt, *, with_answer: bool = True, targets: str = "all"
) -> Document:
  """Lays an episode out as one interleaved document.

  With `with_answer` (training, perplexity) the query's answer carries loss, and those support
  answers that `targets`, a key of `TARGETS`, names. Without it (generation) the document ends
  where the model has to continue, and nothing carries loss.
  """
  chosen = TARGETS[targets](episode)
  segments: list[Segment] = []
  starts = []
  if prompt.instruction:
    segments.append(Text(prompt.instruction))
  for sample, is_target in zip(episode.support, chosen, strict=True):
    starts.append(len(segments))
    segments += prompt.question_segments(sample)
    segments += prompt.answer_segments(sample, loss=with_answer and is_target)
  starts.append(len(segments))
  segments += prompt.question_segments(episode.query)
  if with_answer:
    segments += prompt.answer_segments(episode.query, loss=True)
  query, whole = episode.query, with_answer and targets == WHOLE
  return Document(tuple(segments), query.source, query.id, tuple(starts), prompt.bos, whole)
