"""The metrics of answers by name. BERTScore, which needs a model, is `bertscore.BertScore`.

What an empty answer scores: 1 where an empty one is expected (exact match, the shares of tokens,
COCO's ROUGE-L), else 0. With several references: the best, or as the metric's paper has it.
"""

import functools
from collections.abc import Callable
from typing import Any

from medflax.metrics import bleu, coco, rouge
from medflax.metrics.base import Metric, best_of
from medflax.metrics.overlap import char_bleu1, token_overlap
from medflax.metrics.text import exact_match

_ORDERS = (1, 2, 3, 4)


def _sacre(of_sample: Callable[[], Any], of_corpus: Callable[[], Any]) -> Metric:
  return Metric(
    1,
    functools.partial(bleu.sacre_samples, of_sample),
    functools.partial(bleu.sacre_corpus, of_corpus),
    package="sacrebleu",
  )


METRICS: dict[str, Metric] = {
  "exact_match": Metric(1, best_of(lambda p, r: float(exact_match(p, r)))),
  "token_precision": Metric(1, best_of(lambda p, r: token_overlap(p, r).precision)),
  "token_recall": Metric(1, best_of(lambda p, r: token_overlap(p, r).recall)),
  "token_f1": Metric(1, best_of(lambda p, r: token_overlap(p, r).f1)),
  "bleu1_char": Metric(1, best_of(char_bleu1)),
  **{
    f"bleu{n}": Metric(
      1,
      functools.partial(bleu.nltk_samples, order=n),
      functools.partial(bleu.nltk_corpus, order=n),
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
      functools.partial(coco.bleu_corpus, order=n),
    )
    for n in _ORDERS
  },
  "coco_rougeL": Metric(1, coco.rouge_l),
  "cider": Metric(1, coco.cider),
}
