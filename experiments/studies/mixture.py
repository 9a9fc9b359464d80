"""How much of the training data are few-shot episodes: what in-context learning costs the rest."""

from experiments.study import vary

CONFIG = "configs/flamingo_med.py"
BASELINE = "weight=1.0"  # of the binding episodes; findings have 1.0, modalities 0.15
METRICS = (
  *(f"binding/{shots}shot/exact_match" for shots in (0, 4, 8)),
  *(f"{task}/0shot/exact_match" for task in ("finding", "modality")),
)
SEEDS = (0, 1, 2)


def runs():
  return vary("config.data.train.binding.weight", (0.1, 0.3, 1.0, 3.0))
