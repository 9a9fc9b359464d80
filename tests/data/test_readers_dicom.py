"""DICOM: what files in the wild hold, how values are shown, and what must never be told."""

import logging
import pathlib
import subprocess
import sys
import traceback
import zlib

import numpy as np
import pydicom
import pydicom.data
import pydicom.dataset
import pydicom.uid
import pytest

from medflax.data.readers import dicom_file, read_media, read_scan
from medflax.data.readers.series import find_series
from medflax.data.transforms.intensity import show
from medflax.utils import UserError

# Only medflax's own import silences pydicom; pytest undoes that for every test.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

VALUES = np.arange(64, dtype=np.uint16).reshape(8, 8) * 50


def item(**elements):
  dataset = pydicom.Dataset()
  for keyword, value in elements.items():
    setattr(dataset, keyword, value)
  return dataset


def build(pixels=VALUES, syntax=pydicom.uid.ExplicitVRLittleEndian, **elements):
  dataset = item(
    SamplesPerPixel=1,
    PhotometricInterpretation="MONOCHROME2",
    Rows=pixels.shape[0],
    Columns=pixels.shape[1],
    BitsAllocated=16,
    BitsStored=16,
    HighBit=15,
    PixelRepresentation=int(pixels.dtype.kind == "i"),
  )
  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = syntax
  dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
  dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
  dataset.add_new("PixelData", "OW", pixels.tobytes())
  dataset.update(item(**elements))
  return dataset


def save(path, dataset):
  dataset.save_as(path, enforce_file_format=True)
  return path


# What the file says about its values


def test_ct_is_in_hounsfield_units(tmp_path):
  scan = read_scan(save(tmp_path / "a", build(Modality="CT", RescaleSlope=2, RescaleIntercept=-9)))
  assert scan.units == "HU"
  np.testing.assert_array_equal(scan.array[..., 0], VALUES * 2.0 - 9)
  mr = build(Modality="MR", RescaleSlope=2, RescaleIntercept=0)
  assert read_scan(save(tmp_path / "b", mr)).units == ""
  said = build(Modality="OT", RescaleSlope=1, RescaleIntercept=0, RescaleType="HU")
  assert read_scan(save(tmp_path / "c", said)).units == "HU"


def test_a_modality_lut_replaces_slope_and_intercept(tmp_path):
  table = np.arange(100, dtype=np.uint16) * 7 + 3
  lut = item(LUTDescriptor=[100, 50, 16], ModalityLUTType="US")
  lut.add_new("LUTData", "OW", table.tobytes())
  scan = read_scan(save(tmp_path / "a", build(ModalityLUTSequence=[lut])))
  expected = table[np.clip(VALUES.astype(int) - 50, 0, 99)]
  np.testing.assert_array_equal(scan.array[..., 0], expected)


def test_a_voi_lut_shows_values_where_there_is_no_window(tmp_path):
  table = np.linspace(0, 1000, 3000).astype(np.uint16)
  lut = item(LUTDescriptor=[3000, 100, 16])
  lut.add_new("LUTData", "US", table.tolist())
  scan = read_scan(save(tmp_path / "a", build(VOILUTSequence=[lut])))
  expected = table[np.clip(VALUES.astype(int) - 100, 0, 2999)] / 1000
  np.testing.assert_allclose(show(scan).array[..., 0], expected, atol=1e-6)
  both = build(VOILUTSequence=[lut], WindowCenter=1600.5, WindowWidth=3201)
  shown = show(read_scan(save(tmp_path / "b", both))).array[..., 0]
  np.testing.assert_allclose(shown, VALUES / 3200, atol=1e-6)


@pytest.mark.parametrize("width", [0, -5, 1e30, "1e999"])
def test_a_senseless_window_is_ignored(tmp_path, width):
  plain = read_scan(save(tmp_path / "a", build()))
  odd = read_scan(save(tmp_path / "b", build(WindowCenter=5, WindowWidth=str(width))))
  np.testing.assert_array_equal(show(plain).array, show(odd).array)


def test_deflated_files_are_read_and_their_bombs_are_not(tmp_path, monkeypatch):
  path = save(tmp_path / "a.dcm", build(syntax=pydicom.uid.DeflatedExplicitVRLittleEndian))
  np.testing.assert_array_equal(read_scan(path).array[..., 0], VALUES)
  monkeypatch.setattr(dicom_file, "_MAX_BYTES", 10_000)
  meta = path.read_bytes()[: 144 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength]
  deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
  path.write_bytes(meta + deflater.compress(b"\0" * 10_000_000) + deflater.flush())
  with pytest.raises(UserError, match="inflates to more than 10,000 bytes"):
    read_scan(path)


def test_sizes_are_not_believed(tmp_path):
  for elements, message in [
    ({"Rows": 60_000, "Columns": 60_000}, "more than"),
    ({"Rows": 6_000, "Columns": 6_000}, "truncated"),
    ({"NumberOfFrames": 2_000_000_000}, "more than"),
    ({"Rows": 0}, "broken"),
  ]:
    with pytest.raises(UserError, match=message):
      read_scan(save(tmp_path / "a.dcm", build(**elements)))


def test_a_compressed_frame_may_not_claim_another_size(tmp_path):
  for name in (
    "MR_small_jp2klossless.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
  ):
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file(name, download=False))
    read_scan(save(tmp_path / "good.dcm", dataset))
    dataset.Rows *= 2
    with pytest.raises(UserError, match="is truncated or broken"):
      read_scan(save(tmp_path / "bad.dcm", dataset))


# pydicom's own test files

ROOT = pathlib.Path(pydicom.data.__file__).parent / "test_files"
# With pixels, but damaged on purpose.
DAMAGED = {
  "badVR.dcm",
  "JPEG-lossy.dcm",
  "JPEG2000-embedded-sequence-delimiter.dcm",
  "MR_truncated.dcm",
}
REASONS = ("is DICOM without an image", "is not a DICOM file", "is truncated or broken")


def outcome(path):
  """What reading a file ends with; "" is an image or a volume."""
  try:
    scan = read_scan(path)
  except UserError as error:
    return str(error).removeprefix(f"{path} ")
  assert np.isfinite(scan.array).all()
  size = (8, 8) if scan.kind == "image" else (4, 8, 8)
  assert read_media(path, scan.kind, size).array.shape[:-1] == size
  return ""


def test_pydicoms_own_files_are_read_or_refused_with_a_reason():
  paths = [p for p in sorted(ROOT.rglob("*")) if p.is_file() and p.suffix in ("", ".dcm")]
  read = 0
  for path in paths:
    if path.name == "README":
      continue
    try:
      dataset = pydicom.dcmread(path)
      has_pixels = "Rows" in dataset and any(name in dataset for name in dicom_file.PIXELS)
    except pydicom.errors.InvalidDicomError:
      has_pixels = False
    told = outcome(path)
    if has_pixels and path.name not in DAMAGED:
      assert told == "", path.name
      read += 1
    else:
      assert told.startswith(REASONS), path.name
  assert read >= 80


def test_the_series_of_pydicoms_folders():
  folder = ROOT / "dicomdirtests"
  chest = read_scan(folder / "98892001" / "CT5N")
  assert (chest.array.shape, chest.spacing) == ((5, 16, 16, 1), (2.5, 0.488281, 0.488281))
  assert (chest.units, chest.notes) == ("HU", ())
  assert "161 slices missing" in read_scan(folder / "77654033" / "CT2").notes[0]
  scouts = find_series(folder / "98892003" / "MR1")  # in three planes
  assert ([len(files) for files in scouts.series], scouts.others) == ([1, 1, 1], 0)


# Nothing personal


SECRET = "Xq7Doe"
UID_SECRET = "1.2.826.777666555"
PERSONAL = {
  "PatientName": f"{SECRET}^Jane",
  "PatientID": f"{SECRET}-17",
  "PatientBirthDate": "19010203",
  "PatientAddress": f"{SECRET} street",
  "PatientComments": f"about {SECRET}",
  "OtherPatientIDs": [f"{SECRET}-1", f"{SECRET}-2"],
  "ReferringPhysicianName": f"Dr {SECRET}",
  "OperatorsName": f"{SECRET}^Operator",
  "InstitutionName": f"{SECRET} hospital",
  "InstitutionalDepartmentName": f"{SECRET}",
  "AccessionNumber": f"{SECRET}",
  "StudyID": f"{SECRET}",
  "StudyDescription": f"{SECRET} study",
  "SeriesDescription": f"{SECRET} series",
  "ProtocolName": f"{SECRET}",
  "StationName": f"{SECRET}",
  "DeviceSerialNumber": f"{SECRET}",
  "ImageComments": f"{SECRET}",
  "StudyInstanceUID": UID_SECRET,
  "SeriesInstanceUID": f"{UID_SECRET}.1",
  "FrameOfReferenceUID": f"{UID_SECRET}.2",
  "StudyDate": "19040506",
  "WindowCenterWidthExplanation": f"{SECRET}",
  "RequestAttributesSequence": [item(RequestedProcedureDescription=f"{SECRET}")],
}
GEOMETRY = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}


def personal(number=0, **elements):
  """A slice whose header is full of names, in places where they belong and where they do not."""
  geometry = GEOMETRY | {"ImagePositionPatient": [0, 0, float(number)]}
  own = {"SOPInstanceUID": f"{UID_SECRET}.9.{number}"}
  dataset = build(**(PERSONAL | geometry | own | elements))
  dataset.private_block(0x0011, SECRET, create=True).add_new(1, "LO", f"{SECRET} private")
  return dataset


def damaged_headers(folder):
  """Files in which names stand where other things are expected, or lengths are wrong."""
  odd = {
    "Modality": SECRET,
    "RescaleType": SECRET,
    "PhotometricInterpretation": SECRET.upper(),
    "VOILUTFunction": SECRET.upper(),
    "ImageType": [SECRET.upper()],
  }
  paths = []
  for keyword, value in odd.items():
    window = {"WindowCenter": 100, "WindowWidth": 100}
    paths.append(save(folder / f"{keyword}.dcm", personal(**(window | {keyword: value}))))
  content = paths[0].read_bytes()
  numbers = {b"DS": 4, b"US": 4, b"IS": 4, b"UI": 4, b"PN": 4, b"CS": 4}
  for number, start in enumerate(range(140, len(content) - 200, 23)):
    damaged = bytearray(content)
    damaged[start : start + 4] = (list(numbers)[number % 6] + bytes([number % 251, 1]))[:4]
    paths.append(folder / f"damaged-{number}.dcm")
    paths[-1].write_bytes(damaged if number % 3 else damaged[: start + 40])
  return paths


def test_identifiers_reach_no_scan_error_log_or_warning(tmp_path, caplog, capfd, recwarn):
  caplog.set_level(logging.DEBUG)
  folder = tmp_path / "series"
  folder.mkdir()
  for number in (0, 1, 2, 5):
    save(folder / str(number), personal(number))
  several = tmp_path / "several"
  several.mkdir()
  for number in range(4):
    save(several / str(number), personal(number, SeriesInstanceUID=f"{UID_SECRET}.{number}"))
  told, outcomes = [], {"read": 0, "refused": 0}
  for path in [folder, several, *damaged_headers(tmp_path)]:
    try:
      scan = read_scan(path, name="file")
      told += [repr(vars(scan)), repr(getattr(scan.voi, "keywords", "")), repr(show(scan))]
      outcomes["read"] += 1
    except UserError as error:
      told += [str(error), *traceback.format_exception(error)]
      outcomes["refused"] += 1
  assert min(outcomes.values()) > 10, outcomes
  output = capfd.readouterr()
  told += [caplog.text, output.out, output.err]
  text = "\n".join(told).lower()
  for secret in (SECRET, UID_SECRET, "19010203", "19040506"):
    assert secret.lower() not in text


def test_reading_says_nothing_at_all(tmp_path):
  """As users run it, where no test catches what pydicom has to say."""
  damaged_headers(tmp_path)
  script = """
import logging, pathlib, sys
logging.basicConfig(level=logging.DEBUG)
from medflax.data.readers import read_scan
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
  try:
    read_scan(path)
  except ValueError:
    pass
"""
  done = subprocess.run(
    [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120
  )
  assert done.returncode == 0, done.stderr
  assert SECRET.lower() not in (done.stdout + done.stderr).lower()
  assert "pydicom" not in done.stdout + done.stderr
