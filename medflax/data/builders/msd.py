"""Medical Segmentation Decathlon (Antonelli et al., 2022): questions that its masks answer.

One or several of its tasks, told apart by the names of their files. Masks are public for the
training cases alone, which are split by a hash. Modality and organ are questions only where there
are several tasks. Tasks 1 and 5 hold several sequences of MR a file: all of a case are shown, one
volume each, under the names that the task's dataset.json gives them.
"""

import pathlib
import posixpath
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import nibabel.nifti1
import numpy as np

from medflax.data.builders.base import CLOSED, OPEN, Builder, Record, volume_of
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import VOLUME
from medflax.data.manifest import hash_split
from medflax.utils import UserError

CT, MR = "CT", "MR"


class Task(NamedTuple):
  """What a task's volumes show, and the structures of its masks by number."""

  modality: str
  organ: str
  structures: Mapping[int, str]
  lesions: tuple[int, ...] = ()


_TUMOUR = {1: "oedema", 2: "non-enhancing tumour", 3: "enhancing tumour"}
TASKS = {
  "BRATS": Task(MR, "brain", _TUMOUR, (2, 3)),
  "la": Task(MR, "heart", {1: "left atrium"}),
  "liver": Task(CT, "liver", {1: "liver", 2: "liver tumour"}, (2,)),
  "hippocampus": Task(MR, "hippocampus", {1: "anterior hippocampus", 2: "posterior hippocampus"}),
  "prostate": Task(MR, "prostate", {1: "peripheral zone", 2: "transition zone"}),
  "lung": Task(CT, "lung", {1: "lung tumour"}, (1,)),
  "pancreas": Task(CT, "pancreas", {1: "pancreas", 2: "pancreatic tumour"}, (2,)),
  "hepaticvessel": Task(CT, "liver", {1: "hepatic vessels", 2: "liver tumour"}, (2,)),
  "spleen": Task(CT, "spleen", {1: "spleen"}),
  "colon": Task(CT, "colon", {1: "colon cancer"}, (1,)),
}
_ORGANS = tuple(sorted({task.organ for task in TASKS.values()}))
_TABLE = "dataset.json"
_LAYOUTS = (("imagesTr", "labelsTr"), ("images", "labels"))


def _rows(source: SourceFolder) -> Iterator[Row]:
  found = [
    (name, name.replace(f"{images}/", f"{labels}/"))
    for images, labels in _LAYOUTS
    # The archives hold a hidden ._ file beside every volume.
    for name in source.names(f"**/{images}/[!.]*.nii.gz")
  ]
  if not found:
    source.absent.append("imagesTr/*.nii.gz")
  tables: dict[str, tuple[str, ...]] = {}
  for number, (image, mask) in enumerate(found, start=1):
    case = posixpath.basename(image).removesuffix(".nii.gz")
    folder = posixpath.dirname(posixpath.dirname(image))
    if folder not in tables:
      tables[folder] = _sequences(source, posixpath.join(folder, _TABLE))
    fields = {"case": case, "image": image, "mask_name": mask, "sequences": tables[folder]}
    try:
      files = {"file": source.file(image), "mask": source.file(mask)}
      yield Row(image, number, fields | files, hash_split(case))
    except UserError as error:
      yield Row(image, number, {}, hash_split(case), f"has no mask: {error}")


def _sequences(source: SourceFolder, name: str) -> tuple[str, ...]:
  """What each volume of a file is, by the table of a task; () where it does not tell."""
  content = source.json(name) if source.has(name) else {}
  table = content.get("modality") if isinstance(content, dict) else None
  if not isinstance(table, dict):
    return ()
  return tuple(str(table[key]) for key in sorted(table, key=lambda key: (len(key), key)))


def _media(row: Row) -> tuple[tuple[str, str], ...]:
  """Every volume of a row's file."""
  path, sequences = row.text("image"), row.fields["sequences"]
  try:
    _, _, _, *more = nibabel.nifti1.Nifti1Image.from_filename(row.fields["file"]).shape
  except Exception:  # nibabel lets zlib, struct and OS errors of a broken file through
    more = []  # reading it will tell
  if not more or more == [1]:
    return ((VOLUME, path),)
  if more != [len(sequences)]:
    raise UserError(f"{path} holds {more[0]} volumes, and its {_TABLE} names {len(sequences)}")
  return tuple((VOLUME, volume_of(path, index)) for index in range(len(sequences)))


def _records(row: Row) -> Iterator[Record]:
  case = row.text("case")
  task = TASKS.get(case.rsplit("_", 1)[0])
  if task is None:
    raise UserError(f"{case} is of none of the tasks: {', '.join(TASKS)}")
  sizes = _sizes(row.fields["mask"], row.text("mask_name"))
  media, sequences = _media(row), row.fields["sequences"]
  meta = {"organ": task.organ, "modality": task.modality}
  named, shows = "", "Does this volume show"
  if len(media) > 1:
    meta["sequences"] = ", ".join(sequences)
    named, shows = f"The volumes are {meta['sequences']}. ", "Do they show"

  def record(name: str, kind: str, question: str, answer: str, choices: tuple[str, ...]) -> Record:
    return Record(
      id=f"{case}-{name.replace(' ', '_')}",
      split=row.split,
      task=kind,
      question=question,
      answer=answer,
      group=case,
      media=media,
      topic=name,
      answer_type=CLOSED if choices else OPEN,
      choices=choices,
      meta=meta,
    )

  yield record("modality", "modality", "Is this CT or MR?", task.modality, (CT, MR))
  yield record("organ", "organ", "Which organ is this about?", task.organ, _ORGANS)
  present = {number: name for number, name in task.structures.items() if sizes.get(number)}
  for number in task.lesions:
    name = task.structures[number]
    answer = "yes" if number in present else "no"
    question = f"{named}{shows} {name}?"
    yield record(f"presence {name}", "presence", question, answer, ("yes", "no"))
  for number, name in present.items():
    question = f"{named}How large is the {name} in ml?"
    yield record(f"size {name}", "size", question, millilitres(sizes[number]), ())
  for first, second in zip(present, [*present][1:], strict=False):
    names = present[first], present[second]
    if sizes[first] != sizes[second]:
      answer = names[int(sizes[second] > sizes[first])]
      question = f"{named}Which is larger, the {names[0]} or the {names[1]}?"
      yield record(f"larger {' '.join(names)}", "larger", question, answer, names)


def millilitres(cubic_mm: float) -> str:
  """A volume with two significant figures, or whole millilitres above 10: "2.7", "183"."""
  millilitres = cubic_mm / 1000
  return f"{millilitres:.0f}" if millilitres >= 10 else f"{millilitres:.2g}"


def _sizes(mask: pathlib.Path, name: str) -> dict[int, float]:
  """The volume of each structure of a mask in mm³."""
  try:
    image = nibabel.nifti1.Nifti1Image.from_filename(mask)
    labels, counts = np.unique(np.asanyarray(image.dataobj), return_counts=True)
    voxel = float(np.prod(image.header.get_zooms()[:3]))
  except Exception:  # nibabel lets zlib, struct and OS errors of a broken file through
    raise UserError(f"{name} is truncated or broken; download it again") from None
  return {int(label): count * voxel for label, count in zip(labels, counts, strict=True)}


MSD = Builder(
  name="msd",
  version="1.0",
  url="http://medicaldecathlon.com",
  licence="CC BY-SA 4.0",
  layout="imagesTr/, labelsTr/ and dataset.json of one or several tasks",
  group="case",
  tasks=("modality", "organ", "presence", "size", "larger"),
  media=(VOLUME,),
  answers=(OPEN, CLOSED),
  rows=_rows,
  records=_records,
)
