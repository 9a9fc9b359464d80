"""The kinds of visual experts by name, and how one is opened."""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from medflax import api
from medflax.experts.captioner import GitExpert
from medflax.experts.deplot import DePlotExpert
from medflax.metrics.tables import BREAK
from medflax.utils import UserError, pick

# Puts images (H, W, 3) of any size into words, one text for each.
Expert = Callable[[Sequence[UInt8[np.ndarray, "_ _ 3"]]], Sequence[str]]

QUESTION = "Write a short report of this image."
MAX_NEW_TOKENS = 96


class RunExpert:
  """A run of medflax's own, or a config file with weights, that is asked about each image.

  Raises:
    UserError: as `medflax.api.load`.
  """

  def __init__(self, where: str, question: str = QUESTION):
    """`question` is what a run that reads one is asked."""
    self._model, self._question = api.load(where), question

  def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[str]:
    """What the run says of each image; a linearised table as lines."""
    queries = [api.Query(self._question, [image]) for image in images]
    answers = self._model.ask_all(queries, decoding={"max_new_tokens": MAX_NEW_TOKENS})
    return [answer.text.replace(f" {BREAK} ", "\n") for answer in answers]


def call(where: str) -> Any:
  """A function of one's own, `package.module:name`.

  Raises:
    UserError: if there is none.
  """
  module, _, name = where.partition(":")
  try:
    found = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as error:
    raise UserError(f"expert call:{where}: {error}; write call:package.module:name") from None
  if not callable(found):
    raise UserError(f"expert call:{where}: is not a function")
  return found


EXPERTS: dict[str, Callable[[str], Expert]] = {
  "git": GitExpert,
  "deplot": DePlotExpert,
  "run": RunExpert,
  "call": call,
}


def expert(spec: str) -> Expert:
  """The expert of `TYPE:WHERE`, TYPE a key of `EXPERTS`: `git:DIR`, `run:runs/med_git`.

  It is opened when it is first asked, so that what it lacks is told then.

  Raises:
    UserError: if there is no such type.
  """
  name, given, where = spec.partition(":")
  if not given or not where:
    raise UserError(f"expert {spec!r}: write TYPE:WHERE, such as run:WORKDIR")
  make = pick(EXPERTS, name, "type of expert")
  opened = functools.cache(lambda: make(where))
  return lambda images: opened()(images)
