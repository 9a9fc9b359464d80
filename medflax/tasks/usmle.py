"""Open problems in the form of Visual USMLE (Moor et al. 2023), from a file of one's own."""

from medflax.tasks import protocols
from medflax.tasks.base import Task

TASKS = {
  "usmle/med_flamingo": Task(
    data="usmle",
    source="Moor et al. 2023 (arXiv 2307.15189), evaluation: 4 shots out of a pool of 10; "
    "its 618 problems may not be passed on; the length of answers is not stated",
    num_shots=(0, 4),
    prompt=protocols.MED_FLAMINGO_PROMPT,
    decoding=dict(type="greedy", max_new_tokens=50),
    metrics=("exact_match", "bert_sim"),
    slice_by=("specialty",),
  )
}
