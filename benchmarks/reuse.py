"""Times an evaluation that reuses what questions have in common, and one that cannot.

python benchmarks/reuse.py

256 short questions, each about an image of its own, through `evals.asking` and `evals.answering`,
from arrays to answers of at most 8 tokens, random weights, float32. A support of 8 examples is

- the same for all questions: its images are embedded, and its text is read, once;
- drawn for each from a pool of 64: its images are embedded once;
- each question's own, of images that no other one shows: nothing can be reused;

or there is none. The cases take turns.
"""

import argparse
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.side_by_side import Times, print_table, timed
from benchmarks.small_flamingo import small_flamingo
from medflax.data.documents import Episode, Media, Prompt, Sample, Source
from medflax.data.tokenizer import load_tokenizer
from medflax.defaults import base_config
from medflax.evals.answering import Answerer, Reply
from medflax.evals.asking import Asker
from medflax.inference.decoding import Greedy
from medflax.inference.features import MediaFeatures, embed_with
from medflax.models import VLM, model_inputs
from medflax.models.vision.vit import ViT

SIDE, BATCH, SHOTS, POOL = 224, 32, 8, 64
WORDS = ("CT", "MR", "X-ray", "PET")


def vlm(vocab_size: int) -> VLM:
  """64 latents of each image, from a tower 256 wide and 4 deep."""
  image = nn.FrozenDict(size=(SIDE, SIDE), patch=(16, 16), channels=3)
  tower = ViT(width=256, depth=4, heads=4, mlp_width=1024, inputs=nn.FrozenDict(image=image))
  return small_flamingo(tower, vocab_size)


def sample(number: int) -> Sample:
  """A question about an image that no other number has."""
  rng = np.random.default_rng(number)
  image = Media(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
  question = f"What is the modality of image {number % 10}?"
  return Sample(str(number), (image,), question, WORDS[number % 4], Source("benchmark", "", ""))


def episodes(count: int) -> dict[str, list[Episode]]:
  """The questions with each kind of support."""
  queries = [sample(i) for i in range(count)]
  pool = [sample(count + i) for i in range(POOL)]
  own = [sample(count + POOL + i) for i in range(SHOTS * count)]
  rng = np.random.default_rng(0)
  drawn = lambda: tuple(pool[i] for i in rng.choice(POOL, SHOTS, replace=False))
  return {
    "0 shots": [Episode(query) for query in queries],
    "one support for all": [Episode(query, tuple(pool[:SHOTS])) for query in queries],
    "supports from a pool": [Episode(query, drawn()) for query in queries],
    "nothing in common": [
      Episode(query, tuple(own[SHOTS * i : SHOTS * (i + 1)])) for i, query in enumerate(queries)
    ],
  }


class Evaluation:
  """Answers episodes as evaluations do."""

  def __init__(self):
    self._config = base_config("benchmark", "reuse")
    self._tokenizer = load_tokenizer()
    self._model = vlm(self._tokenizer.vocab_size)
    tokens = np.ones((1, 4), np.int32)
    media = {"media/image": np.zeros((1, 1, SIDE, SIDE, 3), np.uint8)}
    batch = {"tokens": tokens, "media_index": tokens, "media_ordinal/image": tokens[:, :1], **media}
    args, kwargs = model_inputs(batch)
    init = jax.jit(lambda key: self._model.init(key, *args, **kwargs)["params"])
    self._params = nn.unbox(init(jax.random.key(0)))
    self._answerer = Answerer(
      self._model, self._tokenizer, Prompt(), False, jax.device_put, Greedy(8), batch_size=BATCH
    )

  def answers(self, episodes: Sequence[Episode]) -> list[Reply]:
    """The replies, batch by batch."""
    put: Any = jax.device_put
    features = MediaFeatures(embed_with(self._model, self._params, put), BATCH)
    asker = Asker(self._tokenizer, Prompt(), self._config.data, features)
    questions = [asker.trial(episode).question for episode in episodes]
    features.finish()
    batches = self._answerer.batches(questions)
    answered = self._answerer.replies(batches, questions, features, self._params)
    return [reply for _, replies in answered for reply in replies]


def main() -> None:
  """Prints a row for each kind of support."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--questions", type=int, default=256)
  parser.add_argument("--rounds", type=int, default=3)
  flags = parser.parse_args()
  evaluation, cases = Evaluation(), episodes(flags.questions)
  for case in cases.values():
    evaluation.answers(case[: 2 * BATCH])  # compiles
  seconds: dict[str, list[Times]] = {name: [] for name in cases}
  for _ in range(flags.rounds):
    for name, case in cases.items():
      seconds[name].append(timed(lambda case=case: evaluation.answers(case)))
  rows = []
  for name, times in seconds.items():
    wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
    against = [
      statistics.median(a.wall / b.wall for a, b in zip(times, seconds[other], strict=True))
      for other in ("0 shots", "nothing in common")
    ]
    cells = (f"{wall:.2f}", f"{cpu:.2f}", f"{flags.questions / wall:.1f}")
    rows.append((name, *cells, *map("{:.2f}".format, against)))
  columns = ("8 shots", "s", "CPU s", "questions/s", "over 0 shots", "over nothing in common")
  print_table(f"{flags.questions} questions in batches of {BATCH}", rows, columns)


if __name__ == "__main__":
  main()
