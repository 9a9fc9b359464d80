"""Pixels of the phantoms: sides, sizes and counts are where the labels say."""

import io

import numpy as np
import pytest
from PIL import Image

from medflax.data.documents import IMAGE, VOLUME
from medflax.data.phantoms import FINDINGS, NO_FINDING, Scene, __main__, render
from medflax.data.phantoms.looks import LOOKS
from medflax.data.phantoms.scenes import LOOK_NAMES


def difference(scenes, size, seed=0):
  """How much each pixel owes to the finding: with minus without, same nuisances; [n, D, H, W]."""
  without = [Scene(scene.look) for scene in scenes]
  pictures = (render(s, size, np.random.default_rng(seed)) for s in (scenes, without))
  shown, bare = (picture.astype(np.float32).mean(axis=-1) for picture in pictures)
  return np.abs(shown - bare)


@pytest.mark.parametrize("size", [(1, 5, 9), (1, 33, 32), (1, 64, 41), (1, 2, 2)])
def test_images_of_any_size(size):
  scenes = [Scene(look, finding) for look in LOOKS for finding in ("effusion", NO_FINDING)]
  pictures = render(scenes, size, np.random.default_rng(0))
  assert pictures.shape == (len(scenes), *size, 3) and pictures.dtype == np.uint8


@pytest.mark.parametrize("size", [(2, 9, 7), (8, 32, 32), (5, 17, 30)])
def test_volumes_of_any_size(size):
  scenes = [Scene(look, "cyst") for look in LOOK_NAMES[VOLUME]]
  volumes = render(scenes, size, np.random.default_rng(0))
  assert volumes.shape == (len(scenes), *size, 1) and volumes.dtype == np.uint8


@pytest.mark.parametrize("finding", FINDINGS)
@pytest.mark.parametrize(("kind", "size"), [(IMAGE, (1, 48, 48)), (VOLUME, (8, 32, 32))])
def test_a_finding_is_visible_and_lies_on_its_side(finding, kind, size):
  scenes = [
    Scene(look, finding, side, extent)
    for look in LOOK_NAMES[kind]
    for side in ("left", "right")
    for extent in ("small", "large")
  ] * 2
  changed = difference(scenes, size)
  x = (np.arange(size[2]) + 0.5) / size[2] * 2 - 1
  centroid = (changed * x).sum(axis=(1, 2, 3)) / changed.sum(axis=(1, 2, 3))
  sides = np.array([-1 if scene.side == "left" else 1 for scene in scenes])
  assert np.all(centroid * sides > 0.08)
  strongest = changed.reshape(len(scenes), -1).max(axis=1)
  assert np.all(strongest > 25)


@pytest.mark.parametrize("finding", FINDINGS)
def test_large_is_larger_than_small(finding):
  areas = {}
  for size in ("small", "large"):
    changed = difference([Scene(look, finding, size=size) for look in LOOKS] * 4, (1, 64, 64))
    areas[size] = (changed > 12).mean(axis=(1, 2, 3)).reshape(4, -1)
  # On average over where it lies; the same look, for a body clips what sticks out of it.
  assert np.all(areas["large"].mean(axis=0) > 1.8 * areas["small"].mean(axis=0))


def components(mask):
  """The number of 4-connected regions of a small boolean image."""
  label = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
  while True:
    padded = np.pad(label, 1)
    spread = np.max(
      [
        padded[1:-1, 1:-1],
        padded[2:, 1:-1],
        padded[:-2, 1:-1],
        padded[1:-1, 2:],
        padded[1:-1, :-2],
      ],
      axis=0,
    )
    spread = np.where(mask, spread, 0)
    if np.array_equal(spread, label):
      return len(np.unique(label[mask]))
    label = spread


@pytest.mark.parametrize("count", [1, 2, 3])
def test_as_many_nodules_as_stated(count):
  scenes = [Scene("microscopy", "nodule", side, count=count) for side in ("left", "right")] * 4
  changed = difference(scenes, (1, 48, 48))[:, 0]
  assert [components(image > 30) for image in changed] == [count] * len(scenes)


def test_an_image_does_not_depend_on_those_after_it():
  scenes = [Scene("body ct", "nodule"), Scene("ultrasound", "cyst"), Scene("brain mr", "infarct")]
  few, all_of_them = (render(scenes[:n], (1, 24, 24), np.random.default_rng(5)) for n in (1, 3))
  assert np.array_equal(few[0], all_of_them[0])


def test_findings_appear_in_some_slices_only():
  changed = difference([Scene(look, "nodule") for look in LOOK_NAMES[VOLUME]], (12, 32, 32))
  in_slice = (changed > 25).any(axis=(2, 3)).sum(axis=1)
  assert np.all((in_slice >= 2) & (in_slice <= 9))


def test_contact_sheet_is_a_picture():
  sheet = Image.open(io.BytesIO(__main__.contact_sheet(16, 8, 0)))
  assert sheet.width > 16 * 8 and sheet.height > 9 * 8
