"""How many layers share a gated block: Flamingo's cost against its accuracy.

OpenFlamingo-3B has one before every layer, 4B before every second, 9B before every fourth.
"""

from experiments.study import vary

CONFIG = "configs/flamingo_med.py:variant=small"  # of six layers
BASELINE = "xattn_every=1"
METRICS = tuple(f"binding/{shots}shot/exact_match" for shots in (0, 2, 4, 8))
SEEDS = (0, 1, 2)


def runs():
  return vary("config.model.fusion.xattn_every", (1, 2, 3, 6))
