r"""How long questions and answers are, in tokens, and how much room most of them need.

python -m medflax.tools.lengths --config=configs/prefix_vqa.py:data=folder --config.data.root=DIR

Reads the training data of a config. Room is the mean and so many standard deviations (--std 3, as
"Open-Ended Medical VQA Through Prefix Tuning" has it; its code 2), and no more than the longest.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np

from medflax import config as config_lib
from medflax.data import DATASETS
from medflax.data.documents import Prompt, episode_document
from medflax.data.encode import encode_document, media_options
from medflax.data.tokenizer import load_tokenizer
from medflax.flags import Parser
from medflax.utils import UserError

QUESTION, ANSWER, REST = "question", "answer", "rest"  # of a document; rest: prompt and media


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Of the questions, or the answers, of one entry of the mixture, in tokens."""

  mean: float
  std: float
  longest: int
  count: int

  def room(self, stds: float) -> int:
    """Mean and `stds` standard deviations (of the population), rounded up; at most the longest."""
    return min(math.ceil(self.mean + stds * self.std), self.longest)


def measure(config: ml_collections.ConfigDict, limit: int) -> dict[str, dict[str, Lengths]]:
  """Lengths by entry of `config.data.train` and by part of a document without support.

  Args:
    config: validated.
    limit: of samples of each entry, the first ones.

  Raises:
    UserError: as the data set does, or for an entry of documents instead of questions.
  """
  dataset = DATASETS[config.data.source](config.data, config.seed)
  tokenizer, prompt = load_tokenizer(**config.tokenizer.to_dict()), Prompt(**config.prompt)
  out = {}
  for name, entry in config.data.train.items():
    episodes = dataset.episodes(entry.task, "train", 0)
    rows: dict[str, list[int]] = {}  # training asks a question many times
    for episode in (episodes[i] for i in range(min(limit, len(episodes)))):
      if episode.query.id in rows:
        break
      lengths = _lengths(episode, prompt, tokenizer, media_options(config.data))
      rows[episode.query.id] = lengths
    if not rows:
      raise UserError(f"config.data.train.{name} has no questions to measure")
    table = np.array([*rows.values()])
    out[name] = {
      part: Lengths(float(x.mean()), float(x.std()), int(x.max()), len(x))
      for part, x in zip((QUESTION, ANSWER, REST), table.T, strict=True)
    }
  return out


def _lengths(episode: Any, prompt: Prompt, tokenizer: Any, options: dict[str, Any]) -> list[int]:
  count = lambda text: len(tokenizer.spans(text)[0])
  question, answer = count(episode.query.question), count(episode.query.answer)
  whole = encode_document(episode_document(episode, prompt), tokenizer, **options)
  return [question, answer, len(whole["tokens"]) - question - answer]


def _table(found: dict[str, dict[str, Lengths]], stds: float) -> Iterator[str]:
  yield f"{'entry':20} {'part':9} {'n':>7} {'mean':>7} {'std':>6} {'longest':>8} {'room':>6}"
  for name, parts in found.items():
    for part, x in parts.items():
      numbers = f"{x.count:7,} {x.mean:7.1f} {x.std:6.1f} {x.longest:8} {x.room(stds):6}"
      yield f"{name:20} {part:9} {numbers}"
  rooms = [{part: x.room(stds) for part, x in parts.items()} for parts in found.values()]
  rests = [parts[REST].longest for parts in found.values()]
  whole = max(x[QUESTION] + x[ANSWER] + rest for x, rest in zip(rooms, rests, strict=True))
  yield f"--config.data.max_tokens={whole} holds one such document; longer questions are cut"
  longest = max(room[ANSWER] for room in rooms)
  yield f"decoding of an evaluation: max_new_tokens={longest} is room for such an answer"


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = Parser("medflax.tools.lengths", __doc__)
  parser.add_argument("--config", required=True, metavar="FILE.py[:ARG=VALUE,...]")
  parser.add_argument("--std", type=float, default=3.0, help="standard deviations above the mean")
  parser.add_argument("--limit", type=int, default=10_000, help="samples of each entry")
  try:
    flags, overrides = parser.parse(argv)
    config = config_lib.load_config(flags.config, overrides)
    config_lib.validate(config)
    print("\n".join(_table(measure(config, flags.limit), flags.std)))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
