"""SLAKE (Liu et al. 2021), English and Chinese."""

from medflax.tasks import protocols
from medflax.tasks.base import Task

_OFFICIAL = dict(
  source="Liu et al. 2021 (arXiv 2102.09542), experiments: accuracy of open, closed and all",
  metrics=("exact_match",),
  slice_by=("answer_type", "content_type", "modality"),
)

TASKS = {
  **{f"{data}/official": Task(data=data, **_OFFICIAL) for data in ("slake_en", "slake_zh")},
  "slake_en/prefix_tuning": Task(
    data="slake_en",
    source="van Sonsbeek et al. 2023 (arXiv 2303.05977), experiments; code: questions in ASCII are "
    "the English ones, which the data set names",
    **protocols.PREFIX_TUNING,
  ),
  "slake_en/llava_med_open": Task(
    data="slake_en",
    source="Li et al. 2023 (arXiv 2306.00890), results on three benchmarks, open",
    **protocols.LLAVA_MED_OPEN,
  ),
  "slake_en/llava_med_closed": Task(
    data="slake_en",
    source="Li et al. 2023 (arXiv 2306.00890), results on three benchmarks, closed; candidates "
    "from the annotation, which knows more than yes and no (microsoft/LLaVA-Med, issue 113)",
    **protocols.LLAVA_MED_CLOSED,
  ),
}
