"""Damaged files over every reader: none crashes it, holds it up, or comes out in a wrong shape.

Files are read in a process of their own, so that a decoder that takes its process down is noticed.
"""

import collections
import json
import pathlib
import resource
import signal
import subprocess
import sys
import time
import warnings

import nibabel
import numpy as np
import PIL.Image
import pydicom.data
import pydicom.dataset
import pydicom.uid
import pytest

from medflax.data.documents import MEDIA_RANKS
from medflax.data.readers import read_media, read_scan
from medflax.utils import UserError

SECONDS = 20  # that one file may take; the machine may be busy
MEGABYTES = 2000  # that all of them may take
SIZES = {"image": (8, 8), "volume": (4, 8, 8)}
COMPRESSED = (
  *("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"),
  *("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_gdcm_KY.dcm", "JPGExtended.dcm"),
  *("SC_rgb_rle_2frame.dcm", "image_dfl.dcm", "JPEGLSNearLossless_16.dcm", "CT_small.dcm"),
  *("rtdose.dcm", "MR_small_bigendian.dcm"),
)


def write_good(folder):
  """One good file of every format and compression, small ones; the series is a folder."""
  rng = np.random.default_rng(0)
  grey = rng.integers(0, 255, (24, 20), np.uint8)
  PIL.Image.fromarray(grey).save(folder / "grey.png")
  PIL.Image.fromarray(grey.astype(np.uint16) * 50).save(folder / "deep.png")
  PIL.Image.fromarray(grey).convert("P").save(folder / "palette.png")
  PIL.Image.fromarray(rng.integers(0, 255, (24, 20, 4), np.uint8)).save(folder / "alpha.png")
  PIL.Image.fromarray(rng.integers(0, 255, (24, 20, 3), np.uint8)).save(folder / "a.jpg")
  PIL.Image.fromarray(grey).save(folder / "progressive.jpg", progressive=True)
  volume = rng.integers(0, 999, (5, 6, 7), np.int16)
  for name in ("a.nii", "a.nii.gz"):
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 2.0, 3.0, 1.0])), folder / name)
  for name in COMPRESSED:
    source = pathlib.Path(pydicom.data.get_testdata_file(name, download=False))
    (folder / f"p-{source.stem}.dcm").write_bytes(source.read_bytes())
  series = folder / "series"
  series.mkdir()
  for number in range(4):
    dataset = pydicom.dcmread(folder / "p-CT_small.dcm")
    dataset.ImagePositionPatient[2] = float(number)
    dataset.SOPInstanceUID = f"1.2.{number}"
    dataset.save_as(series / f"{number}")
  (folder / "r.hea").write_text("r 2 250 30\nr.dat 212 200/mV 12 0 0\nr.dat 212 200/mV 12 0 0\n")
  (folder / "r.dat").write_bytes(rng.integers(0, 256, 90, np.uint8).tobytes())
  table = np.concatenate([np.arange(30)[:, None] / 100, rng.random((30, 2))], axis=1)
  np.savetxt(folder / "a.csv", table, "%.4f", delimiter=",", header="time,I,II", comments="")
  (folder / "b.csv").write_text("\n".join(f"{a:.3f},{b:.3f}" for a, b in table[:, :2]))
  np.savez_compressed(folder / "a.npz", signal=table, fs=500)
  np.savez(folder / "b.npz", signal=table)


def flip_bits(content, rng, others):
  reach = len(content) if rng.random() < 0.5 else min(len(content), 600)  # headers more often
  for at in rng.integers(0, reach, rng.integers(1, 20)):
    content[at] ^= 1 << int(rng.integers(8))
  return content


def truncate(content, rng, others):
  return content[: int(rng.integers(0, len(content)))]


def swap_headers(content, rng, others):
  other = others[int(rng.integers(len(others)))]
  length = int(rng.choice([4, 16, 64, 132, 348, 512]))
  return bytearray(other[:length]) + content[length:]


def blank(content, rng, others):
  start = int(rng.integers(0, len(content)))
  length = int(rng.integers(1, 200))
  content[start : start + length] = bytes([int(rng.choice([0, 255]))]) * length
  return content


def repeat(content, rng, others):
  start = int(rng.integers(0, len(content)))
  return content[:start] + content[start // 2 : start] + content[start:]


def other_numbers(content, rng, others):
  """Lengths and sizes of 16 or 32 bits become extreme."""
  for _ in range(int(rng.integers(1, 4))):
    at = int(rng.integers(0, min(len(content), 1500)))
    value = int(rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]))
    raw = value.to_bytes(4, str(rng.choice(["little", "big"])))
    content[at : at + 4] = raw[: int(rng.choice([2, 4]))].ljust(4, b"\0")[:4]
  return content


DAMAGES = (flip_bits, truncate, swap_headers, blank, repeat, other_numbers)


def damage(folder, number):
  """Damages one of the good files, and gives the path to read, to write back, and its content."""
  rng = np.random.default_rng((1, number))
  paths = sorted(p for p in folder.rglob("*") if p.is_file())
  path = paths[number % len(paths)]
  content = path.read_bytes()
  others = [p.read_bytes()[:600] for p in paths]
  how = DAMAGES[int(rng.integers(len(DAMAGES)))]
  path.write_bytes(bytes(how(bytearray(content), rng, others)))
  read = path.parent if path.parent.name == "series" else path
  return (path.with_suffix(".hea") if path.suffix == ".dat" else read), path, content, how.__name__


class HangError(BaseException):
  """Not an `Exception`, which a reader might catch."""


def attempt(path):
  """Reads a file as the folder data set and as a transform would."""
  try:
    scan = read_scan(path)
    assert scan.array.ndim == MEDIA_RANKS[scan.kind]
    assert scan.array.size
    assert scan.array.dtype.kind in "iuf"
    assert np.isfinite(scan.array).all()
    if scan.kind in SIZES:
      array = read_media(path, scan.kind, SIZES[scan.kind]).array
      assert array.shape == (*SIZES[scan.kind], 3 if scan.kind == "image" else 1)
  except UserError as error:
    return "refused" if "\n" not in str(error) else f"wrote lines: {error}"
  except HangError:
    return "hung"
  except Exception as error:
    return f"crashed: {error!r}"
  return "read"


def main(folder, start, count):
  """Reads damaged files one after the other, and prints a line of JSON for each."""
  warnings.simplefilter("ignore")

  def too_long(*_):
    raise HangError

  signal.signal(signal.SIGALRM, too_long)
  write_good(pathlib.Path(folder))
  for number in range(int(start), int(start) + int(count)):
    read, path, content, how = damage(pathlib.Path(folder), number)
    line = {"number": number, "file": path.name, "how": how}
    print(json.dumps(line), flush=True)
    began = time.monotonic()
    signal.alarm(SECONDS)
    line["outcome"] = attempt(read)
    signal.alarm(0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(line | {"seconds": time.monotonic() - began, "peak": peak}), flush=True)
    path.write_bytes(content)


def check(folder, start, count):
  done = subprocess.run(
    [sys.executable, __file__, str(folder), str(start), str(count)], capture_output=True, text=True
  )
  lines = [json.loads(line) for line in done.stdout.splitlines()]
  assert done.returncode == 0, f"died after {lines[-1:]}: {done.stderr[-2000:]}"
  results = [line for line in lines if "outcome" in line]
  outcomes = collections.Counter(line["outcome"].split(":")[0] for line in results)
  print(dict(outcomes), "slowest:", max(results, key=lambda line: line["seconds"]))
  assert len(results) == count
  assert outcomes.keys() <= {"read", "refused"}, [
    line for line in results if line["outcome"] not in ("read", "refused")
  ]
  assert max(line["peak"] for line in results) < MEGABYTES
  return outcomes


def test_the_good_files_are_good(tmp_path):
  write_good(tmp_path)
  paths = [p for p in tmp_path.iterdir() if p.suffix != ".dat"]
  assert {path.name: attempt(path) for path in paths} == {path.name: "read" for path in paths}


def test_damaged_files(tmp_path):
  outcomes = check(tmp_path, 0, 60)
  assert min(outcomes["read"], outcomes["refused"]) > 5


@pytest.mark.slow
def test_a_thousand_damaged_files(tmp_path):
  outcomes = check(tmp_path, 1000, 1000)
  assert min(outcomes["read"], outcomes["refused"]) > 100


if __name__ == "__main__":
  main(*sys.argv[1:])
