"""From a run to an answer in ten lines.

    import medflax.api as medflax

    model = medflax.load("runs/x")
    shown = medflax.Example("Is there a fracture?", "no", images=["a.png"])
    answer = model.ask(
      "Is there a fracture?", images=["b.png"], support=[shown], choices=("yes", "no")
    )
    print(answer.text, answer.stop, answer.candidates)

Questions are put, answered and weighed by what evaluations use (`evals.asking`,
`evals.answering`), so that an answer is the one that an evaluation would have scored.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medflax.data.documents import IMAGE, VOLUME, Episode, Media, Prompt, Sample, Source
from medflax.data.media_chain import MediaChain
from medflax.data.readers import read_kind
from medflax.data.tokenizer import Tokenizer
from medflax.data.transforms.scan import Scan
from medflax.evals.answering import Answerer
from medflax.evals.asking import Asker, answer
from medflax.evals.scoring import weighed
from medflax.evals.trials import Trial
from medflax.inference.decoding import make_decoder
from medflax.inference.features import MediaFeatures, embed_with
from medflax.loading import Loaded, load_model
from medflax.parallel import sharding
from medflax.utils import UserError

# A file, or an array that is an image (H, W, C) or a volume (D, H, W, C), uint8 or float in [0, 1].
Shown = str | pathlib.Path | np.ndarray
_SOURCE = Source("api", "", "")
_DECODING = {"type": "greedy", "max_new_tokens": 32}


@dataclasses.dataclass(frozen=True)
class Example:
  """A question with its answer, to be shown before the one that is asked."""

  question: str
  answer: str
  images: Sequence[Shown] = ()
  volumes: Sequence[Shown] = ()


@dataclasses.dataclass(frozen=True)
class Query:
  """What `Assistant.ask_all` asks; the fields are those of `Assistant.ask`."""

  question: str
  images: Sequence[Shown] = ()
  volumes: Sequence[Shown] = ()
  support: Sequence[Example] = ()
  choices: Sequence[str] = ()


class Candidate(NamedTuple):
  """An answer that was weighed.

  Attributes:
    text: one of the choices.
    logprob: of all its tokens and of what ends it, in nats.
    probability: among the candidates, by log-probability a token.
  """

  text: str
  logprob: float
  probability: float


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the model says.

  Attributes:
    text: the answer, cut where it ends.
    stop: why it ended, one of `stops.STOP_REASONS`.
    candidates: the choices, in their order.
  """

  text: str
  stop: str
  candidates: tuple[Candidate, ...] = ()


def load(
  where: str | pathlib.Path,
  *,
  checkpoint: str | pathlib.Path = "",
  step: int | str | None = None,
  overrides: Mapping[str, str] | None = None,
) -> "Assistant":
  """The model of a run, or of a config file with the weights it names.

  Args:
    where: a workdir, or `FILE.py[:ARG=VALUE,…]`.
    checkpoint: the run that a config file's weights are of; "": those of `config.init`.
    step: of the checkpoint: its number, "newest" or "best"; None: the best where the run chooses
      one, else the newest.
    overrides: of fields of a config file, {"data.max_tokens": "512"}.

  Raises:
    UserError: as `loading.load_model`.
  """
  pairs = [*(overrides or {}).items()]
  return Assistant(load_model(where, checkpoint=checkpoint, step=step, overrides=pairs))


class Assistant:
  """A model with its weights on the devices, to be asked.

  Attributes:
    loaded: where it comes from.
    prompt: its template; a record's own keys cannot be in it.
  """

  def __init__(self, loaded: Loaded):
    """Reads the weights."""
    self.loaded, config = loaded, loaded.config
    self.prompt = Prompt(**config.prompt.to_dict())
    sizes = {IMAGE: config.data.image_size, VOLUME: config.data.volume_size}
    self._chain = MediaChain(sizes, config.data.transforms.to_dict(), config.seed)
    with loaded.running():
      self._params = loaded.params()

  def ask(
    self,
    question: str,
    *,
    images: Sequence[Shown] = (),
    volumes: Sequence[Shown] = (),
    support: Sequence[Example] = (),
    choices: Sequence[str] = (),
    decoding: Mapping[str, Any] | None = None,
    constrained: bool = False,
  ) -> Answer:
    """Asks one question.

    Args:
      question: the text that stands for the question in the run's prompt.
      images: of the question, files or arrays, in the order shown; volumes come after them.
      volumes: likewise.
      support: examples shown before it, first to last.
      choices: answers whose likelihood is told.
      decoding: a `type` in `DECODERS` and its fields; greedy by default.
      constrained: the answer is one of the choices.

    Raises:
      UserError: for a file that cannot be read, media that the model does not take, a decoding
        that there is not, or a question that does not fit.
    """
    query = Query(question, images, volumes, support, choices)
    [answer] = self.ask_all([query], decoding=decoding, constrained=constrained)
    return answer

  def ask_all(
    self,
    queries: Sequence[Query],
    *,
    decoding: Mapping[str, Any] | None = None,
    constrained: bool = False,
    stop_strings: Sequence[str] = (),
    batch_size: int = 16,
  ) -> list[Answer]:
    """Asks many questions at once; the answers are those that `ask` gives to each.

    An `Example` that several share is read and embedded once, and so is a support that all have.

    Args:
      queries: see `ask`.
      decoding, constrained: for all of them.
      stop_strings: end an answer as the prompt's end does.
      batch_size: how many are answered together.

    Raises:
      UserError: as `ask`.
    """
    if constrained and not all(query.choices for query in queries):
      raise UserError("constrained answers need choices")
    shown = {id(example): example for query in queries for example in query.support}
    # The same examples have the same ids, by which a shared support is told.
    read = {key: self._sample(f"example {key}", x, x.answer) for key, x in shown.items()}
    tokenizer, config = self.loaded.parts.tokenizer, self.loaded.config
    # A few sizes, for each is a program of its own.
    rows = min(batch_size, 1 << max(len(queries) - 1, 0).bit_length())
    ways = sharding.num_row_shards(self.loaded.parts.mesh)
    rows = -(-rows // ways) * ways
    with self.loaded.running():
      embed = embed_with(self.loaded.parts.model, self._params, self.loaded.parts.put)
      features = MediaFeatures(embed, rows)
      asker = Asker(tokenizer, self.prompt, config.data, features, None)
      trials = []
      for i, query in enumerate(queries):
        asked = self._sample(f"question {i + 1}", query, "", tuple(query.choices))
        support = tuple(read[id(example)] for example in query.support)
        trials.append(asker.trial(Episode(asked, support), index=i))
      features.finish()
      answerer = self._answerer(tokenizer, decoding, constrained, tuple(stop_strings), rows)
      answer(trials, answerer, features, self._params)
    return [_answer(trial) for trial in trials]

  def _answerer(
    self,
    tokenizer: Tokenizer,
    decoding: Mapping[str, Any] | None,
    constrained: bool,
    stop_strings: tuple[str, ...],
    rows: int,
  ) -> Answerer:
    config = self.loaded.config
    return Answerer(
      model=self.loaded.parts.model,
      tokenizer=tokenizer,
      prompt=self.prompt,
      inline=config.data.media_tokens > 0,
      put=self.loaded.parts.put,
      decoder=make_decoder(_DECODING | dict(decoding or {})),
      stop_strings=stop_strings,
      batch_size=rows,
      constrained=constrained,
      seed=config.seed,
    )

  def _sample(
    self, name: str, asked: Query | Example, answer: str, choices: tuple[str, ...] = ()
  ) -> Sample:
    kinds = ((IMAGE, asked.images), (VOLUME, asked.volumes))
    media = tuple(self._media(kind, item) for kind, items in kinds for item in items)
    return Sample(name, media, asked.question, answer, _SOURCE, choices=choices)

  def _media(self, kind: str, item: Shown) -> Media:
    slots = self.loaded.parts.config.data.max_media
    if not slots.get(kind):
      known = " and ".join(name for name, count in slots.items() if count) or "text alone"
      raise UserError(f"the model takes no {kind}, but {known}")
    if isinstance(item, np.ndarray):
      name, scan = f"{kind} array", Scan(item, kind)
    else:
      name = str(item)
      scan = read_kind(item, kind, smallest=self._chain.smallest(kind))
    try:
      return self._chain(scan)
    except UserError as error:
      raise UserError(f"{name} {error}") from None


def _answer(trial: Trial) -> Answer:
  candidates = tuple(Candidate(**item) for item in weighed(trial, length_normalised=True))
  return Answer(trial.reply.text, trial.reply.stop, candidates)
