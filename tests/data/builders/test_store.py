import nibabel
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medflax.data.builders import store
from medflax.data.builders.base import Record
from medflax.data.readers import read_scan
from medflax.utils import UserError


@settings(max_examples=30, deadline=None)
@given(
  st.sampled_from([np.int16, np.int32, np.float32, np.uint8]),
  st.sampled_from([1.0, 1e3, 1e5]),
  st.tuples(*[st.sampled_from([0.5, 0.7, 3.0])] * 3),
  st.integers(0, 2**16),
)
def test_volumes_come_back_as_the_reader_gives_them(tmp_path_factory, dtype, scale, spacing, seed):
  path = tmp_path_factory.mktemp("volume") / "v.nii.gz"
  values = np.random.default_rng(seed).uniform(-scale, scale, (3, 4, 5))
  with np.errstate(invalid="ignore"):
    array = values.clip(0, 255).astype(dtype) if dtype == np.uint8 else values.astype(dtype)
  nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), path)
  scan, back = read_scan(path), store.decode_media(store.load_media(path, "volume"))
  assert back.array.dtype == scan.array.dtype
  assert (back.array == scan.array).all()
  for field in store._FIELDS:
    assert getattr(back, field) == getattr(scan, field)


def test_integers_take_half_the_room(tmp_path):
  array = np.arange(1000).reshape(10, 10, 10)
  sizes = []
  for name, values in (("i", array.astype(np.int16)), ("f", array.astype(np.float32) + 0.5)):
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii")
    sizes.append(len(store.load_media(tmp_path / f"{name}.nii", "volume")))
  assert sizes[1] - sizes[0] == 2000


@pytest.mark.parametrize("name", ["p.png", "p.jpg"])
def test_pictures_are_kept_as_they_were(tmp_path, name):
  PIL.Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12)).save(tmp_path / name)
  stored = store.load_media(tmp_path / name, "image")
  assert stored.split(b"\n", 1)[1] == (tmp_path / name).read_bytes()
  assert (store.decode_media(stored).array == read_scan(tmp_path / name).array).all()


def test_what_cannot_be_stored_is_told(tmp_path):
  PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "p.png")
  nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2)), np.eye(4)), tmp_path / "four.nii")
  (tmp_path / "p.xyz").write_bytes(b"")
  with pytest.raises(UserError, match="is one image, not one volume"):
    store.load_media(tmp_path / "p.png", "volume")
  with pytest.raises(UserError, match="has 2 volumes in one file"):
    store.load_media(tmp_path / "four.nii", "volume")
  with pytest.raises(UserError, match="is of no known format"):
    store.load_media(tmp_path / "p.xyz", "image")


def test_a_shard_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / "train-00000.array_record"

  def failing():
    yield b"one"
    raise OSError("disk")

  with pytest.raises(OSError, match="disk"):
    store.write_shard(path, failing())
  assert store.write_shard(path, []) == 0
  assert list(tmp_path.iterdir()) == []
  record = store.encode_record(Record("a", "train", "t", "问?", "да", "g"), [])
  assert store.write_shard(path, [record]) == 1
  assert [p.name for p in tmp_path.iterdir()] == [path.name]
