"""What publications hold fixed over the benchmarks that they report: parts of tasks."""

from typing import Any

# Moor et al. 2023, "Med-Flamingo" (arXiv 2307.15189), evaluation; prompt, full stop after an
# example's answer, and length from the demo of snap-stanford/med-flamingo.
MED_FLAMINGO_PROMPT = dict(
  instruction=(
    "You are a helpful medical assistant. You are being provided with images, a question about "
    "the image and an answer. Follow the examples and answer the last question. "
  ),
  question="Question: {question} Answer:",
  answer=" {answer}.",
)
MED_FLAMINGO: dict[str, Any] = dict(
  prompt=MED_FLAMINGO_PROMPT,
  decoding=dict(type="greedy", max_new_tokens=10),
  metrics=("exact_match", "bert_sim"),
)

# van Sonsbeek et al. 2023, "Open-ended medical VQA through prefix tuning" (arXiv 2303.05977), and
# its code: finished beams stay among the rest, and its BLEU-1 is that of characters.
PREFIX_TUNING: dict[str, Any] = dict(
  decoding=dict(type="beam", num_beams=5, ranking="among", max_new_tokens=20),
  metrics=("bleu1", "bleu1_char", "bert_sim", "token_f1", "exact_match"),
  slice_by=("answer_type",),
)

# Li et al. 2023, "LLaVA-Med" (arXiv 2306.00890): recall of open answers, accuracy of closed
# ones. It samples; greedy here, so that numbers repeat.
LLAVA_MED_OPEN: dict[str, Any] = dict(
  where=dict(answer_type="open"),
  decoding=dict(type="greedy", max_new_tokens=128),
  metrics=("open_recall", "token_recall"),
)
# Its code looks for yes and no alone; closed questions have other answers, so the candidates are
# those of the annotation.
LLAVA_MED_CLOSED: dict[str, Any] = dict(
  where=dict(answer_type="closed"),
  decoding=dict(type="greedy", max_new_tokens=16),
  metrics=("exact_match", "likelihood_accuracy"),
  candidates="train",
)

# Wu et al. 2023, "RadFM" (arXiv 2308.02463), section on RadBench; chaoyi-wu/RadFM, src/test.py.
RADFM_DECODING = dict(type="greedy", max_new_tokens=200)
RADFM_TEXT: dict[str, Any] = dict(
  decoding=RADFM_DECODING,
  metrics=("bleu1", "rouge1", "umls_precision", "umls_recall", "bert_sim"),
)
