"""How images reach the language model: gated cross-attention, or tokens between those of the text.

All see the same resampler's output; the gated form has the attention's weights besides.
`bidirectional`: the tokens of one image see each other both ways.
"""

from experiments.study import product

CONFIG = "configs/flamingo_med.py"
BASELINE = "fusion=gated"
METRICS = tuple(f"binding/{shots}shot/exact_match" for shots in (0, 2, 4, 8))
SEEDS = (0, 1, 2)
# For both: the resampler is trained, and a row has room for eight images between its tokens.
ALIKE = {"config.trainable": "(connector|lm)/.*", "config.data.max_tokens": "192"}


def inline(**fields):
  fusion = {"type": "inline", **fields}
  # As many tokens as the resampler has latents.
  return {"config.model.fusion": str(fusion), "config.data.media_tokens": "4"}


def runs():
  fusions = [
    ("fusion=gated", {}),
    ("fusion=inline", inline()),
    ("fusion=bidirectional", inline(bidirectional=True)),
  ]
  return product([("", ALIKE)], fusions)
