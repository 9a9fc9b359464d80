"""How the language model is adapted: the table of the prefix paper (van Sonsbeek et al. 2023).

With published weights, as `tiny` has none to freeze and trains all of every form:
`peft.py:variant=full --config.init=DIR/weights.safetensors --config.tokenizer.path=DIR/tokenizer`.
"""

from experiments.study import vary

CONFIG = "configs/prefix_vqa.py"
BASELINE = "peft=frozen"
METRICS = tuple(f"{task}/0shot/exact_match" for task in ("finding", "modality"))
SEEDS = (0, 1, 2)


def runs():
  return vary("peft", ("frozen", "unfrozen", "lora", "prefix", "prompt"))
