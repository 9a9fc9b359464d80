"""RadBench's five tasks (Wu et al. 2023) on the data sets that can be had.

Its own questions are held-out parts of these and of Radiopaedia, which is not public.
"""

from typing import Any

from medflax.tasks import protocols
from medflax.tasks.base import Task

_SOURCE = "Wu et al. 2023, RadFM (arXiv 2308.02463), RadBench"
_CLOSED: dict[str, Any] = dict(
  decoding=protocols.RADFM_DECODING,
  metrics=("accuracy", "macro_f1", "likelihood_accuracy", "auroc"),
  candidates="choices",
)


def _tasks(
  kind: str, what: str, tasks: dict[str, dict[str, Any]], **fields: Any
) -> dict[str, Task]:
  return {
    f"radbench/{kind}_{name}": Task(source=f"{_SOURCE}: {what}", **{**fields, **own})
    for name, own in tasks.items()
  }


TASKS = {
  **_tasks(
    "modality",
    "modality recognition, accuracy",
    {
      "medpix": dict(data="medpix", task="modality"),
      "medpix_plane": dict(data="medpix", task="plane"),
      "vqa_med_2019": dict(data="vqa_med_2019", task="modality"),
    },
    decoding=protocols.RADFM_DECODING,
    metrics=("exact_match", "token_recall"),
  ),
  **_tasks(
    "modality",
    "modality recognition, the view among its two choices",
    {"hannover_cxr": dict(data="hannover_cxr", task="projection")},
    **_CLOSED,
  ),
  **_tasks(
    "diagnosis",
    "disease diagnosis, several labels: yes or no for each, accuracy and F1",
    {
      "mimic_cxr": dict(data="mimic_cxr", task="label"),
      "ct_rate": dict(data="ct_rate", task="label", split="val"),
    },
    slice_by=("label",),
    **_CLOSED,
  ),
  **_tasks(
    "diagnosis",
    "disease diagnosis, one label among choices, accuracy",
    {"ptb_xl": dict(data="ptb_xl", task="class")},
    **_CLOSED,
  ),
  **_tasks(
    "diagnosis",
    "disease diagnosis, one label in words",
    {"medpix": dict(data="medpix", task="diagnosis")},
    decoding=protocols.RADFM_DECODING,
    metrics=("exact_match", "token_f1", "umls_f1"),
  ),
  **_tasks(
    "vqa",
    "visual question answering",
    {
      "vqa_rad": dict(data="vqa_rad"),
      "slake_en": dict(data="slake_en"),
      "pmc_vqa_v1": dict(data="pmc_vqa_v1"),
    },
    slice_by=("answer_type",),
    **protocols.RADFM_TEXT,
  ),
  **_tasks(
    "report",
    "report generation",
    {
      "iu_xray": dict(data="iu_xray", task="findings"),
      "iu_xray_impression": dict(data="iu_xray", task="impression"),
      "iu_xray_r2gen": dict(data="iu_xray_r2gen", task="findings"),
      "mimic_cxr": dict(data="mimic_cxr", task="findings"),
      "mimic_cxr_impression": dict(data="mimic_cxr", task="impression"),
      "ct_rate": dict(data="ct_rate", task="findings", split="val"),
      "medpix": dict(data="medpix", task="findings"),
    },
    **protocols.RADFM_TEXT,
  ),
  **_tasks(
    "rationale",
    "rationale diagnosis: the disease and what speaks for it, given the history",
    {
      "medpix": dict(data="medpix", task="differential"),
      "pmc_case_report": dict(data="pmc_case_report", task="case"),
    },
    **protocols.RADFM_TEXT,
  ),
}
