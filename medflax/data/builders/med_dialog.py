"""MedDialog, English (Zeng et al., 2020): what patients ask and doctors answer; no images."""

from collections.abc import Iterator

from medflax.data.builders.base import Builder, Record
from medflax.data.builders.source import Row, SourceFolder
from medflax.utils import UserError

DIALOGUE = "dialogue"
PATIENT, DOCTOR = "patient:", "doctor:"
_TABLES = {split: f"english-{name}.json" for split, name in (("train", "train"), ("val", "dev"))}


def _rows(source: SourceFolder) -> Iterator[Row]:
  return source.splits(_TABLES | {"test": "english-test.json"})


def _records(row: Row) -> Iterator[Record]:
  """Every answer of the doctor, asked with all that was said before."""
  said = [str(utterance).strip() for utterance in row.items("utterances")]
  if not any(utterance.startswith(DOCTOR) for utterance in said[1:]):
    raise UserError("has no answer of a doctor")
  name = f"{row.split}-{row.number}"
  for turn, utterance in enumerate(said):
    if turn and utterance.startswith(DOCTOR):
      yield Record(
        id=f"{name}-{turn}",
        split=row.split,
        task=DIALOGUE,
        question="\n".join(said[:turn]).removeprefix(PATIENT).strip(),
        answer=utterance.removeprefix(DOCTOR).strip(),
        group=name,
        meta={"description": row.text("description", optional=True)},
      )


MED_DIALOG = Builder(
  name="med_dialog",
  version="2020",
  url="https://github.com/UCSD-AI4H/Medical-Dialogue-System",
  licence="of healthcaremagic.com and icliniq.com",
  layout="english-train.json, english-dev.json and english-test.json",
  group="dialogue",
  tasks=(DIALOGUE,),
  media=(),
  rows=_rows,
  records=_records,
)
