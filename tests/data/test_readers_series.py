"""Where voxels lie: NIfTI in all axis orders, DICOM series and enhanced files, shuffled."""

import itertools
import zlib

import nibabel
import numpy as np
import pydicom
import pydicom.dataset
import pydicom.uid
import pytest

from medflax.data.readers import read_scan
from medflax.data.readers.series import find_series, read_series
from medflax.utils import UserError

# Right, front, head; no axis or direction is like another.
RAS = np.random.default_rng(0).permutation(3 * 4 * 5).reshape(3, 4, 5).astype(np.int16)
SPACING = np.array([1.5, 2.0, 3.0])
HUNG = RAS.transpose(2, 1, 0)[:, ::-1, ::-1, None]  # head up, front first, right at the left
LPS = np.array([-1.0, -1.0, 1.0])
ORDERS = [
  (order, signs)
  for order in itertools.permutations(range(3))
  for signs in itertools.product([1, -1], repeat=3)
]


def stored(order, signs):
  """The volume with its axes in `order`, some of them turned, and mm in the patient per index."""
  array = RAS.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
  axes = np.stack(
    [np.eye(3)[axis] * SPACING[axis] * s for axis, s in zip(order, signs, strict=True)]
  )
  return array, axes.T


def test_there_are_48_orders():
  assert len(ORDERS) == 48
  assert len({stored(*order)[0].tobytes() for order in ORDERS}) == 48


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_in_all_axis_orders(tmp_path, suffix):
  for order, signs in ORDERS:
    array, axes = stored(order, signs)
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = [7.0, -5.0, 3.0]
    path = tmp_path / f"a{suffix}"
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.array, HUNG)
    assert scan.spacing == (3.0, 2.0, 1.5)


def test_four_dimensions_become_channels(tmp_path):
  several = np.stack([RAS, RAS + 100], axis=-1)
  nibabel.save(nibabel.Nifti1Image(several, np.diag([*SPACING, 1])), tmp_path / "a.nii")
  np.testing.assert_array_equal(
    read_scan(tmp_path / "a.nii").array, np.concatenate([HUNG, HUNG + 100], axis=-1)
  )


def test_nifti_in_metres(tmp_path):
  image = nibabel.Nifti1Image(RAS, np.diag([*SPACING / 1000, 1]))
  image.header.set_xyzt_units("meter")
  nibabel.save(image, tmp_path / "a.nii")
  np.testing.assert_allclose(read_scan(tmp_path / "a.nii").spacing, (3.0, 2.0, 1.5), rtol=1e-6)


def item(**elements):
  dataset = pydicom.Dataset()
  for keyword, value in elements.items():
    setattr(dataset, keyword, value)
  return dataset


def base(pixels, **elements):
  meta = pydicom.dataset.FileMetaDataset()
  meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
  meta.MediaStorageSOPInstanceUID = elements.get("SOPInstanceUID", "1.2.3")
  dataset = item(
    SamplesPerPixel=1,
    PhotometricInterpretation="MONOCHROME2",
    Rows=pixels.shape[-2],
    Columns=pixels.shape[-1],
    BitsAllocated=16,
    BitsStored=16,
    HighBit=15,
    PixelRepresentation=1,
    **elements,
  )
  dataset.file_meta = meta
  dataset.add_new("PixelData", "OW", np.ascontiguousarray(pixels, np.int16).tobytes())
  return dataset


def slices(array, axes, series="1.2.77", **elements):
  """One data set a slice of `array` (slice, row, column), whose axes lie along `axes` in RAS."""
  sizes = np.linalg.norm(axes, axis=0)
  lps = axes * LPS[:, None]
  cosines = [*(lps[:, 2] / sizes[2]), *(lps[:, 1] / sizes[1])]
  return [
    base(
      plane,
      SeriesInstanceUID=series,
      SOPInstanceUID=f"{series}.{index}.{len(elements)}.{zlib.crc32(str(elements).encode())}",
      ImageOrientationPatient=[round(float(x), 6) + 0.0 for x in cosines],
      ImagePositionPatient=[round(float(x), 4) for x in lps[:, 0] * index + [10.0, -20.0, 30.0]],
      PixelSpacing=[sizes[1], sizes[2]],
      **elements,
    )
    for index, plane in enumerate(array)
  ]


def save(datasets, folder, seed=0):
  """Files whose names say nothing about their order."""
  folder.mkdir(exist_ok=True)
  numbers = np.random.default_rng(seed).permutation(len(datasets))
  for number, dataset in zip(numbers, datasets, strict=True):
    dataset.save_as(folder / f"{seed}-{number:03}", enforce_file_format=True)
  return folder


def test_shuffled_dicom_series_in_all_axis_orders(tmp_path):
  for number, (order, signs) in enumerate(ORDERS):
    folder = save(slices(*stored(order, signs)), tmp_path / str(number), seed=number)
    scan = read_scan(folder)
    np.testing.assert_array_equal(scan.array, HUNG)
    np.testing.assert_allclose(scan.spacing, (3.0, 2.0, 1.5))
    assert scan.notes == ()


def test_an_oblique_series_takes_the_closest_axes(tmp_path):
  angle = np.radians(20)
  turn = np.array(
    [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
  )
  array, axes = stored((2, 1, 0), (1, 1, -1))
  scan = read_scan(save(slices(array, turn @ axes), tmp_path / "a"))
  np.testing.assert_array_equal(scan.array, HUNG)
  np.testing.assert_allclose(scan.spacing, (3.0, 2.0, 1.5), rtol=1e-4)


def test_missing_slices_are_told(tmp_path):
  long = np.arange(12 * 4, dtype=np.int16).reshape(12, 2, 2)
  whole = slices(long, np.diag([1.0, 1.0, 2.5])[:, ::-1])
  scan = read_scan(save([s for i, s in enumerate(whole) if i not in (3, 4, 9)], tmp_path / "a"))
  assert scan.notes == ("3 slices missing, 2 gaps at 2.5 mm",)
  assert scan.array.shape == (9, 2, 2, 1)
  assert scan.spacing == (2.5, 1.0, 1.0)


def test_uneven_slices_are_told(tmp_path):
  whole = slices(np.zeros((4, 2, 2)), np.diag([1.0, 1.0, 2.0])[:, ::-1])
  whole[2].ImagePositionPatient[2] = float(whole[2].ImagePositionPatient[2]) + 0.5
  assert read_scan(save(whole, tmp_path / "a")).notes == ("slices 1.5 to 2.5 mm apart",)


def test_a_tilted_gantry_is_told(tmp_path):
  whole = slices(np.zeros((5, 2, 2)), np.diag([1.0, 1.0, 2.0])[:, ::-1])
  for index, dataset in enumerate(whole):
    dataset.ImagePositionPatient[1] = -20.0 + index * 2.0 * np.tan(np.radians(15))
  [note] = read_scan(save(whole, tmp_path / "a")).notes
  assert note.startswith("gantry tilt 15.0°")


def test_several_series_in_one_folder_are_told_apart(tmp_path):
  array, axes = stored((2, 1, 0), (1, -1, -1))
  other = stored((0, 2, 1), (1, -1, 1))
  folder = save(slices(array, axes), tmp_path / "a", seed=1)
  save(slices(*other, series="1.2.88"), folder, seed=2)
  save(slices(array[:2] + 5, axes, AcquisitionNumber=4), folder, seed=3)  # same place, same series
  save(slices(array[:1, :2], axes, InstanceNumber=9), folder, seed=4)  # a scout of another size
  (folder / "notes.txt").write_text("not an image")
  found, others, _ = find_series(folder)
  assert others == 1
  assert sorted(len(files) for files in found) == [1, 2, 3, 5]
  volumes = {len(files): read_series(files) for files in found if len(files) > 1}
  np.testing.assert_array_equal(volumes[5].array, HUNG)
  np.testing.assert_array_equal(volumes[3].array, HUNG)
  np.testing.assert_array_equal(volumes[2].array, HUNG[:2] + 5)
  with pytest.raises(UserError, match=r"holds 4 series \(.*give each a folder") as caught:
    read_scan(folder)
  assert "1.2." not in str(caught.value)
  # The first files by name; those of the other series lie between them.
  assert ": 5 from 1-000, 3 from 2-000, 2 from 3-000, 1 from 4-000)" in str(caught.value)


@pytest.mark.parametrize(
  "key", ["TemporalPositionIdentifier", "EchoNumbers", "DiffusionBValue", "AcquisitionNumber"]
)
def test_repeated_positions_are_told_apart(tmp_path, key):
  array, axes = stored((2, 1, 0), (1, -1, -1))
  for number in range(3):
    save(slices(array + number, axes, **{key: number}), tmp_path / "a", seed=number)
  found = find_series(tmp_path / "a").series
  assert len(found) == 3
  for number, files in enumerate(found):
    np.testing.assert_array_equal(read_series(files).array, HUNG + number)


def test_copies_of_a_slice_count_once_and_other_repeats_are_refused(tmp_path):
  array, axes = stored((2, 1, 0), (1, -1, -1))
  folder = save(slices(array, axes), tmp_path / "a", seed=1)
  save(slices(array, axes), folder, seed=2)
  scan = read_scan(folder)
  np.testing.assert_array_equal(scan.array, HUNG)
  assert scan.notes == ("5 files are copies of others",)
  changed = slices(array, axes)
  changed[0].SOPInstanceUID = "1.2.3.4"
  save(changed[:1], folder, seed=3)
  with pytest.raises(UserError, match="several slices at one position"):
    read_scan(folder)


def test_slices_without_an_identity_are_no_copies(tmp_path):
  whole = slices(*stored((2, 1, 0), (1, -1, -1)))
  for dataset in whole:
    dataset.SOPInstanceUID = ""
  np.testing.assert_array_equal(read_scan(save(whole, tmp_path / "a")).array, HUNG)


def test_a_broken_slice_is_named(tmp_path):
  folder = save(slices(*stored((2, 1, 0), (1, -1, -1))), tmp_path / "a")
  path = folder / "0-002"
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(UserError, match="has a slice, 0-002, that is truncated"):
    read_scan(folder)


def test_what_else_lies_there_is_counted(tmp_path):
  folder = save(slices(*stored((2, 1, 0), (1, -1, -1))), tmp_path / "a")
  (folder / "report.txt").write_text("hello")
  assert read_scan(folder).notes == ("1 files are no DICOM images",)
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="holds no DICOM images"):
    read_scan(tmp_path / "empty")


def test_slices_of_another_series_are_refused(tmp_path):
  array, axes = stored((2, 1, 0), (1, -1, -1))
  folder = save(slices(array, axes) + slices(array, axes, series="1.2.88"), tmp_path / "a")
  with pytest.raises(UserError, match="no slice of the same volume"):
    read_series(sorted(folder.iterdir()))


def enhanced(array, axes, shuffle):
  """One file of several frames, which lie where their functional groups say."""
  parts = slices(array, axes)
  first = parts[0]
  groups = [
    item(PlanePositionSequence=[item(ImagePositionPatient=part.ImagePositionPatient)])
    for part in parts
  ]
  return base(
    array[shuffle],
    NumberOfFrames=len(array),
    SharedFunctionalGroupsSequence=[
      item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=first.ImageOrientationPatient)],
        PixelMeasuresSequence=[item(PixelSpacing=first.PixelSpacing, SliceThickness=9)],
      )
    ],
    PerFrameFunctionalGroupsSequence=[groups[index] for index in shuffle],
  )


def test_enhanced_files_lie_where_their_frames_say(tmp_path):
  rng = np.random.default_rng(0)
  for order, signs in ORDERS[::5]:
    array, axes = stored(order, signs)
    enhanced(array, axes, rng.permutation(len(array))).save_as(
      tmp_path / "a.dcm", enforce_file_format=True
    )
    scan = read_scan(tmp_path / "a.dcm")
    np.testing.assert_array_equal(scan.array, HUNG)
    np.testing.assert_allclose(scan.spacing, (3.0, 2.0, 1.5))


def test_frames_that_share_positions_keep_the_files_order(tmp_path):
  array, axes = stored((2, 1, 0), (1, -1, -1))
  dataset = enhanced(array, axes, np.arange(5))
  for frame in dataset.PerFrameFunctionalGroupsSequence:
    frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0]
  dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
  scan = read_scan(tmp_path / "a.dcm")
  np.testing.assert_array_equal(scan.array[..., 0], array)
  assert scan.notes == ("frames that share positions, in the file's order",)
