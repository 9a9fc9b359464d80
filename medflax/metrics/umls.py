"""Medical concepts in common, as RadFM scores reports (Wu et al. 2023), by a lexicon of terms.

A lexicon is a UTF-8 file of lines `term<TAB>concept`, such as `pleural effusion<TAB>C0032227`. It
is the user's: UMLS is under a licence. A term of several concepts means the first.
"""

import hashlib
import os
import pathlib
from collections.abc import Mapping

from medflax.metrics.overlap import Overlap, overlap
from medflax.metrics.text import normalise
from medflax.utils import UserError

Words = tuple[str, ...]


class Lexicon:
  """Finds concepts in text: at every word the longest term that starts there, else the next word.

  Terms are compared word by word after `normalise`.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads the file.

    Raises:
      UserError: if there is none, or a line is not a term and a concept.
    """
    self._path = pathlib.Path(path)
    try:
      self._bytes = self._path.read_bytes()
      lines = self._bytes.decode("utf-8").split("\n")
    except OSError as error:
      raise UserError(f"umls_lexicon: cannot read {self._path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
      raise UserError(f"umls_lexicon: {self._path} is not UTF-8: {error.reason}") from None
    self._concepts = _terms(lines, self._path)
    self._longest = max(map(len, self._concepts), default=0)

  @property
  def source(self) -> str:
    """The file's name and the beginning of its SHA-256."""
    return f"{self._path.name} {hashlib.sha256(self._bytes).hexdigest()[:12]}"

  def concepts(self, text: str) -> frozenset[str]:
    """All that the text names, once each."""
    words, found, start = tuple(normalise(text).split()), set(), 0
    while start < len(words):
      lengths = range(min(self._longest, len(words) - start), 0, -1)
      terms = (words[start : start + length] for length in lengths)
      term = next((term for term in terms if term in self._concepts), ())
      if term:
        found.add(self._concepts[term])
      start += max(1, len(term))
    return frozenset(found)

  def overlap(self, prediction: str, reference: str) -> Overlap:
    """Precision, recall and F1 of the prediction's concepts.

    1 if neither text names a concept, 0 if one alone does.
    """
    return overlap(sorted(self.concepts(prediction)), sorted(self.concepts(reference)))


def _terms(lines: list[str], path: pathlib.Path) -> Mapping[Words, str]:
  found: dict[Words, str] = {}
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    term, tab, concept = line.rstrip("\r").partition("\t")
    words = tuple(normalise(term).split())
    if not tab or not words or not concept.strip():
      raise UserError(f"umls_lexicon: {path}:{number} is not 'term<TAB>concept'")
    found.setdefault(words, concept.strip())
  if not found:
    raise UserError(f"umls_lexicon: {path} has no terms")
  return found
