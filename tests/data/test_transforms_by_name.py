"""Transforms as a config asks for them: what they do, and what their randomness depends on."""

import pickle

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from medflax.data.documents import IMAGE, SIGNAL, VOLUME
from medflax.data.transforms import TRANSFORMS, apply_transforms, build_transforms
from medflax.data.transforms.intensity import CT_WINDOWS, show, to_media
from medflax.data.transforms.scan import RGB, Scan
from medflax.data.transforms.sides import mentions_side
from medflax.utils import UserError

RNG = np.random.default_rng(0)
HU = Scan(
  RNG.integers(-1000, 2000, (6, 8, 10, 1)).astype(np.float32), VOLUME, (5.0, 1.0, 0.5), units="HU"
)
COLOUR = Scan(RNG.integers(0, 256, (12, 9, 3), np.uint8), IMAGE, units=RGB)
GREY = Scan(RNG.integers(0, 256, (12, 9, 1), np.uint8), IMAGE, (0.2, 0.2))
ECG = Scan(RNG.standard_normal((50, 2)).astype(np.float32), SIGNAL, (0.004,), units="mV")
NO_SIDE = "Is there a fracture? yes"


def run(config, scan, seed=0, epoch=0, index=0, text=NO_SIDE):
  chain = build_transforms(config)
  return apply_transforms(chain, scan, seed=seed, epoch=epoch, index=index, text=text)


def same(one, other):
  return one.array.shape == other.array.shape and np.array_equal(one.array, other.array)


def ball(shape, spacing, radius):
  """A soft ball of `radius` mm in the middle."""
  grids = np.meshgrid(
    *[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"
  )
  distance = np.sqrt(sum(grid**2 for grid in grids))
  return np.clip((radius - distance) / 2 + 0.5, 0, 1).astype(np.float32)[..., None]


# Names, order and randomness


ALL = {
  VOLUME: {
    "channel": {},
    "plane": {"name": "coronal"},
    "resample": {"spacing": (1.0, 2.0, 1.0)},
    "window": {"by": "bone"},
    "slices": {"count": 5, "at": "random"},
    "crop": {"size": (0, 4, 6), "at": "random"},
    "resize": {"size": (4, 6, 6)},
    "flip": {"axes": ("depth", "rows", "columns")},
    "affine": {},
    "intensity": {"noise": 0.05},
  },
  IMAGE: {
    "resample": {"spacing": (0.3, 0.3)},
    "window": {},
    "crop": {"size": (6, 5), "at": "random"},
    "resize": {"size": (6, 6), "keep": False},
    "flip": {},
    "affine": {},
    "intensity": {"noise": 0.05},
  },
  SIGNAL: {
    "resample": {"spacing": (0.01,)},
    "window": {"by": "deviations"},
    "crop": {"size": (10,), "at": "random"},
    "resize": {"size": (6,)},
    "intensity": {},
  },
}
SCANS = {VOLUME: HU, IMAGE: GREY, SIGNAL: ECG}
SHAPES = {VOLUME: (4, 6, 6, 1), IMAGE: (6, 6, 1), SIGNAL: (6, 2)}


def test_every_transform_is_tried_here():
  assert set().union(*ALL.values()) == set(TRANSFORMS)


@pytest.mark.parametrize("kind", ALL)
def test_all_of_them_in_a_row(kind):
  scan = run(ALL[kind], SCANS[kind])
  assert scan.array.shape == SHAPES[kind]
  assert scan.array.dtype == np.float32
  assert scan.array.min() >= 0
  assert scan.array.max() <= 1
  media = to_media(scan)
  assert media.kind == kind
  assert media.array.shape[:-1] == SHAPES[kind][:-1]


@pytest.mark.parametrize("kind", ALL)
@hypothesis.given(st.integers(0, 2**31), st.integers(0, 99), st.integers(0, 2**40))
@hypothesis.settings(deadline=None, max_examples=10)
def test_the_result_depends_on_seed_epoch_and_index_alone(kind, seed, epoch, index):
  before = SCANS[kind].array.copy()
  first = run(ALL[kind], SCANS[kind], seed, epoch, index)
  np.random.default_rng(0).random()
  assert same(first, run(ALL[kind], SCANS[kind], seed, epoch, index))
  for other in [(seed + 1, epoch, index), (seed, epoch + 1, index), (seed, epoch, index + 1)]:
    assert not same(first, run(ALL[kind], SCANS[kind], *other))
  np.testing.assert_array_equal(SCANS[kind].array, before)  # nothing is changed in place


def test_the_order_of_the_config_does_not_matter():
  backwards = dict(reversed(ALL[VOLUME].items()))
  assert same(run(ALL[VOLUME], HU, 3, 1, 4), run(backwards, HU, 3, 1, 4))


def test_one_more_transform_changes_no_others_randomness():
  flip = {"flip": {"axes": ("rows", "columns")}}
  for index in range(20):
    plain = run(flip, COLOUR, index=index)
    more = run(
      flip | {"intensity": dict(brightness=0.0, contrast=0.0, gamma=0.0)}, COLOUR, index=index
    )
    np.testing.assert_allclose(more.array, plain.array / np.float32(255), atol=1e-6)


def test_chains_go_to_worker_processes():
  chain = build_transforms(ALL[VOLUME])
  assert pickle.loads(pickle.dumps(chain)) == chain


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"flipp": {}}, "unknown transform 'flipp'; did you mean 'flip'"),
    ({"flip": {"axis": "rows"}}, "option of transform flip 'axis'; did you mean 'axes'"),
    ({"flip": {"axes": ("left",)}}, "axis to flip 'left'"),
    ({"window": {"by": "lungs"}}, "unknown window 'lungs'; did you mean 'lung'"),
    ({"resize": {}}, "transform resize needs all of: size"),
    ({"crop": {"size": (3, 3), "at": "center"}}, "'center'; did you mean 'centre'"),
    ({"plane": {"name": "sagital"}}, "did you mean 'sagittal'"),
    ({"resample": {"spacing": (0.0, 1.0)}}, "is not positive"),
    ({"slices": {"count": 0}}, "0 slices are none"),
  ],
)
def test_mistakes_are_told_when_it_is_built(config, message):
  with pytest.raises(UserError, match=message):
    build_transforms(config)


@pytest.mark.parametrize(
  ("config", "scan", "message"),
  [
    ({"window": {"by": "lung"}}, ECG, "no Hounsfield units"),
    ({"window": {"by": "lung"}}, GREY, "no Hounsfield units"),
    ({"resample": {"spacing": (1.0, 1.0)}}, COLOUR, "does not tell its spacing"),
    ({"resample": {"spacing": (1.0, 1.0)}}, HU, "give 3 numbers"),
    ({"resample": {"spacing": (1e-4, 1e-4, 1e-4)}}, HU, "would have more than"),
    ({"plane": {"name": "coronal"}}, GREY, "only a volume"),
    ({"slices": {"count": 2}}, GREY, "only a volume has slices"),
    ({"flip": {"axes": ("depth",)}}, GREY, "cannot be flipped along depth"),
    ({"flip": {}}, ECG, "cannot be flipped"),
    ({"affine": {}}, ECG, "no affine"),
    ({"channel": {"index": 2}}, ECG, "has 2 channels"),
    ({"resize": {"size": (4, 4)}}, HU, "give 3 numbers"),
  ],
)
def test_scans_that_do_not_fit_are_refused(config, scan, message):
  with pytest.raises(UserError, match=message):
    run(config, scan)


# What is shown


@pytest.mark.parametrize("name", CT_WINDOWS)
def test_ct_windows_show_their_range(name):
  centre, width = CT_WINDOWS[name]
  values = np.float32([centre - width, centre - width / 2, centre, centre + width / 2, 9999])
  scan = Scan(values.reshape(1, 5, 1), IMAGE, units="HU")
  np.testing.assert_allclose(show(scan, name).array.ravel(), [0, 0, 0.5, 1, 1], atol=1e-5)


def test_bytes_and_colours_stay_as_they_are():
  assert same(show(GREY), GREY)
  deep = Scan(COLOUR.array.astype(np.uint16) * 256 + 7, IMAGE, units=RGB)
  assert same(show(deep), COLOUR)


def test_monochrome1_is_turned_around():
  scan = Scan(np.float32([[[0], [50], [100]]]), IMAGE, inverted=True)
  np.testing.assert_allclose(show(scan, "range").array.ravel(), [1, 0.5, 0])


def test_windows_are_those_of_each_channel():
  values = np.stack([np.arange(100), np.arange(100) * 1000 + 5], axis=-1).astype(np.float32)
  for by in ("percentile", "range", "deviations", "auto"):
    shown = show(Scan(values, SIGNAL), by).array
    np.testing.assert_allclose(shown[:, 0], shown[:, 1], atol=1e-5)
    assert shown[0, 0] < 0.25 < 0.75 < shown[-1, 0]


def test_several_channels_are_no_volume_for_a_model_but_one_of_them_is():
  several = Scan(np.concatenate([HU.array, -HU.array], axis=-1), VOLUME, HU.spacing)
  with pytest.raises(UserError, match=r"4 dimensions \(2 volumes\)"):
    to_media(show(several))
  chosen = run({"channel": {"index": 1}, "window": {"by": "range"}}, several)
  np.testing.assert_allclose(chosen.array, 1 - show(HU, "range").array, atol=1e-6)


def test_intensities_stay_inside_and_vary():
  config = {"intensity": dict(brightness=0.5, contrast=0.5, gamma=0.5, noise=0.2)}
  means = []
  for index in range(30):
    array = run(config, GREY, index=index).array
    assert array.min() >= 0
    assert array.max() <= 1
    means.append(array.mean())
  assert np.std(means) > 0.05
  nothing = {"intensity": dict(brightness=0.0, contrast=0.0, gamma=0.0)}
  np.testing.assert_allclose(run(nothing, GREY).array, GREY.array / 255.0, atol=1e-6)


# Grids


def test_resampling_reaches_the_spacing():
  scan = run({"resample": {"spacing": (2.5, 2.0, 1.0)}, "window": {"by": "range"}}, HU)
  assert scan.array.shape == (12, 4, 5, 1)
  assert scan.spacing == (2.5, 2.0, 1.0)
  signal = run({"resample": {"spacing": (0.002,)}}, ECG)
  assert signal.array.shape == (100, 2)


def test_resampling_keeps_places():
  ramp = np.broadcast_to(np.arange(20, dtype=np.float32)[:, None, None, None], (20, 4, 4, 1))
  finer = run(
    {"resample": {"spacing": (0.5, 1.0, 1.0)}, "window": {"by": "range"}},
    Scan(ramp, VOLUME, (1.0, 1.0, 1.0)),
  )
  inside = finer.array[2:-2, 0, 0, 0] * 19
  np.testing.assert_allclose(inside, (np.arange(40) / 2 - 0.25)[2:-2], atol=1e-3)


def test_crops_lie_in_the_middle_or_anywhere():
  scan = Scan(np.arange(100, dtype=np.uint8).reshape(10, 10, 1), IMAGE)
  centre = run({"crop": {"size": (4, 0)}}, scan).array
  np.testing.assert_array_equal(centre, scan.array[3:7])
  starts = set()
  for index in range(60):
    crop = run({"crop": {"size": (4, 20), "at": "random"}}, scan, index=index).array
    assert crop.shape == (4, 10, 1)
    start = int(crop[0, 0, 0]) // 10
    np.testing.assert_array_equal(crop, scan.array[start : start + 4])
    starts.add(start)
  assert starts == set(range(7))


def test_slices_are_spread_over_the_depth():
  depth = np.arange(60, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)
  scan = Scan(depth, VOLUME, (1.0, 1.0, 1.0))
  even = run({"slices": {"count": 6}}, scan)
  assert even.array[:, 0, 0, 0].tolist() == [5, 15, 25, 35, 45, 55]
  assert even.spacing == (10.0, 1.0, 1.0)
  seen = set()
  for index in range(80):
    chosen = run({"slices": {"count": 6, "at": "random"}}, scan, index=index).array[:, 0, 0, 0]
    assert (chosen // 10).tolist() == [0, 1, 2, 3, 4, 5]
    seen.update(chosen.tolist())
  assert len(seen) > 50
  assert run({"slices": {"count": 90}}, scan).array.shape[0] == 90


def test_planes_are_hung_as_radiologists_do():
  volume = np.zeros((3, 4, 5, 1), np.uint8)  # inferior first, anterior first, right first
  volume[2, 0, 0] = 1  # superior, anterior, right
  volume[0, 3, 4] = 2  # inferior, posterior, left
  scan = Scan(volume, VOLUME, (3.0, 4.0, 5.0))
  coronal = run({"plane": {"name": "coronal"}}, scan)
  assert coronal.array.shape == (4, 3, 5, 1)
  assert coronal.spacing == (4.0, 3.0, 5.0)
  assert coronal.array[0, 0, 0, 0] == 1  # front slice, head up, right at the left
  assert coronal.array[3, 2, 4, 0] == 2
  sagittal = run({"plane": {"name": "sagittal"}}, scan)
  assert sagittal.array.shape == (5, 3, 4, 1)
  assert sagittal.spacing == (5.0, 3.0, 4.0)
  assert sagittal.array[0, 0, 0, 0] == 1  # right slice, head up, front at the left
  assert sagittal.array[4, 2, 3, 0] == 2
  assert same(run({"plane": {}}, scan), scan)


def test_resizing_keeps_proportions_or_not():
  white = Scan(np.full((10, 20, 1), 255, np.uint8), IMAGE)
  kept = run({"resize": {"size": (8, 8)}}, white).array
  assert (kept[2:6] == 255).all()
  assert not kept[:2].any()
  assert (run({"resize": {"size": (8, 8), "keep": False}}, white).array == 255).all()


# Mirroring


SIDED = [
  "Which side is affected?",
  "Is the left lung clear?",
  "LEFT.",
  "the lesion is right-sided",
  "Bilateral effusions",
  "opacity in the RUL",
  "LAD stenosis",
  "Is there dextrocardia?",
  "upper lobe",
  "Where is it? above the diaphragm",
  "anterior horn",
  "left",
  "R",
  "the marker (L) is visible",
  "dilated LV",
  "Is it in the superior pole?",
  "图像的左侧有病变吗",
  "病变在右边",
  "linke Lunge",
  "der rechte Vorhof",
  "poumon gauche",
  "hémithorax droit",
  "pulmón izquierdo",
  "lóbulo DERECHO",
  "polmone sinistro",
  "pulmão esquerdo",
  "левое лёгкое",
  "الرئة اليسرى",
  "contralateral",
  "le\u00adft",
  "rotate it clockwise",
]
SIDELESS = [
  "Is there a fracture? yes",
  "What modality is this? CT",
  "How many lesions are there? 3",
  "Is the heart enlarged?",
  "Does the picture contain a liver?",
  "What plane? axial",
  "brightness, updated, topic, basal, link",
  "T2 hyper­intensity of 5 mm × 3 mm – 20°",
  "这是什么器官? 肝脏",
  "µg",
]


@pytest.mark.parametrize("text", SIDED)
def test_what_mentions_a_side_is_never_mirrored(text):
  assert mentions_side(text)
  config = {"flip": {"axes": ("rows", "columns"), "probability": 1.0}}
  for index in range(5):
    asked = run(config, COLOUR, index=index, text=f"What is seen? {text}")
    assert same(asked, COLOUR)


@pytest.mark.parametrize("text", SIDELESS)
def test_what_mentions_no_side_may_be_mirrored(text):
  assert not mentions_side(text)
  flipped = run({"flip": {"probability": 1.0}}, COLOUR, text=text)
  np.testing.assert_array_equal(flipped.array, COLOUR.array[:, ::-1])


def test_without_a_text_nothing_is_mirrored():
  assert same(run({"flip": {"probability": 1.0}}, COLOUR, text=None), COLOUR)


def test_axes_are_mirrored_by_themselves_and_as_often_as_asked():
  config = {"flip": {"axes": ("depth", "rows", "columns"), "probability": 0.25}}
  raw = show(HU, "auto").array
  counts = np.zeros(3)
  for index in range(400):
    array = run(config, HU, index=index).array
    signs = [
      (a, b, c) for a in (1, -1) for b in (1, -1) for c in (1, -1)
      if np.array_equal(array, raw[::a, ::b, ::c])
    ]  # fmt: skip
    [drawn] = signs
    counts += np.array(drawn) == -1
  np.testing.assert_allclose(counts / 400, 0.25, atol=0.08)


# Affine maps


def test_no_rotation_scale_or_shift_changes_nothing():
  config = {"affine": dict(degrees=0.0, scale=0.0, shift=0.0)}
  np.testing.assert_allclose(run(config, HU).array, show(HU).array, atol=1e-5)


@pytest.mark.parametrize(
  ("shape", "spacing", "kind"),
  [((40, 20), (1.0, 2.0), IMAGE), ((12, 40, 20), (3.0, 1.0, 2.0), VOLUME)],
)
def test_rotations_are_in_mm(shape, spacing, kind):
  scan = Scan(ball(shape, spacing, 10.0), kind, spacing)
  for index in range(5):
    turned = run({"affine": dict(degrees=60.0, scale=0.0, shift=0.0)}, scan, index=index)
    assert np.abs(turned.array - show(scan).array).mean() < 0.02
  # Taken for cubes, the voxels would turn the ball into an egg that points elsewhere.
  blind = Scan(scan.array, kind)
  worst = max(
    np.abs(
      run({"affine": dict(degrees=60.0, scale=0.0, shift=0.0)}, blind, index=i).array
      - show(scan).array
    ).mean()
    for i in range(5)
  )
  assert worst > 0.04


def test_scale_and_shift_move_as_told():
  scan = Scan(ball((41, 41), (1.0, 1.0), 8.0), IMAGE, (1.0, 1.0))
  areas, centres = [], []
  for index in range(30):
    array = run({"affine": dict(degrees=0.0, scale=0.3, shift=0.2)}, scan, index=index).array[
      ..., 0
    ]
    areas.append(array.sum() / show(scan).array.sum())
    centres.append(np.average(np.arange(41), weights=array.sum(axis=1)) - 20)
  assert 0.45 < min(areas) < 0.7
  assert 1.3 < max(areas) < 1.75
  assert 4 < np.abs(centres).max() <= 8.3


def test_images_are_mirrored_with_their_question_only():
  """Two questions about one picture: only the one without a side sees it mirrored."""
  config = {"flip": {"probability": 1.0}}
  asked = run(config, COLOUR, text="Is there an effusion on the left? no")
  other = run(config, COLOUR, text="Is there an effusion? no")
  assert same(asked, COLOUR)
  assert not same(other, COLOUR)
