"""Signals: WFDB in all its formats, CSV and npz."""

import contextlib
import io
import pickle
import zipfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from medflax.data.readers import read_media, read_scan
from medflax.data.readers.tables import read_csv
from medflax.utils import UserError


def fails(path, match):
  with pytest.raises(UserError, match=match) as caught:
    read_scan(path)
  assert str(caught.value).startswith(str(path))
  assert "\n" not in str(caught.value)


# WFDB: encoders written from the format's description (signal(5)), independently of the reader.


def bits_212(samples):
  out = bytearray()
  for a, b in samples.reshape(-1, 2) & 0xFFF:
    out += bytes([a & 0xFF, (a >> 8) | (b >> 8) << 4, b & 0xFF])
  return bytes(out)


def bits_310(samples):
  out = bytearray()
  for a, b, c in samples.reshape(-1, 3) & 0x3FF:
    out += int((c & 31) << 11 | a << 1).to_bytes(2, "little")
    out += int((c >> 5) << 11 | b << 1).to_bytes(2, "little")
  return bytes(out)


def bits_311(samples):
  words = [int(a | b << 10 | c << 20) for a, b, c in samples.reshape(-1, 3) & 0x3FF]
  return b"".join(word.to_bytes(4, "little") for word in words)


def whole(size, byteorder="little", offset=0):
  return lambda samples: b"".join(
    (int(x) + offset).to_bytes(size, byteorder, signed=not offset) for x in samples.reshape(-1)
  )


# How each format is written, and the bits of a sample.
ENCODERS = {
  16: (whole(2), 16),
  24: (whole(3), 24),
  32: (whole(4), 32),
  61: (whole(2, "big"), 16),
  80: (whole(1, offset=128), 8),
  160: (whole(2, offset=32768), 16),
  212: (bits_212, 12),
  310: (bits_310, 10),
  311: (bits_311, 10),
}


def record(folder, samples, kind=16, *, gain="200(0)/mV", extra="", data=None, length=True):
  """Writes a record of one file; `samples` (T, C) are what the converter saw."""
  lines = [f"r {samples.shape[1]} 250 {len(samples) if length else ''}".strip()]
  for column in samples.T:
    checksum = int(column.astype(np.int64).sum()) & 0xFFFF
    lines.append(f"r.dat {kind}{extra} {gain} 16 0 0 {checksum} 0 lead {len(lines)}")
  lines.append("# 69 M Secret Patient")
  (folder / "r.hea").write_text("\n".join(lines) + "\n")
  (folder / "r.dat").write_bytes(ENCODERS[kind][0](samples) if data is None else data)
  return folder / "r.hea"


@pytest.mark.parametrize("kind", ENCODERS)
@hypothesis.given(st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=10)
def test_all_formats_come_back(tmp_path_factory, kind, seed):
  bits = ENCODERS[kind][1]
  limit = 2 ** (bits - 1)
  samples = np.random.default_rng(seed).integers(-limit + 1, limit, (12, 2))
  scan = read_scan(record(tmp_path_factory.mktemp("r"), samples, kind))
  np.testing.assert_allclose(scan.array, samples / 200, rtol=1e-6)
  assert (scan.kind, scan.spacing, scan.units) == ("signal", (0.004,), "mV")
  assert scan.channels == ("lead 1", "lead 2")
  assert scan.notes == ()


def test_gain_baseline_and_units(tmp_path):
  samples = np.array([[100, 7], [-40, 9]])
  path = record(tmp_path, samples, gain="12.5(-20)/mmHg")
  np.testing.assert_allclose(read_scan(path).array, (samples + 20) / 12.5)
  assert read_scan(path).units == "mmHg"
  lines = path.read_text().split("\n")
  path.write_text("\n".join([lines[0], lines[1].replace("12.5(-20)/mmHg", "0"), *lines[2:]]))
  scan = read_scan(path)
  np.testing.assert_allclose(scan.array[:, 0], samples[:, 0] / 200)
  assert scan.units == "mV,mmHg"


def test_several_samples_a_frame_are_averaged_and_skew_is_undone(tmp_path):
  fast, slow = np.arange(12), np.array([50, 60, 70, 80])
  data = np.concatenate([np.append(fast.reshape(3, 4)[i], slow[i]) for i in range(3)] + [slow[3:]])
  (tmp_path / "r.hea").write_text("r 2 100 3\nr.dat 16x4 1(0)/mV\nr.dat 16:1 1(0)/mV\n")
  (tmp_path / "r.dat").write_bytes(
    whole(2)(np.concatenate([data[:-1], np.zeros(4, int), slow[3:]]))
  )
  scan = read_scan(tmp_path / "r.hea")
  np.testing.assert_allclose(scan.array, [[1.5, 60], [5.5, 70], [9.5, 80]])


def test_missing_samples_are_interpolated_and_told(tmp_path):
  samples = np.array([[10, 1], [-32768, 2], [30, 3], [-32768, 4]])
  scan = read_scan(record(tmp_path, samples))
  np.testing.assert_allclose(scan.array[:, 0] * 200, [10, 20, 30, 30])
  assert scan.notes == ("2 samples of channel 1 missing, interpolated",)


def test_a_byte_offset_and_a_length_that_is_not_told(tmp_path):
  samples = np.arange(10).reshape(5, 2)
  data = b"x" * 24 + whole(2)(samples)
  path = record(tmp_path, samples, extra="+24", data=data, length=False)
  np.testing.assert_allclose(read_scan(path).array * 200, samples, rtol=1e-6)


def test_comments_are_not_read(tmp_path):
  assert "Secret" not in repr(read_scan(record(tmp_path, np.ones((4, 2), int))))


def test_broken_records_are_refused(tmp_path):
  samples = np.arange(40).reshape(20, 2)
  path = record(tmp_path, samples)
  header, data = path.read_text(), (tmp_path / "r.dat").read_bytes()
  (tmp_path / "r.dat").write_bytes(data[:-3])
  fails(path, "truncated samples in r.dat")
  (tmp_path / "r.dat").write_bytes(b"\x01" + data[1:])
  fails(path, "checksum of r.dat")
  (tmp_path / "r.dat").unlink()
  fails(path, "lacks its samples r.dat")
  for old, new, match in [
    ("r.dat", "../r.dat", "another folder"),
    ("r.dat", "/etc/passwd", "another folder"),
    ("r 2", "r/3 2", "several segments"),
    ("dat 16", "dat 516", "format 516; known: 16"),
    ("r 2 250 20", "r 2 250 99999999999", "more than"),
    ("r 2 250", "r 2 0", "broken"),
    ("r 2 250", "r 9 250", "broken"),
    ("r 2 250", "hello there", "not a WFDB header"),
  ]:
    assert old in header
    path.write_text(header.replace(old, new))
    fails(path, match)


# CSV


def test_csv_with_time_and_names(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("Time [ms],I,II\n0,1,2\n2,3,4.5\n4,-5,6e1\n")
  scan = read_scan(path)
  np.testing.assert_array_equal(scan.array, np.float32([[1, 2], [3, 4.5], [-5, 60]]))
  assert scan.spacing == (0.002,)
  assert scan.channels == ("I", "II")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_without_names(tmp_path, separator):
  path = tmp_path / "a.csv"
  path.write_text(f"\ufeff1{separator}2\n3{separator}4\n")
  scan = read_scan(path)
  np.testing.assert_array_equal(scan.array, [[1, 2], [3, 4]])
  assert scan.spacing is None
  assert scan.channels == ()


@pytest.mark.parametrize(
  ("text", "match"),
  [
    ("", "empty"),
    ("I,II\n", "not a table"),
    ("I,II\n1,2\n3,Secret\n", "not a table of numbers"),
    ("1,2\n3\n", "not a table of numbers"),
    ("1,2\n3,nan\n", "1 NaN or infinite"),
    ("1,2\n3,1e99\n", "1 NaN or infinite"),
    ("time,I\n0,1\n1,1\n5,1\n", "do not run evenly"),
    ("time,I\n0,1\n", "do not run evenly"),
    ("time\n0\n1\n", "no samples"),
    (",".join(["1"] * 5000), "more than 4,096 columns"),
  ],
)
def test_what_is_no_table_is_refused(tmp_path, text, match):
  (tmp_path / "a.csv").write_text(text)
  fails(tmp_path / "a.csv", match)


@hypothesis.given(st.text(max_size=60))
@hypothesis.settings(deadline=None)
def test_any_text_is_a_signal_or_refused(tmp_path_factory, text):
  path = tmp_path_factory.getbasetemp() / "any.csv"
  path.write_bytes(text.encode("utf-8", "surrogatepass"))
  with contextlib.suppress(UserError):
    assert np.isfinite(read_csv(path).array).all()


# npz


def test_npz_signals(tmp_path):
  signal = np.random.default_rng(0).random((20, 3))
  np.savez(tmp_path / "a.npz", signal=signal, fs=500, other=np.arange(3))
  scan = read_scan(tmp_path / "a.npz")
  np.testing.assert_array_equal(scan.array, signal.astype(np.float32))
  assert scan.spacing == (0.002,)
  np.savez_compressed(tmp_path / "b.npz", np.asfortranarray(signal[:, :2]))
  np.testing.assert_array_equal(read_scan(tmp_path / "b.npz").array, signal[:, :2].astype("f4"))
  np.savez(tmp_path / "c.npz", np.arange(5))
  assert read_scan(tmp_path / "c.npz").array.shape == (5, 1)


class Trap:
  """Unpickling it would end the test run."""

  def __reduce__(self):
    return (exit, (3,))


def test_nothing_is_unpickled(tmp_path):
  np.savez(tmp_path / "a.npz", signal=np.array([Trap()], object))
  fails(tmp_path / "a.npz", "never unpickled")
  (tmp_path / "b.npz").write_bytes(pickle.dumps(Trap()))
  fails(tmp_path / "b.npz", "truncated or broken")
  with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
    archive.writestr("signal.npy", pickle.dumps(Trap()))
  fails(tmp_path / "c.npz", "truncated or broken")


def test_npz_bombs_and_strangers_are_refused(tmp_path):
  def archive(name, header_of, payload=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
      buffer, {"descr": "<f8", "fortran_order": False, "shape": header_of}
    )
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as file:
      file.writestr("signal.npy", buffer.getvalue() + payload)
    return tmp_path / name

  fails(archive("a.npz", (10**12, 2)), "claims more values")
  fails(archive("b.npz", (10**6, 2), b"\0" * 1000), "claims more values")
  fails(archive("c.npz", (0, 2)), "no samples")
  np.savez(tmp_path / "d.npz", a=np.ones(3), b=np.ones(3))
  fails(tmp_path / "d.npz", "no array named `signal`")
  np.savez(tmp_path / "e.npz", signal=np.ones((2, 3, 4)))
  fails(tmp_path / "e.npz", "no signal")
  np.savez(tmp_path / "f.npz", signal=np.array(["a", "b"]))
  fails(tmp_path / "f.npz", "no signal")


def test_a_signal_is_no_image(tmp_path):
  (tmp_path / "a.csv").write_text("1,2\n3,4\n")
  with pytest.raises(UserError, match="is one signal, not one image"):
    read_media(tmp_path / "a.csv", "image", (8, 8))
