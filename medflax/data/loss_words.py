"""Words that count for more in the loss than others, as RadFM's medical terms (Wu et al. 2023)."""

import pathlib
import re
from collections.abc import Sequence

from medflax.utils import UserError

_WORD = re.compile(r"\w+")
Words = tuple[str, ...]


class LossWords:
  """Weights of tokens by the terms of `config.data.loss_words` that they are part of.

  A term is found word by word, whatever its case and whatever stands between its words; at every
  word the longest term that begins there. A token belongs to the term in which it ends.
  """

  def __init__(self, files: Sequence[tuple[str, float]]):
    """Reads the files.

    Args:
      files: pairs of a file of terms, one a line, of which what stands behind a tab is left out
        (a lexicon's concept), and the weight of their tokens; the last file that has a term counts.

    Raises:
      UserError: for a file that cannot be read or has no terms, or a weight that is not positive.
    """
    self._weights: dict[Words, float] = {}
    for pair in files:
      if len(pair) != 2 or not isinstance(pair[1], int | float) or not pair[1] > 0:
        raise UserError(f"config.data.loss_words: {pair!r} is no (file, weight above 0)")
      terms = _terms(pathlib.Path(pair[0]))
      self._weights |= dict.fromkeys(terms, float(pair[1]))
    self._longest = max(map(len, self._weights), default=0)

  def __call__(self, text: str, ends: Sequence[int]) -> list[float]:
    """The weight of every token of `text`, by where each ends; 1 outside of the terms."""
    weights, spans = [1.0] * len(ends), self._spans(text) if self._weights else []
    for start, stop, weight in spans:
      for token, end in enumerate(ends):
        if start < end <= stop:
          weights[token] = weight
    return weights

  def _spans(self, text: str) -> list[tuple[int, int, float]]:
    """Where the text's terms begin and end, with their weights."""
    found = list(_WORD.finditer(text))
    words, spans, first = [match[0].casefold() for match in found], [], 0
    while first < len(words):
      lengths = range(min(self._longest, len(words) - first), 0, -1)
      known = (n for n in lengths if tuple(words[first : first + n]) in self._weights)
      length = next(known, 0)
      if length:
        weight = self._weights[tuple(words[first : first + length])]
        spans.append((found[first].start(), found[first + length - 1].end(), weight))
      first += max(1, length)
    return spans


def _terms(path: pathlib.Path) -> list[Words]:
  try:
    lines = path.read_text("utf-8").split("\n")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"config.data.loss_words: cannot read {path}: {error}") from None
  terms = [tuple(_WORD.findall(line.partition("\t")[0].casefold())) for line in lines]
  if not any(terms):
    raise UserError(f"config.data.loss_words: {path} has no terms")
  return [term for term in terms if term]
