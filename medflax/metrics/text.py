"""Text metrics on short answers."""

import functools
import re
import unicodedata

# A point or comma between digits belongs to the number: 3.5 is not 35.
_DECIMAL = re.compile(r"(?<=\d)[.,](?=\d)")


@functools.lru_cache(maxsize=4096)  # answers repeat
def normalise(text: str) -> str:
  """The form in which answers are compared.

  Unicode NFKC, lower case, dashes to spaces, other punctuation removed (except a decimal
  point or comma between digits), runs of white space to one space. Idempotent.
  """
  text = unicodedata.normalize("NFKC", text).lower()
  decimals = {match.start() for match in _DECIMAL.finditer(text)}
  kept = (
    character if index in decimals else _without_punctuation(character)
    for index, character in enumerate(text)
  )
  # Lowering and removing can leave letters and accents uncomposed, so compose again.
  return unicodedata.normalize("NFKC", " ".join("".join(kept).split()))


def exact_match(prediction: str, reference: str) -> bool:
  """Whether two answers are equal after `normalise`.

  A reference of nothing but punctuation ("-") is compared as it is, so that an empty
  prediction does not match it.
  """
  if not normalise(reference):
    return prediction.strip() == reference.strip()
  return normalise(prediction) == normalise(reference)


def _without_punctuation(character: str) -> str:
  category = unicodedata.category(character)
  if category == "Pd":
    return " "
  return "" if category.startswith("P") else character
