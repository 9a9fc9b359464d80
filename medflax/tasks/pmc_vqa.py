"""PMC-VQA (Zhang et al. 2023): its 2,000 verified questions, and the second version's."""

from medflax.tasks.base import Task

_SOURCE = "Zhang et al. 2023 (arXiv 2305.10415), experiments; xiaoman-zhang/PMC-VQA"
# Options stand in the prompt as in its code, but with spaces.
_CHOICE = dict(
  prompt=dict(question="Question: {question} Choices: {choices} The answer is:"),
  decoding=dict(type="greedy", max_new_tokens=32),
  metrics=("choice_similarity", "choice_letter"),
)
_BLANK = dict(
  decoding=dict(type="greedy", max_new_tokens=50),
  metrics=("choice_similarity", "exact_match", "bleu1"),
)
_LIKELIHOOD = dict(metrics=("likelihood_accuracy", "ece", "brier"), candidates="choices")

TASKS = {
  f"{data}/{name}": Task(data=data, source=f"{_SOURCE}, {what}", **fields)
  for data in ("pmc_vqa_v1", "pmc_vqa_v2")
  for name, what, fields in (
    ("choice", "choice: the option that the answer resembles most, or whose letter it is", _CHOICE),
    ("blank", "blank: options are not shown, the answer is matched to them", _BLANK),
    (
      "likelihood",
      "options by likelihood, which its models are not asked for",
      _LIKELIHOOD,
    ),
  )
}
