"""How a question and what experts say are fitted into one prompt."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from medflax.data.tokenizer import Tokenizer
from medflax.experts.templates import PROMPTS
from medflax.utils import UserError


class Prompted(NamedTuple):
  """A prompt and how much of every text it has, in their order."""

  prompt: str
  shown: tuple[str, ...]


def merge(question: str, texts: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> Prompted:
  """Puts a question and what experts say into the prompt that fits in `max_tokens`.

  The question is never cut. Texts that are too long lose their ends, the longest first: all are
  cut to the same number of tokens. Where nothing of them fits, or there are none, the prompt is
  the one without an input.

  Raises:
    UserError: if the question alone does not fit.
  """
  ends = [tokenizer.spans(text)[1] for text in texts]

  def cut_to(tokens: int) -> Prompted:
    stops = [0 if not tokens else end[min(tokens, len(end)) - 1] if end else 0 for end in ends]
    return _filled(question, [text[:stop] for text, stop in zip(texts, stops, strict=True)])

  size = lambda prompted: (tokenizer.bos_id is not None) + len(tokenizer.encode(prompted.prompt))
  fits = lambda tokens: size(cut_to(tokens)) <= max_tokens
  if not fits(0):
    raise UserError(
      f"the question takes {size(cut_to(0))} tokens with its prompt, more than {max_tokens}; ask "
      "shorter, or let the model read more"
    )
  return cut_to(_largest(fits, max(map(len, ends), default=0)))


def _filled(question: str, texts: Sequence[str]) -> Prompted:
  merged = "\n".join(filter(None, (text.strip() for text in texts)))
  template = PROMPTS["image" if merged else "text"]
  return Prompted(template.format(question=question, caption=merged), tuple(texts))


def _largest(fits: Callable[[int], bool], most: int) -> int:
  """The largest number up to `most` that fits, found by halving; 0 does."""
  low, high = 0, most
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if fits(middle) else (low, middle - 1)
  return low
