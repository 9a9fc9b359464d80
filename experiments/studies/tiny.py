"""A few steps of two forms of PEFT: whether studies work, and nothing about the forms."""

from experiments.study import product, vary

CONFIG = "configs/prefix_vqa.py"
BASELINE = "peft=frozen"
METRICS = ("finding/0shot/exact_match", "perplexity/nll")
FEW = {
  "config.train.num_steps": "6",
  "config.train.batch_size": "4",
  "config.train.log_every": "2",
  "config.checkpoint.every": "2",
  "config.evals.finding.num_episodes": "16",
  "config.evals.modality.num_episodes": "4",
  "config.evals.perplexity.num_documents": "8",
}


def runs():
  return product([("", FEW)], vary("peft", ("frozen", "lora")))
