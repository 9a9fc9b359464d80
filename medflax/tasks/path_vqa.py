"""PathVQA (He et al. 2020)."""

from medflax.tasks import protocols
from medflax.tasks.base import Task

TASKS = {
  "path_vqa/official": Task(
    data="path_vqa",
    source="He et al. 2020 (arXiv 2003.10286), experiments: accuracy of yes and no, exact match, "
    "F1 and BLEU of the others; what its code calls exact match is pathvqa_exact",
    metrics=("exact_match", "pathvqa_exact", "pathvqa_f1", "bleu1", "bleu2", "bleu3"),
    slice_by=("answer_type",),
  ),
  "path_vqa/med_flamingo": Task(
    data="path_vqa",
    source="Moor et al. 2023 (arXiv 2307.15189), evaluation: 6 shots; the 194 questions "
    "it leaves out as leaked are not published, medflax.tools.check_leakage finds such",
    num_shots=(0, 6),
    **protocols.MED_FLAMINGO,
  ),
  "path_vqa/prefix_tuning": Task(
    data="path_vqa",
    source="van Sonsbeek et al. 2023 (arXiv 2303.05977), experiments: without yes and no",
    where=dict(answer_type="open"),
    **protocols.PREFIX_TUNING,
  ),
  "path_vqa/llava_med_open": Task(
    data="path_vqa",
    source="Li et al. 2023 (arXiv 2306.00890), results on three benchmarks, open",
    **protocols.LLAVA_MED_OPEN,
  ),
  "path_vqa/llava_med_closed": Task(
    data="path_vqa",
    source="Li et al. 2023 (arXiv 2306.00890), results on three benchmarks, closed",
    **protocols.LLAVA_MED_CLOSED,
  ),
}
