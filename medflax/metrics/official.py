"""Scores as benchmarks' own programs give them, odd as they are, to compare with their numbers.

* VQAv2 (Antol et al. 2015): agreement with ten annotators, after its text processing.
* LLaVA-Med (Li et al. 2023): the share of the reference's words that the answer has, its "open"
  column, after the same processing.
* PathVQA (He et al. 2020): an "exact match" that is the share of the answer's words which the
  reference has, and F1, of lower-case letters alone. Its BLEU, which gives an answer of the right
  length without any match 1, is left out.
* VQA-Med (Ben Abacha et al. 2019 to 2021): accuracy and BLEU without case and punctuation.
"""

import collections
import functools
import math
import re
import string
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from medflax.utils import UserError

_MIN_ANNOTATORS = 4  # with fewer, no answer could score 1
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
_MAX_PERIODS = int(re.UNICODE)  # that are taken away: VQAv2 hands the flag over as a number
_COMMA = re.compile(r"\d,\d")
_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS.split())} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# A contraction that lacks one of its apostrophes gets it back; one is a slip of the original.
_RESTORED = {
  word[:index] + word[index + 1 :]: word
  for word in _CONTRACTIONS.split()
  for index, sign in enumerate(word)
  if sign == "'"
} | {"somebody'd": "somebodyd"}
# NLTK's English stop words, without those that have an apostrophe.
_STOP_WORDS = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her
hers herself it its itself they them their theirs themselves what which who whom this that these
those am is are was were be been being have has had having do does did doing a an the and but if or
because as until while of at by for with about against between into through during before after
above below to from up down in out on off over under again further then once here there when where
why how all any both each few more most other some such no nor not only own same so than too very
s t can will just don should now d ll m o re ve y ain aren couldn didn doesn hadn hasn haven isn ma
mightn mustn needn shan shouldn wasn weren won wouldn
"""


@functools.lru_cache(maxsize=4096)  # answers repeat
def vqa_text(text: str) -> str:
  """VQAv2's form of an answer: no articles, number words as digits, apostrophes restored.

  A sign is taken away where it stands at a space anywhere in the text, or there is a number with a
  comma; else it becomes a space.
  """
  out = text
  for sign in _SIGNS:
    apart = sign + " " in text or " " + sign in text or _COMMA.search(text)
    out = out.replace(sign, "" if apart else " ")
  out = _PERIOD.sub("", out, count=_MAX_PERIODS).lower()
  kept = [_DIGITS.get(word, word) for word in out.split() if word not in _ARTICLES]
  return " ".join([_RESTORED.get(word, word) for word in kept])


def vqa_accuracy(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Float[np.ndarray, " n"]:
  """VQAv2's: a third for every other annotator who gave this answer, 1 at most.

  The mean over leaving out each annotator. Where all agree, answers are compared as they are,
  save for case.

  Raises:
    UserError: if a question has fewer than 4 annotators.
  """
  scores = []
  for index, (prediction, texts) in enumerate(zip(predictions, references, strict=True)):
    if len(texts) < _MIN_ANNOTATORS:
      raise UserError(
        f"vqa_accuracy needs the answers of ten annotators in meta.answers; question {index} has "
        f"{len(texts)}; score exact_match instead"
      )
    plain = [" ".join(re.split(r"[\n\t]", text)).strip() for text in (prediction, *texts)]
    read = vqa_text if len(set(plain[1:])) > 1 else str.lower
    answer, *given = map(read, plain)
    same = [theirs == answer for theirs in given]
    scores.append(np.mean([min(1.0, (sum(same) - own) / 3) for own in same]))
  return np.array(scores, np.float64)


def open_recall(prediction: str, reference: str) -> float:
  """LLaVA-Med's: words of the reference that the answer has, as often as it repeats them."""
  ours, theirs = (
    _words(vqa_text(text.lower()).replace(",", "")) for text in (prediction, reference)
  )
  return _shares(ours, theirs)[1]


def pathvqa_exact(prediction: str, reference: str) -> float:
  """PathVQA's "exact match": distinct words in common over all words of the answer."""
  ours, theirs = _letters(prediction), _letters(reference)
  return len(ours.keys() & theirs.keys()) / ours.total() if ours else 0.0


def pathvqa_f1(prediction: str, reference: str) -> float:
  """PathVQA's: a word in common counts as often as the answer has it."""
  precision, recall = _shares(_letters(prediction), _letters(reference))
  total = precision + recall
  return 2 * precision * recall / total if total else 0.0


def vqa_med_accuracy(prediction: str, reference: str) -> float:
  """VQA-Med's: the same words, without case and punctuation."""
  return float(_plain_words(prediction) == _plain_words(reference))


def vqa_med_bleu(prediction: str, reference: str) -> float:
  """VQA-Med's BLEU: four orders of stems, without stop words; 1 if nothing is left of both.

  The organisers' program (abachaa/VQA-Med-2021) takes NLTK's BLEU of a sentence without
  smoothing, which until version 3.2 left out orders without a match, and so does this one. Since
  3.3 they make the product 0: a right answer of fewer than four words would score 0, where the
  published BLEU lies above the accuracy (.416 and .382 of the best system in 2021). White space
  alone separates words; the program's tokenizer also takes "cannot" apart.
  """
  from nltk.stem.snowball import SnowballStemmer  # an extra
  from nltk.translate.bleu_score import brevity_penalty, modified_precision

  stem, stops = SnowballStemmer("english").stem, set(_STOP_WORDS.split())
  ours, theirs = (
    [stem(word) for word in _plain_words(text) if word not in stops]
    for text in (prediction, reference)
  )
  if not ours or not theirs:
    return float(ours == theirs)
  shares = [float(modified_precision([theirs], ours, n)) for n in (1, 2, 3, 4)]
  if not shares[0]:
    return 0.0
  return brevity_penalty(len(theirs), len(ours)) * math.exp(
    math.fsum(math.log(share) / 4 for share in shares if share)
  )


def _words(text: str) -> collections.Counter[str]:
  return collections.Counter(text.lower().split())


def _letters(text: str) -> collections.Counter[str]:
  return _words(re.sub("[^a-zA-Z ]", "", text))


def _shares(
  ours: collections.Counter[str], theirs: collections.Counter[str]
) -> tuple[float, float]:
  """Precision and recall where a word in common counts as often as the answer has it."""
  common = sum(count for word, count in ours.items() if word in theirs)
  if not common:
    return 0.0, 0.0
  missed = sum(count for word, count in theirs.items() if word not in ours)
  return common / ours.total(), common / (common + missed)


def _plain_words(text: str) -> list[str]:
  return text.lower().translate(str.maketrans("", "", string.punctuation)).split()
