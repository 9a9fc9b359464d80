"""The metrics of answers by name; `make_metrics` also makes those that need a file of the user's.

What an empty answer scores: 1 where an empty one is expected (exact match, the shares of tokens,
labels and concepts, COCO's ROUGE-L, VQA-Med's), else 0. With several references: the best, or as
the metric's paper has it; of labels the first.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from medflax.metrics import bleu, choices, coco, labels, official, rouge
from medflax.metrics.base import Metric, best_of, of_totals
from medflax.metrics.overlap import char_bleu1, token_overlap
from medflax.metrics.tables import cell_accuracy, rms_f1
from medflax.metrics.text import exact_match
from medflax.metrics.umls import Lexicon
from medflax.utils import UserError, pick

_ORDERS = (1, 2, 3, 4)


def _sacre(of_sample: Callable[[], Any], of_corpus: Callable[[], Any]) -> Metric:
  return Metric(
    1,
    functools.partial(bleu.sacre_samples, of_sample),
    functools.partial(bleu.sacre_set, of_corpus),
    package="sacrebleu",
    highest=100.0,
  )


METRICS: dict[str, Metric] = {
  "exact_match": Metric(1, best_of(lambda p, r: float(exact_match(p, r)))),
  "token_precision": Metric(1, best_of(lambda p, r: token_overlap(p, r).precision)),
  "token_recall": Metric(1, best_of(lambda p, r: token_overlap(p, r).recall)),
  "token_f1": Metric(1, best_of(lambda p, r: token_overlap(p, r).f1)),
  "accuracy": Metric(1, best_of(labels.same_labels)),
  "label_f1": Metric(1, best_of(labels.label_f1)),
  # A sample's own number is its labels' F1.
  "macro_f1": Metric(1, best_of(labels.label_f1), labels.macro_f1),
  "micro_f1": Metric(1, best_of(labels.label_f1), labels.micro_f1),
  **{
    name: Metric(1, functools.partial(choices.choice_scores, match), with_choices=True)
    for name, match in choices.MATCHES.items()
  },
  "table_cells": Metric(1, best_of(cell_accuracy)),
  "rms_f1": Metric(1, best_of(rms_f1)),
  "bleu1_char": Metric(1, best_of(char_bleu1)),
  **{
    f"bleu{n}": Metric(
      1,
      functools.partial(bleu.nltk_samples, order=n),
      of_totals(functools.partial(bleu.nltk_counts, order=n), bleu.nltk_score),
      package="nltk",
    )
    for n in _ORDERS
  },
  "sacrebleu": _sacre(functools.partial(bleu.sacrebleu, effective_order=True), bleu.sacrebleu),
  "sacrebleu_lowercase": _sacre(
    functools.partial(bleu.sacrebleu, effective_order=True, lowercase=True),
    functools.partial(bleu.sacrebleu, lowercase=True),
  ),
  "chrf": _sacre(bleu.chrf, bleu.chrf),
  **{
    name + suffix: Metric(
      1, functools.partial(rouge.rouge_f1, name=name, stemmed=bool(suffix)), package="rouge-score"
    )
    for name in rouge.NAMES
    for suffix in ("", "_stem")
  },
  "meteor": Metric(1, rouge.meteor, package="nltk"),
  **{
    f"coco_bleu{n}": Metric(
      1,
      functools.partial(coco.bleu_samples, order=n),
      of_totals(coco.bleu_counts, functools.partial(coco.bleu_score, order=n)),
    )
    for n in _ORDERS
  },
  "coco_rougeL": Metric(1, coco.rouge_l),
  "cider": Metric(1, coco.cider),
  "vqa_accuracy": Metric(1, official.vqa_accuracy),
  "open_recall": Metric(1, best_of(official.open_recall)),
  "pathvqa_exact": Metric(1, best_of(official.pathvqa_exact)),
  "pathvqa_f1": Metric(1, best_of(official.pathvqa_f1)),
  "vqa_med_accuracy": Metric(1, best_of(official.vqa_med_accuracy)),
  "vqa_med_bleu": Metric(1, best_of(official.vqa_med_bleu), package="nltk"),
}


def make_metrics(
  names: Sequence[str], *, bert_model: str = "", umls_lexicon: str = ""
) -> dict[str, Metric]:
  """Metrics by name: those of `METRICS`, and those that need a file of the user's.

  Args:
    names: also `bert_sim`, `bert_precision`, `bert_recall` (BERTScore) and `umls_f1`,
      `umls_precision`, `umls_recall` (concepts in common).
    bert_model: "FOLDER:LAYER": a Hugging Face folder, and the layer that is compared.
    umls_lexicon: the lexicon's file; see `metrics.umls`.

  Raises:
    UserError: for an unknown name, a metric without its file, or a file that cannot be read.
  """
  known = dict.fromkeys((*METRICS, *_BERT, *_UMLS))
  for name in names:
    pick(known, name, "metric")
  found = dict(METRICS)
  if set(names) & set(_BERT):
    found |= _bert_metrics(bert_model)
  if set(names) & set(_UMLS):
    found |= _umls_metrics(umls_lexicon)
  return {name: found[name] for name in names}


# The metric's name and that of the number.
_BERT = {"bert_sim": "f1", "bert_precision": "precision", "bert_recall": "recall"}
_UMLS = {f"umls_{number}": number for number in ("precision", "recall", "f1")}


def _bert_metrics(model: str) -> dict[str, Metric]:
  folder, _, layer = model.rpartition(":")
  if not folder or not layer.isdigit():
    raise UserError(
      f"bert_sim needs bert_model=FOLDER:LAYER, not {model!r}; papers take layer 17 of "
      "roberta-large, 9 of bert-base-uncased"
    )
  from medflax.metrics.bertscore import BertScore  # runs a model, the rest is text alone

  scorer = functools.cache(lambda: BertScore(folder, layer=int(layer)))

  def samples(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, number: str
  ) -> Float[np.ndarray, " n"]:
    return scorer()(predictions, references)[number]

  source = f"{pathlib.Path(folder).name} layer {layer}"
  return {
    name: Metric(1, functools.partial(samples, number=number), source=source)
    for name, number in _BERT.items()
  }


def _umls_metrics(path: str) -> dict[str, Metric]:
  if not path:
    raise UserError("umls metrics need umls_lexicon=FILE, of lines 'term<TAB>concept'")
  lexicon = Lexicon(path)
  score = lambda p, r, number: getattr(lexicon.overlap(p, r), number)
  return {
    name: Metric(1, best_of(functools.partial(score, number=number)), source=lexicon.source)
    for name, number in _UMLS.items()
  }
