import nibabel
import numpy as np
import pytest

from medflax.data.builders.msd import millilitres
from medflax.data.readers import read_media


@pytest.fixture
def volume(source):
  def write(name, array, spacing=1.0):
    path = source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), affine), path)

  return write


def test_questions_follow_the_masks(source, volume, build):
  scan = np.random.default_rng(0).integers(0, 100, (10, 12, 8))
  mask = np.zeros(scan.shape)
  mask[:4] = 1
  mask[4:5] = 2
  empty = np.zeros(scan.shape)
  empty[:2] = 1
  for task, name, labels in (
    ("Task04_Hippocampus", "hippocampus_001", mask),
    ("Task03_Liver", "liver_0", empty),
    ("Task04_Hippocampus", "hippocampus_002", mask),
    ("Task04_Hippocampus", "knee_1", mask),
  ):
    volume(f"{task}/imagesTr/{name}.nii.gz", scan, 2.0)
    volume(f"{task}/labelsTr/{name}.nii.gz", labels, 2.0)
  volume("Task04_Hippocampus/imagesTr/hippocampus_003.nii.gz", scan)
  hidden = source / "Task04_Hippocampus/imagesTr/._hippocampus_001.nii.gz"
  hidden.write_bytes(b"not a volume")
  broken = source / "Task04_Hippocampus/labelsTr/hippocampus_002.nii.gz"
  broken.write_bytes(broken.read_bytes()[:60])
  built = build("msd")
  found = {sample.id: sample for samples in built.samples.values() for sample in samples}
  names = ("modality", "organ", "size anterior", "size posterior", "larger")
  asked = [sample.id for sample in found.values() if sample.group == "hippocampus_001"]
  assert len(asked) == len(names)
  organ = found["hippocampus_001-organ"]
  assert (organ.answer, organ.task, organ.meta["modality"]) == ("hippocampus", "organ", "MR")
  assert "liver" in organ.choices
  path = source / "Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz"
  assert (organ.media[0].array == read_media(path, "volume", (4, 8, 8)).array).all()
  size = found["hippocampus_001-size_anterior_hippocampus"]
  assert (size.answer, size.choices) == (millilitres(4 * 12 * 8 * 8.0), ())
  larger = found["hippocampus_001-larger_anterior_hippocampus_posterior_hippocampus"]
  assert larger.answer == "anterior hippocampus"
  tumour = found["liver_0-presence_liver_tumour"]
  assert (tumour.answer, tumour.choices, tumour.task) == ("no", ("yes", "no"), "presence")
  assert tumour.meta == {"organ": "liver", "modality": "CT", "answer_type": "closed"}
  assert built.data.media_per_sample["volume"] == 1
  liver, missing, unknown = sorted(built.reasons, key=len)
  assert {liver, missing, unknown} == {
    "has no mask: 'Task04_Hippocampus/labelsTr/hippocampus_003.nii.gz' does not exist; "
    "paths are relative to the data folder",
    "Task04_Hippocampus/labelsTr/hippocampus_002.nii.gz is broken",
    "knee_1 is of none of the tasks: BRATS, la, liver, hippocampus, prostate, lung, pancreas, "
    "hepaticvessel, spleen, colon",
  }


def test_every_sequence_of_a_case_is_a_volume_of_its_own(source, volume, write, build):
  scans = np.random.default_rng(0).integers(0, 100, (10, 12, 8, 4))
  mask = np.zeros(scans.shape[:3])
  mask[:4], mask[6:] = 1, 3
  modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
  write("Task01_BrainTumour/dataset.json", {"modality": modality})
  for case, array in (("BRATS_001", scans), ("BRATS_002", scans[..., :3]), ("BRATS_003", scans)):
    volume(f"Task01_BrainTumour/imagesTr/{case}.nii.gz", array)
    volume(f"Task01_BrainTumour/labelsTr/{case}.nii.gz", mask)
  broken = source / "Task01_BrainTumour/imagesTr/BRATS_003.nii.gz"
  broken.write_bytes(broken.read_bytes()[:-900])
  volume("Task05_Prostate/imagesTr/prostate_00.nii.gz", scans[..., :2])
  volume("Task05_Prostate/labelsTr/prostate_00.nii.gz", mask)
  built = build("msd")
  found = {sample.id: sample for samples in built.samples.values() for sample in samples}
  assert {sample.group for sample in found.values()} == {"BRATS_001"}
  for number in range(4):
    volume(f"{number}.nii.gz", scans[..., number])
    alone = read_media(source / f"{number}.nii.gz", "volume", (4, 8, 8)).array
    for sample in found.values():
      assert len(sample.media) == 4 and (sample.media[number].array == alone).all()
  names = "FLAIR, T1w, t1gd, T2w"
  presence = found["BRATS_001-presence_enhancing_tumour"]
  assert presence.question == f"The volumes are {names}. Do they show enhancing tumour?"
  assert (presence.answer, presence.meta["sequences"]) == ("yes", names)
  assert found["BRATS_001-modality"].question == "Is this CT or MR?"
  assert built.data.media_per_sample["volume"] == 4
  assert built.info["media"] == {"volumes": 4}
  assert {item["reason"].split("imagesTr/")[1] for item in built.rejected} == {
    "BRATS_002.nii.gz holds 3 volumes, and its dataset.json names 4",
    "BRATS_003.nii.gz#0 is truncated or broken; copy or export it again",
    "prostate_00.nii.gz holds 2 volumes, and its dataset.json names 0",
  }


@pytest.mark.parametrize(
  ("mm3", "text"), [(2744.0, "2.7"), (183_400.0, "183"), (70.0, "0.07"), (10_000.0, "10")]
)
def test_sizes_are_rounded(mm3, text):
  assert millilitres(mm3) == text
