"""What turns an image's features into tokens: RadFM's resampler, or MedVInT's query decoder.

The sizes are those of `tiny`; for others, say them here.
"""

from experiments.study import vary

CONFIG = "configs/radfm.py"
BASELINE = "connector=perceiver"
METRICS = tuple(f"{task}/0shot/exact_match" for task in ("finding", "modality", "modality_3d"))
SEEDS = (0, 1, 2)
SIZE = {"num_latents": 4, "heads": 4, "out_width": 64}
PERCEIVER = {"type": "perceiver", "head_dim": 16, **SIZE}


def runs():
  connectors = {
    "perceiver": {**PERCEIVER, "depth": 1},
    "perceiver_of_2": {**PERCEIVER, "depth": 2},
    "query_decoder": {"type": "query_decoder", "depth": 1, "mlp_width": 192, **SIZE},
  }
  return vary("config.model.connector", connectors)
