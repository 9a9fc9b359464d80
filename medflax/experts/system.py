"""Visual Med-Alpaca as a system: classifier → expert → prompt → language model.

  system = System(LanguageModel("runs/alpaca"), {"plot": DePlotExpert("deplot")}, Classifier())
  reply = system.ask("Which group has most papules?", images=["chart.png"])
  print(reply.text, reply.parts[0].text)

Shu et al. 2023, github.com/cambridgeltl/visual-med-alpaca. Nothing is trained together: what an
expert says is text, and stays in the reply for whoever wants to check it.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from medflax import api
from medflax.data.documents import IMAGE
from medflax.data.readers import read_kind
from medflax.data.tokenizer import Tokenizer
from medflax.data.transforms.intensity import show, to_media
from medflax.experts.classifier import Routed
from medflax.experts.prompts import merge
from medflax.experts.registry import Expert
from medflax.experts.templates import STOP
from medflax.loading import load_model
from medflax.utils import UserError

Picture = UInt8[np.ndarray, "_ _ 3"]
Route = Callable[[Sequence[Picture]], Sequence[Routed]]


@runtime_checkable
class Writer(Protocol):
  """What continues prompts."""

  tokenizer: Tokenizer
  max_prompt_tokens: int

  def __call__(self, prompts: Sequence[str]) -> Sequence[api.Answer]: ...


class LanguageModel:
  """A run of configs/visual_med_alpaca.py, or that file with weights, as a `Writer`.

  Attributes:
    tokenizer: its own.
    max_prompt_tokens: what its rows hold beside a response.
  """

  def __init__(
    self, where: str | pathlib.Path, *, max_new_tokens: int | None = None, **chosen: Any
  ):
    """Opens it.

    Args:
      where, chosen: as of `loading.load_model`.
      max_new_tokens: of a response; None: an eighth of a row.

    Raises:
      UserError: as `loading.load_model`, or if a row has no room for a response.
    """
    loaded = load_model(where, **chosen)
    size = loaded.config.data.max_tokens
    length = size // 8 if max_new_tokens is None else max_new_tokens
    if not 0 < length < size:
      raise UserError(f"responses of {length} tokens do not go with rows of {size}")
    self.tokenizer = loaded.parts.tokenizer
    self.max_prompt_tokens = size - length
    self._decoding = {"max_new_tokens": length}
    # The prompt is whole already, so that the run's own is not put around it.
    self._model = api.Assistant(loaded)
    plain = dict(instruction="", question="{question}", media="")
    self._model.prompt = dataclasses.replace(self._model.prompt, **plain)

  def __call__(self, prompts: Sequence[str]) -> list[api.Answer]:
    """The response to each prompt."""
    queries = [api.Query(prompt) for prompt in prompts]
    return self._model.ask_all(queries, decoding=self._decoding, stop_strings=(STOP,))


@dataclasses.dataclass(frozen=True)
class Question:
  """What is asked.

  Attributes:
    images: files, or arrays (H, W, 3) of uint8.
    expert: the kind that the images are taken for; "": what the classifier says.
  """

  text: str
  images: Sequence[api.Shown] = ()
  expert: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
  """What was made of one image.

  Attributes:
    image: its file, or "array".
    kind: what it was taken for; "" if it could not be read.
    probability: of the kind; 1 where it was given.
    text: what the expert said of it.
    shown: as much of the text as the prompt has.
    problem: why there is no text, in one line; "" if there is, or none was wanted.
  """

  image: str
  kind: str = ""
  probability: float = 1.0
  text: str = ""
  shown: str = ""
  problem: str = ""


@dataclasses.dataclass(frozen=True)
class Reply:
  """An answer and how it came about.

  Attributes:
    stop: why it ended, one of `stops.STOP_REASONS`.
    prompt: what the language model read.
  """

  text: str
  stop: str
  prompt: str
  parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True)
class System:
  """The parts, each of which may be anything that is called alike.

  Attributes:
    writer: continues prompts.
    experts: by the kind of image they are for; a kind without one has nothing to say.
    route: tells kinds of images, a `Classifier`.
  """

  writer: Writer
  experts: Mapping[str, Expert]
  route: Route

  def ask(self, question: str, images: Sequence[api.Shown] = (), expert: str = "") -> Reply:
    """Asks one question; see `Question`.

    Raises:
      UserError: if the question does not fit the model. What goes wrong with an image does not
        stop the answer, and stands in its part.
    """
    return self.ask_all([Question(question, images, expert)])[0]

  def ask_all(self, questions: Sequence[Question]) -> list[Reply]:
    """Asks many at once: every expert reads its images together.

    Raises:
      UserError: as `ask`, before anything is read.
    """
    fit = lambda text, texts: merge(
      text, texts, self.writer.tokenizer, self.writer.max_prompt_tokens
    )
    for question in questions:
      fit(question.text, ())
    parts = iter(self._parts([(q.expert, image) for q in questions for image in q.images]))
    own = [[next(parts) for _ in question.images] for question in questions]
    prompted = [
      fit(q.text, [part.text for part in mine]) for q, mine in zip(questions, own, strict=True)
    ]
    answers = self.writer([prompt.prompt for prompt in prompted])
    return [
      Reply(answer.text, answer.stop, prompt, _with_shown(mine, shown))
      for answer, (prompt, shown), mine in zip(answers, prompted, own, strict=True)
    ]

  def _parts(self, asked: Sequence[tuple[str, api.Shown]]) -> list[Part]:
    """What is made of each (given kind, image), in their order."""
    parts = [Part("array" if isinstance(image, np.ndarray) else str(image)) for _, image in asked]
    pictures: dict[int, Picture] = {}
    for i, (_, image) in enumerate(asked):
      try:
        pictures[i] = opened(image)
      except UserError as error:
        parts[i] = dataclasses.replace(parts[i], problem=str(error))
    free = [i for i in pictures if not asked[i][0]]
    routed = {i: Routed(asked[i][0], 1.0) for i in pictures}
    routed |= dict(zip(free, self.route([pictures[i] for i in free]) if free else (), strict=True))
    for i, (kind, probability) in routed.items():
      parts[i] = dataclasses.replace(parts[i], kind=kind, probability=probability)
    for kind in dict.fromkeys(kind for kind, _ in routed.values()):
      members = [i for i, found in routed.items() if found.kind == kind]
      if kind not in self.experts:
        continue
      said = consulted(kind, self.experts[kind], [pictures[i] for i in members])
      for i, (text, problem) in zip(members, said, strict=True):
        parts[i] = dataclasses.replace(parts[i], text=text, problem=problem)
    return parts


def _with_shown(parts: Sequence[Part], shown: Sequence[str]) -> tuple[Part, ...]:
  pairs = zip(parts, shown, strict=True)
  return tuple(dataclasses.replace(part, shown=text) for part, text in pairs)


def opened(image: api.Shown) -> Picture:
  """An image in three channels.

  Raises:
    UserError: if it cannot be read, or is none.
  """
  if not isinstance(image, np.ndarray):
    return to_media(show(read_kind(image, IMAGE))).array
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    raise UserError(f"an image is uint8 (H, W, 3), not {image.dtype} of shape {image.shape}")
  return image


def consulted(kind: str, expert: Expert, images: Sequence[Picture]) -> list[tuple[str, str]]:
  """An expert's text of each image, or the problem.

  If it fails on all of them together, each is tried by itself, so that one bad image spoils only
  its own.
  """
  try:
    texts = [str(text).strip() for text in expert(images)]
    if len(texts) != len(images):
      raise UserError(f"{len(texts)} texts for {len(images)} images")
  except Exception as error:  # whatever a user's function or a damaged file raises
    if len(images) > 1:
      return [said for image in images for said in consulted(kind, expert, [image])]
    reason = " ".join(str(error).split()) or type(error).__name__
    return [("", f"the expert for {kind} failed: {reason}")]
  return [(text, "" if text else f"the expert for {kind} said nothing") for text in texts]
