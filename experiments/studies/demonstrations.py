"""Which examples are shown, and how many, after training with and without them.

For data with a pool to choose from: `demonstrations.py:variant=small --config.data.root=DIR`.
"""

from experiments.study import product, vary

CONFIG = "configs/flamingo_med.py:data=folder"
SHOTS = (0, 1, 2, 4)
BASELINE = "num_shots=(0, 4),evals=random"
METRICS = tuple(f"vqa/{shots}shot/exact_match" for shots in SHOTS)
SEEDS = (0, 1, 2)


def asked(how):
  evaluation = {"type": "fewshot_vqa", "every": 0, "task": "vqa", "split": "test"}
  return {"vqa": {**evaluation, "num_shots": SHOTS, "demonstrations": {"type": how}}}


def runs():
  kinds = ("random", "balanced", "image", "text", "image_text")
  return product(
    vary("config.data.train.vqa.num_shots", ((0, 0), (0, 4))),
    vary("config.evals", {kind: asked(kind) for kind in kinds}),
  )
