"""Whether the language model is trained along, or stays as it was (Flamingo's section 3.3).

It needs one that knows language: `language_model.py:lm=gemma3_270m` (configs/flamingo_med.py says
how), or `variant=3b` with `--config.init`. In `tiny` it is random, and frozen it learns little.
"""

from experiments.study import vary

CONFIG = "configs/flamingo_med.py"
BASELINE = "trainable=frozen"
METRICS = tuple(f"binding/{shots}shot/exact_match" for shots in (0, 2, 4, 8))
SEEDS = (0, 1, 2)


def runs():
  parts = {
    "frozen": r"connector/.*|.*/xattn/.*",
    "embedding": r"connector/.*|.*/xattn/.*|lm/embedding",  # as OpenFlamingo trains
    "tuned": r"connector/.*|lm/.*",
  }
  return vary("config.trainable", parts)
