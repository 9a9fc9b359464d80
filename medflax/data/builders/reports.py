"""What the data sets of radiology reports share: sections as tasks, labels as questions."""

import re
from collections.abc import Iterator, Mapping

from medflax.data.builders.base import CLOSED, OPEN, Record, hash_choice

FINDINGS, IMPRESSION, LABEL = "findings", "impression", "label"
REPORT_TASKS = (FINDINGS, IMPRESSION)
YES_NO = ("yes", "no")
ANSWERS = (OPEN, CLOSED)

_QUESTIONS = {
  FINDINGS: (
    "What are the findings?",
    "Describe the findings of this examination.",
    "Write the findings section of the report.",
  ),
  IMPRESSION: (
    "What is the impression?",
    "Summarise this examination.",
    "Write the impression section of the report.",
  ),
}
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z /&]*[A-Z]):", re.MULTILINE)


def sections(report: str) -> dict[str, str]:
  """The sections of a report by their headings in lower case: capitals that end in a colon."""
  parts = _HEADING.split(report)
  pairs = zip(parts[1::2], parts[2::2], strict=True)
  return {heading.lower(): " ".join(text.split()) for heading, text in pairs if text.strip()}


def report_records(
  told: Mapping[str, str],
  *,
  study: str,
  split: str,
  group: str,
  media: tuple[tuple[str, str], ...],
  meta: Mapping[str, str],
) -> Iterator[Record]:
  """A record for each section of a report that is not empty.

  Args:
    told: text by section; keys besides `REPORT_TASKS` are left alone.
    study: id of the report.
    split: of its records.
    group: the patient.
    media: that it was written about.
    meta: of its records.
  """
  for task in REPORT_TASKS:
    if told.get(task):
      yield Record(
        id=f"{study}-{task}",
        split=split,
        task=task,
        question=hash_choice(_QUESTIONS[task], study),
        answer=told[task],
        group=group,
        media=media,
        meta=meta,
      )


def label_records(
  labels: Mapping[str, bool],
  *,
  study: str,
  split: str,
  group: str,
  media: tuple[tuple[str, str], ...],
) -> Iterator[Record]:
  """A yes-no question for each label, as RadFM asks them; arguments as of `report_records`."""
  for label, present in labels.items():
    yield Record(
      id=f"{study}-{label.lower().replace(' ', '_')}",
      split=split,
      task=LABEL,
      question=f"Does this examination show {label.lower()}?",
      answer=YES_NO[0] if present else YES_NO[1],
      group=group,
      media=media,
      topic=f"{LABEL} {label.lower()}",
      answer_type=CLOSED,
      choices=YES_NO,
      meta={"label": label},
    )
