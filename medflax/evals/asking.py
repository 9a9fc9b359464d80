"""From episodes to trials: prompts are encoded, media handed to `MediaFeatures`; and replies."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from medflax.data.documents import Episode, Media, Prompt, Sample, episode_document
from medflax.data.encode import Encoded, encode_document, media_options
from medflax.data.tokenizer import Tokenizer
from medflax.evals.answering import Answerer, Question
from medflax.evals.trials import CONTROLS, LEFT_OUT, Trial, check_support, without_media
from medflax.inference.features import MediaFeatures


@dataclasses.dataclass(frozen=True)
class Asker:
  """Makes questions of episodes.

  Attributes:
    tokenizer, prompt: of the run.
    data: `config.data`, which says how media stand in the text.
    features: what media are handed to.
    candidates: answers to weigh; None: a query's own choices; (): none.
    alike: whether support was chosen for being like the query.
  """

  tokenizer: Tokenizer
  prompt: Prompt
  data: Any
  features: MediaFeatures
  candidates: tuple[str, ...] | None = ()
  alike: bool = False

  def trial(self, episode: Episode, *, index: int = 0, seed: int = 0) -> Trial:
    """The trial of an episode as it is.

    Raises:
      UserError: if the support has the query, or a sample of its group.
    """
    check_support(episode)
    encoded = self._encoded(episode)
    media: list[Media] = encoded["media"]
    rows = tuple(self.features.add(item.array, item.kind) for item in media)
    blanks = [Media(np.zeros_like(item.array), item.kind) for item in media]
    places = iter(zip((item.kind for item in media), rows, strict=True))
    samples = (*episode.support, episode.query)
    shown = tuple(tuple(itertools.islice(places, len(s.media))) for s in samples)
    texts = episode.query.choices if self.candidates is None else self.candidates
    bare = without_media(episode)
    question = Question(
      encoded=encoded | {"media": []},
      rows=rows,
      candidates=tuple(self._tokens(bare.query, text) for text in texts),
      shared=tuple(sample.id for sample in episode.support),
      num_shared_media=sum(len(sample.media) for sample in episode.support),
      number=index,
    )
    return Trial(
      num_shots=len(episode.support),
      condition="image",
      index=index,
      episode=bare,
      question=question.showing(rows),
      bare=dataclasses.replace(
        question,
        encoded=self._encoded(bare),
        rows=(),
        shared=(question.shared, "bare"),
        num_shared_media=0,
      ),
      shown=shown,
      blank_rows=tuple(self.features.add(blank.array, blank.kind) for blank in blanks),
      seed=seed,
      alike=self.alike,
      candidates=tuple(texts),
    )

  def _encoded(self, episode: Episode, *, with_answer: bool = False) -> Encoded:
    document = episode_document(episode, self.prompt, with_answer=with_answer)
    return encode_document(document, self.tokenizer, **media_options(self.data))

  def _tokens(self, query: Sample, text: str) -> tuple[int, ...]:
    """An answer as it would follow the question, with what ends it."""
    answered = self._encoded(Episode(dataclasses.replace(query, answer=text)), with_answer=True)
    asked = self._encoded(Episode(query))["tokens"]
    if (answered["tokens"][: len(asked)] != asked).any():  # a token straddles both
      return tuple(self.tokenizer.encode(text))
    return tuple(answered["tokens"][len(asked) :].tolist())


def under_controls(
  trials: Sequence[Trial], controls: Sequence[str], seed: Sequence[int], notes: list[str]
) -> list[Trial]:
  """The trials of one number of shots under each control; what is left out is noted."""
  made = []
  for condition in controls:
    changed = CONTROLS[condition](trials, seed)
    made += [trial for trial in changed if trial is not None]
    if left_out := changed.count(None):
      notes.append(
        f"{trials[0].num_shots}shot@{condition} leaves out {left_out} of {len(trials)} "
        f"questions: {LEFT_OUT[condition]}"
      )
  return made


def answer(
  trials: Sequence[Trial], answerer: Answerer, features: MediaFeatures, params: PyTree
) -> None:
  """Fills in every trial's reply; `features` are of their media, finished."""
  questions = [trial.question for trial in trials]
  batches = answerer.batches(questions)
  for batch, replies in answerer.replies(batches, questions, features, params):
    for i, reply in zip(batch.members, replies, strict=True):
      trials[i].reply = reply
