"""What a task is: a benchmark as one published protocol evaluates it."""

import dataclasses
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from medflax.data.documents import ENDLESS

# Fields of an evaluation that a user has to give or may choose without changing the protocol.
FREE = ("batch_size", "num_pictured", "bert_model", "umls_lexicon", "controls", "slice_by")


@dataclasses.dataclass(frozen=True)
class Task:
  """Data, no code: `evaluation` makes the section of `config.evals` that runs it.

  Attributes:
    data: of which it asks, a name in `BUILDERS`, whose prepared folder the user gives.
    source: where the protocol is published; what of it had to be settled here.
    version: goes up when the same answers may score otherwise.
    task: of the data set's; "vqa": all records.
    split: of the data set's.
    where: keys of a record and the values that it must have, of queries and support alike. Open
      and closed are `answer_type`, as the data's owner has annotated it.
    num_shots: the numbers of support examples that the protocol reports.
    num_seeds: draws of support, over which a score is averaged.
    prompt: fields of `Prompt` where the protocol has one prompt for all models; every other field
      is the model's own.
    decoding: a `type` in `DECODERS` and its fields.
    metrics: of the answers, or of the candidates' likelihoods.
    candidates: answers that are weighed. "choices": the options of a record;
      "train": the answers that the training records of `where` have; "": none.
    length_normalised: whether a candidate's log-probability is divided by its tokens.
    constrained: whether answers are held to the candidates.
    demonstrations: how support is chosen, fields of `Demonstrations`.
    slice_by: keys of a record by whose values results are told apart.
  """

  data: str
  source: str
  version: int = 1
  task: str = "vqa"
  split: str = "test"
  where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  num_shots: tuple[int, ...] = (0,)
  num_seeds: int = 1
  prompt: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  decoding: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: dict(type="greedy", max_new_tokens=32)
  )
  metrics: tuple[str, ...] = ("exact_match",)
  candidates: str = ""
  length_normalised: bool = True
  constrained: bool = False
  demonstrations: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  slice_by: tuple[str, ...] = ()

  def section(
    self, name: str, root: str | os.PathLike, changes: Mapping[str, Any] = MappingProxyType({})
  ) -> dict[str, Any]:
    """The section of `config.evals` for the prepared folder `root`: every record is asked.

    `changes` are of its fields, or "a.b" of a field's own; unless they are of `FREE` ones, the
    protocol's version says them, for the numbers are no longer the protocol's.
    """
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    fields |= {key: dict(value) for key, value in fields.items() if isinstance(value, Mapping)}
    for described in ("source", "version"):
      del fields[described]
    fields |= dict(type="fewshot_vqa", every=0, num_episodes=ENDLESS)
    fields |= dict(data=dict(source="prepared", root=os.fspath(root)))
    for key, value in changes.items():
      field, inner, own = key.partition(".")
      fields[field] = {**fields[field], own: value} if inner else value
    bound = [f"{key}={value}" for key, value in changes.items() if key not in FREE]
    version = f"{self.version} with {', '.join(bound)}" if bound else str(self.version)
    return fields | dict(protocol=(name, version))
