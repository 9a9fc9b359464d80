"""VQA-RAD (Lau et al. 2018)."""

from medflax.tasks import protocols
from medflax.tasks.base import Task

TASKS = {
  "vqa_rad/mevf": Task(
    data="vqa_rad_mevf",
    source="Nguyen et al. 2019 (arXiv 1909.11867), accuracy of open, closed and all answers; "
    "aioz-ai/MICCAI19-MedVQA",
    metrics=("exact_match",),
    slice_by=("answer_type", "question_type"),
  ),
  "vqa_rad/med_flamingo": Task(
    data="vqa_rad_disjoint",
    source="Moor et al. 2023 (arXiv 2307.15189), evaluation: 6 shots, a split of their own "
    "by image and question, 90/10; which images it holds out is not published",
    num_shots=(0, 6),
    **protocols.MED_FLAMINGO,
  ),
  "vqa_rad/llava_med_open": Task(
    data="vqa_rad",
    source="Li et al. 2023 (arXiv 2306.00890), results on three benchmarks, open",
    **protocols.LLAVA_MED_OPEN,
  ),
  "vqa_rad/llava_med_closed": Task(
    data="vqa_rad",
    source="Li et al. 2023 (arXiv 2306.00890), results on three benchmarks, closed; candidates "
    "from the annotation",
    **protocols.LLAVA_MED_CLOSED,
  ),
}
