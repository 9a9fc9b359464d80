"""Folders of DICOM slices as the volumes of a manifest, and what is odd about them."""

import json
import logging

import numpy as np
import pydicom
import pydicom.dataset
import pydicom.uid
import pytest

from medflax import workdir as workdir_lib
from medflax.data.folder import FolderDataset
from medflax.utils import UserError

SECRET, UID = "Xq7Secret", "1.2.826.777666555"
SHADES = (40, 80, 120, 160, 200)  # of the slices, from the feet to the head


def write_series(folder, numbers, *, seed=0, series=1, tilt=0.0):
  """Slices of 6 × 6 pixels in files whose names say nothing about their order."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, number in zip(
    np.random.default_rng(seed).permutation(len(numbers)), numbers, strict=True
  ):
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = f"{UID}.{series}.{number}"
    for keyword, value in {
      "PatientName": f"{SECRET}^Jane",
      "PatientID": SECRET,
      "PatientBirthDate": "19010203",
      "SeriesDescription": SECRET,
      "ProtocolName": SECRET,
      "SeriesInstanceUID": f"{UID}.{series}",
      "SOPInstanceUID": f"{UID}.{series}.{number}",
      "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
      "ImagePositionPatient": [0, tilt * number, 2.0 * number],
      "PixelSpacing": [1, 1],
      "WindowCenter": 128,
      "WindowWidth": 256,
      "SamplesPerPixel": 1,
      "PhotometricInterpretation": "MONOCHROME2",
      "Rows": 6,
      "Columns": 6,
      "BitsAllocated": 16,
      "BitsStored": 16,
      "HighBit": 15,
      "PixelRepresentation": 0,
    }.items():
      setattr(dataset, keyword, value)
    pixels = np.full((6, 6), SHADES[number], np.uint16)
    dataset.add_new("PixelData", "OW", pixels.tobytes())
    dataset.save_as(folder / f"{seed}-{name}", enforce_file_format=True)


def write_manifest(root, volumes, **fields):
  row = {"question": "How bright?", "answer": "rising", "split": "train"}
  lines = [json.dumps(row | {"volumes": [path]} | fields) for path in volumes]
  (root / "manifest.jsonl").write_text("\n".join(lines))


def load(root, **options):
  return FolderDataset(root, (6, 6), (5, 6, 6), **options)


def test_a_shuffled_series_is_one_volume(tmp_path):
  write_series(tmp_path / "ct/s3", range(5), seed=3)
  write_manifest(tmp_path, ["ct/s3/"])
  data = load(tmp_path)
  [sample] = data.samples("vqa", "train")
  [volume] = sample.media
  assert (volume.kind, volume.array.shape) == ("volume", (5, 6, 6, 1))
  np.testing.assert_allclose(volume.array.mean(axis=(1, 2, 3)), SHADES, atol=1)
  assert sample.group == "ct/s3"
  assert data.noted == []


def test_several_series_in_a_folder_are_named_in_one_line(tmp_path):
  write_series(tmp_path / "ct", range(5), seed=1)
  write_series(tmp_path / "ct", range(3), seed=2, series=2)
  write_manifest(tmp_path, ["ct"])
  with pytest.raises(UserError) as caught:
    load(tmp_path)
  assert str(caught.value).startswith(
    "manifest.jsonl line 1: ct holds 2 series (files: 5 from 1-0, 3 from 2-0); give each a folder"
  )
  assert "\n" not in str(caught.value)
  assert UID not in str(caught.value)


def test_a_folder_without_slices_is_a_bad_row(tmp_path):
  write_series(tmp_path / "ct", range(5))
  (tmp_path / "empty").mkdir()
  write_manifest(tmp_path, ["ct", "empty"])
  data = load(tmp_path, on_bad_sample="skip")
  assert [row["line"] for row in data.skipped] == [2]
  assert "empty holds no DICOM images" in data.skipped[0]["reason"]


def test_odd_files_are_listed_once_and_their_headers_are_not(tmp_path, caplog):
  caplog.set_level(logging.DEBUG)
  write_series(tmp_path / "gap", [0, 1, 2, 4])
  write_series(tmp_path / "tilted", range(5), tilt=0.5)
  (tmp_path / "tilted/report.txt").write_text(SECRET)
  write_series(tmp_path / "whole", range(5))
  write_manifest(tmp_path, ["gap", "gap", "tilted", "whole"])
  data = load(tmp_path)
  assert len(data.samples("vqa", "train")) == 4
  gap, tilted = data.noted
  assert gap == {"path": "gap", "notes": "1 slices missing, 1 gaps at 2 mm"}
  assert tilted["path"] == "tilted"
  assert tilted["notes"].startswith("gantry tilt 14.0°")
  assert tilted["notes"].endswith("; 1 files are no DICOM images")
  workdir_lib.write_lists(tmp_path, data)
  listed = (tmp_path / "noted.jsonl").read_text()
  assert list(map(json.loads, listed.splitlines())) == data.noted
  assert (tmp_path / "skipped.jsonl").read_text() == ""
  assert "2 files with something odd, listed in" in caplog.text
  for secret in (SECRET, UID, "19010203"):
    assert secret not in listed + caplog.text
