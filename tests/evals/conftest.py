"""An oracle in place of a model, and a data set it can answer."""

import types
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from medflax.data.documents import Episode, Media, Prompt, Sample, Source
from medflax.data.tokenizer import load_tokenizer
from medflax.evals import EvalContext

ANSWERS = ("unknown", "left lung", "right lung", "3.5 cm")
MAX_ANSWER = 12


class Known(NamedTuple):
  """What the oracle keeps of a prompt."""

  kind: Any

  def without_media(self):
    return self


class Oracle(nn.Module):
  """Answers with the class that the pixels of the last media show: their mean value.

  Its one parameter is the table of answers, [class, token].
  """

  shift: ClassVar[int] = 1
  shares_prefixes: ClassVar[bool] = True
  hide = staticmethod(lambda batch: batch)

  def setup(self):
    self.answers = self.param("answers", nn.initializers.zeros, (len(ANSWERS), MAX_ANSWER))

  def embed_media(self, media):
    [array] = media.values()
    mean = array.astype(jnp.float32).reshape(*array.shape[:2], -1).mean(-1)
    return jnp.round(mean)[..., None, None]

  def prefill(
    self,
    features,
    tokens,
    media_index,
    *,
    media_ordinal,
    media_first,
    positions,
    segment_ids,
    length=0,
    branches=1,
    prefix=None,
  ):
    if features is None:  # a prompt of text alone
      kind = jnp.zeros(len(tokens), jnp.int32)
      return self.emit(kind, jnp.zeros(1, int)), Known(kind)
    shown = media_ordinal["media"] == media_index[:, -1:]
    kind = (features[:, :, 0, 0] * shown).sum(1).astype(jnp.int32)
    return self.emit(kind, jnp.zeros(1, int)), Known(kind)

  def extend(self, tokens, cache, seen):
    # How many new tokens each sees is its place in the answer.
    return self.emit(cache.kind, seen[..., : tokens.shape[1], :].sum(-1)[0]), cache

  def emit(self, kind, places):
    token = self.answers[kind[:, None], places].astype(jnp.int32)
    return 9.0 * nn.one_hot(token, 2048)

  def __call__(self, media, tokens, media_index, **rest):
    return jnp.zeros((*tokens.shape, 8))  # knows nothing: uniform over eight tokens


ORACLE = Oracle()  # one for all tests: programs are kept by model


class Lungs:
  """Two questions about the one image of each of `num_groups` patients."""

  name, version, tasks = "lungs", "1.2.0", ("side",)
  media_per_sample = types.MappingProxyType({"image": 1})
  num_groups, kinds = 6, ("image",)

  def sample(self, group: int, question: int = 0) -> Sample:
    kind = group % 3 + 1
    shapes = {"image": (4, 4, 1), "volume": (2, 4, 4, 1)}
    media = [Media(np.full(shapes[k], kind, np.uint8), k) for k in self.kinds]
    for item in media:
      item.array.flat[0] += group // 3  # patients differ, their class by rounding does not
    return Sample(
      id=f"{group}-{question}",
      media=tuple(media),
      question=f"What is seen, {'at once' if question else 'in this long-winded question'}?",
      answer=ANSWERS[kind],
      source=Source(self.name, self.version, "val"),
      task="side",
      choices=ANSWERS[1:],
      group=f"patient {group}",
      meta={"plane": "axial"},
    )

  def episodes(self, task, split, num_shots, num_episodes=None):
    every = [(group, question) for group in range(self.num_groups) for question in range(2)]
    return [
      Episode(
        self.sample(group, question),
        tuple(self.sample((group + 1 + shot) % self.num_groups) for shot in range(num_shots)),
      )
      for group, question in every[:num_episodes]
    ]


@pytest.fixture(scope="session")
def tokenizer():
  return load_tokenizer()


@pytest.fixture
def params(tokenizer):
  table = np.full((len(ANSWERS), MAX_ANSWER), tokenizer.pad_id)
  for row, answer in zip(table, ANSWERS, strict=True):
    tokens = [*tokenizer.encode(f" {answer}"), tokenizer.special_id("<|endofchunk|>")]
    row[: len(tokens)] = tokens
  return {"answers": table}


@pytest.fixture
def make_context(tokenizer, tmp_path):
  def make(dataset, model=None):
    return EvalContext(
      model=model or ORACLE,
      tokenizer=tokenizer,
      dataset=dataset,
      prompt=Prompt(),
      data_config=types.SimpleNamespace(
        media_rule="prev_image", media_mark="<image>", media_tokens=0, answer_tokens=0
      ),
      seed=0,
      workdir=tmp_path,
      mesh=None,
      put=lambda batch: {key: jnp.asarray(value) for key, value in batch.items()},
    )

  return make


@pytest.fixture
def lungs():
  return Lungs()
