"""Which image a token sees: the one before it, the next one, or all before it.

OpenFlamingo's later code has the image before (`prev_image`), Med-Flamingo's demo the next one
(docs/design.md); `all_prev` is the ablation of Flamingo's paper.
"""

from experiments.study import vary

CONFIG = "configs/flamingo_med.py"
BASELINE = "media_rule=prev_image"
METRICS = tuple(f"binding/{shots}shot/exact_match" for shots in (0, 2, 4, 8))
SEEDS = (0, 1, 2)


def runs():
  return vary("config.data.media_rule", ("prev_image", "next_image", "all_prev"))
