"""Fingerprints tell copies and crops from another patient's picture of the same anatomy."""

import numpy as np
import pytest

from medflax.data.documents import Media
from medflax.leakage.check import Limits
from medflax.leakage.pictures import (
  BITS,
  alignment,
  digest,
  fingerprint,
  hashes,
  views,
  zoomed_hashes,
)
from tests.leakage.pictures import COPIES, CROPS, scan, volume

LIMITS = Limits()
SEEDS = range(6)


def prints(pictures):
  return np.stack([fingerprint(picture[..., None]) for picture in pictures])


@pytest.mark.parametrize("name", COPIES)
def test_hashes_survive(name):
  originals, copies = prints(map(scan, SEEDS)), prints(COPIES[name](scan(s)) for s in SEEDS)
  cosines = (hashes(originals) * hashes(copies)).sum(axis=1)
  assert cosines.min() >= LIMITS.phash


@pytest.mark.parametrize("name", CROPS)
def test_crops_align_with_what_they_were_cut_from(name):
  originals, crops = prints(map(scan, SEEDS)), prints(CROPS[name](scan(s)) for s in SEEDS)
  found = [alignment(a, b) for a, b in zip(originals, crops, strict=True)]
  assert min(found) >= LIMITS.crop
  assert found == [alignment(b, a) for a, b in zip(originals, crops, strict=True)]
  # Among all zooms of the crop, one is nearer to the original than to any other picture.
  cosines = (zoomed_hashes(crops) @ hashes(originals).T).max(axis=0)
  assert (cosines.argmax(axis=1) == np.arange(len(SEEDS))).all()


def test_other_patients_do_not_match():
  originals = prints(map(scan, SEEDS))
  cosines = hashes(originals) @ hashes(originals).T
  assert np.diag(cosines) == pytest.approx(1, abs=1e-5)
  assert (cosines - 2 * np.eye(len(SEEDS))).max() < LIMITS.phash
  pairs = [(a, b) for i, a in enumerate(originals) for b in originals[:i]]
  assert max(alignment(a, b) for a, b in pairs) < LIMITS.crop


def test_a_cosine_counts_bits():
  a, b = hashes(prints([scan(0), scan(1)]))
  differing = int((np.sign(a) != np.sign(b)).sum())
  assert float(a @ b) == pytest.approx(1 - 2 * differing / BITS, abs=1e-5)


def test_volumes_lose_their_black_frame():
  bare = Media(volume(0)[..., None], "volume")
  framed = Media(np.pad(bare.array, ((3, 9), (0, 20), (11, 0), (0, 0))), "volume")
  for a, b in zip(views(bare), views(framed), strict=True):
    np.testing.assert_array_equal(fingerprint(a), fingerprint(b))


def test_digests_are_of_pixels():
  grey = scan(0)[..., None]
  one, three = Media(grey), Media(np.repeat(grey, 3, axis=-1))
  changed = grey.copy()
  changed[0, 0] ^= 1
  assert digest(one) == digest(three) != digest(Media(changed))
  assert digest(one) != digest(Media(np.ascontiguousarray(grey.swapaxes(0, 1))))


def test_a_constant_picture_is_no_error():
  blank = prints([np.zeros((9, 7), np.uint8), np.full((50, 50), 200, np.uint8), scan(0)])
  assert np.isfinite(hashes(blank)).all()
  assert alignment(blank[0], blank[2]) < LIMITS.crop
