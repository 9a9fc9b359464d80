"""Which of the offered choices an answer means."""

import difflib
import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

Match = Callable[[str, Sequence[str]], int | None]


def by_similarity(answer: str, choices: Sequence[str]) -> int | None:
  """PMC-VQA's rule (Zhang et al. 2023): the choice most similar to the answer, as strings.

  The first of equals; None if none has a character in common. Its own code gives it one letter
  to match with choices written " A:heart", and then the shortest choice that has this letter
  in capitals wins: for "A", " B:A" rather than " A:heart".
  """
  ratios = [difflib.SequenceMatcher(None, choice, answer).ratio() for choice in choices]
  best = max(ratios, default=0.0)
  return ratios.index(best) if best > 0 else None


def by_letter(answer: str, choices: Sequence[str]) -> int | None:
  """The first capital letter that stands alone in the answer and names a choice, A the first.

  None if there is none. A small letter counts if it is the whole answer, save for punctuation:
  elsewhere "a" is an article.
  """
  letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
  if not letters:
    return None
  alone = re.fullmatch(r"\W*([^\W\d_])\W*", answer)
  found = re.search(rf"\b([{letters}])\b", alone[1].upper() if alone else answer)
  return letters.index(found[1]) if found else None


MATCHES: dict[str, Match] = {"choice_similarity": by_similarity, "choice_letter": by_letter}


def choice_scores(
  match: Match,
  predictions: Sequence[str],
  references: Sequence[Sequence[str]],
  choices: Sequence[Sequence[str]],
) -> Float[np.ndarray, " n"]:
  """1 where the prediction means a right choice, else 0.

  A choice is right if a reference is that choice, or else means it by the same rule.
  """
  scores = []
  for prediction, texts, offered in zip(predictions, references, choices, strict=True):
    right = [offered.index(t) if t in offered else match(t, offered) for t in texts]
    found = match(prediction, offered)
    scores.append(float(found is not None and found in right))
  return np.array(scores, np.float64)
