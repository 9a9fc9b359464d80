"""The hippocampus MR volumes of the Medical Segmentation Decathlon as a folder data set.

  python examples/hippocampus_manifest.py --from TASK04_DIR --to data/hippocampus
  python -m medflax.main --config=configs/flamingo_med.py:variant=small,data=folder \
    --config.data.root=data/hippocampus

TASK04_DIR holds images/ and labels/ (or imagesTr/ and labelsTr/) of Task04_Hippocampus (Antonelli
et al., 2022): T1 crops, masks of 1 anterior and 2 posterior. The masks answer three questions:

* larger: which of the two parts has more voxels;
* size: whether the whole is small, medium or large, by the tertiles of the training cases in mm³;
* direction: whether the anterior part lies towards the top or the bottom of the axial slices.

In the files as published the last answer would always be the top. So half of the volumes are
exported flipped along the anterior-posterior axis, without telling the header: training cases both
ways, validation and test cases one way each. The exported files are for these questions only; do
not read anatomy off them. All volumes are padded with their minimum to one grid, so that a voxel
is the same size to the model whatever the crop, which the question about size needs.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

import nibabel
import numpy as np
import tqdm

from medflax.data.export import convert_main, start_folder, write_manifest
from medflax.utils import UserError

ANTERIOR, POSTERIOR = 1, 2
LAYOUTS = (("images", "labels"), ("imagesTr", "labelsTr"))
SIZES = ("small", "medium", "large")
AP_AXIS = 1  # of a canonical (right, anterior, superior) array


@dataclasses.dataclass(frozen=True)
class Case:
  """One patient's volume and mask, both (R, A, S), with voxels of `spacing` mm."""

  name: str
  volume: np.ndarray
  mask: np.ndarray
  spacing: tuple[float, ...]

  @property
  def size(self) -> float:
    """Volume of the whole hippocampus in mm³."""
    return float(np.count_nonzero(self.mask) * np.prod(self.spacing))


def load_cases(source: pathlib.Path) -> list[Case]:
  """All cases, in an order by a hash of their names."""
  folders = next((pair for pair in LAYOUTS if all((source / part).is_dir() for part in pair)), None)
  if folders is None:
    raise UserError(f"{source} has no images/ and labels/; --from needs MSD Task04_Hippocampus")
  paths = sorted((source / folders[0]).glob("hippocampus_*.nii.gz"))
  cases = [_load(path, source / folders[1] / path.name) for path in tqdm.tqdm(paths, disable=None)]
  if len({np.round(case.spacing, 3).tobytes() for case in cases}) != 1:
    raise UserError(f"{source} holds no cases, or voxels of several sizes; resample them to one")
  return sorted(cases, key=lambda case: hashlib.sha256(case.name.encode()).digest())


def _load(image_path: pathlib.Path, mask_path: pathlib.Path) -> Case:
  try:
    image, mask = (
      nibabel.as_closest_canonical(nibabel.load(path)) for path in (image_path, mask_path)
    )
    volume, labels = np.asanyarray(image.dataobj), np.asarray(mask.dataobj)
  except (OSError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
    raise UserError(f"{image_path.name} cannot be read ({error}); download it again") from None
  if volume.shape != labels.shape or not {ANTERIOR, POSTERIOR} <= set(np.unique(labels).tolist()):
    raise UserError(f"the mask of {image_path.name} does not fit it; download both again")
  name = image_path.name.removesuffix(".nii.gz")
  return Case(name, volume, labels, image.header.get_zooms()[:3])


def split_cases(cases: list[Case]) -> dict[str, list[Case]]:
  """60 % of the cases to train on, 10 % to choose by, 30 % to test on."""
  val, test = round(0.6 * len(cases)), round(0.7 * len(cases))
  return {"train": cases[:val], "val": cases[val:test], "test": cases[test:]}


def pad(array: np.ndarray, grid: np.ndarray) -> np.ndarray:
  """Centres `array` in `grid`, filled up with its minimum."""
  before = (grid - array.shape) // 2
  widths = np.stack([before, grid - array.shape - before], axis=1)
  return np.pad(array, widths, constant_values=array.min())


def records(
  case: Case, mask: np.ndarray, name: str, split: str, tertiles: np.ndarray
) -> Iterator[dict[str, Any]]:
  """The manifest's rows about one exported volume, whose (possibly flipped) mask is `mask`."""
  shared = {"volumes": [f"volumes/{name}.nii.gz"], "group": case.name, "split": split}
  anterior, posterior = (np.argwhere(mask == part) for part in (ANTERIOR, POSTERIOR))
  if len(anterior) != len(posterior):
    yield {
      "id": f"{name}-larger",
      "task": "larger",
      "question": "Which part of the hippocampus is larger, anterior or posterior?",
      "answer": "anterior" if len(anterior) > len(posterior) else "posterior",
      "choices": ("anterior", "posterior"),
      **shared,
    }
  yield {
    "id": f"{name}-size",
    "task": "size",
    "question": "Is this hippocampus small, medium or large?",
    "answer": SIZES[int(np.searchsorted(tertiles, case.size))],
    "choices": SIZES,
    **shared,
  }
  ahead = anterior.mean(axis=0)[AP_AXIS] > posterior.mean(axis=0)[AP_AXIS]
  yield {
    "id": f"{name}-direction",
    "task": "direction",
    "question": "Does the anterior part lie towards the top or the bottom of the slices?",
    "answer": "top" if ahead else "bottom",
    "choices": ("top", "bottom"),
    **shared,
  }


def convert(source: pathlib.Path, target: pathlib.Path) -> list[dict[str, Any]]:
  """Writes the folder data set and returns the rows of its manifest."""
  splits = split_cases(load_cases(source))
  target = start_folder(source, target)
  (target / "volumes").mkdir()
  grid = np.max([case.volume.shape for cases in splits.values() for case in cases], axis=0)
  tertiles = np.quantile([case.size for case in splits["train"]], (1 / 3, 2 / 3))
  rows = []
  for split, cases in splits.items():
    for index, case in enumerate(cases):
      for flip in (False, True) if split == "train" else (index % 2 == 1,):
        name = f"{case.name}{'-flipped' if flip else ''}"
        volume, mask = pad(case.volume, grid), pad(case.mask, grid)
        if flip:
          volume, mask = np.flip(volume, AP_AXIS), np.flip(mask, AP_AXIS)
        image = nibabel.Nifti1Image(volume, np.diag([*case.spacing, 1.0]))
        nibabel.save(image, target / "volumes" / f"{name}.nii.gz")
        rows += records(case, mask, name, split, tertiles)
  write_manifest(target, rows)
  print(f"{len(rows)} questions on volumes of {' × '.join(map(str, grid))} voxels, ", end="")
  print(f"cases: { {split: len(cases) for split, cases in splits.items()} }, ", end="")
  print(f"tertiles: {tertiles.round()} mm³")
  return rows


if __name__ == "__main__":
  convert_main(__doc__, convert)
