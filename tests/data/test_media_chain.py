import numpy as np
import pytest

from medflax.data.documents import IMAGE, VOLUME
from medflax.data.media_chain import Draw, MediaChain
from medflax.data.transforms.scan import Scan
from medflax.utils import UserError

SIZES = {IMAGE: (8, 8), VOLUME: (4, 8, 8)}
PICTURE = Scan(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8), IMAGE)
RANDOM = {
  "crop": {"crop": {"size": (8, 8), "at": "random"}},
  "flip": {"flip": {"axes": ("rows", "columns")}},
  "affine": {"affine": {}},
  "intensity": {"intensity": {}},
}


def chain(config, seed=0):
  return MediaChain(SIZES, {"image": config}, seed)


@pytest.mark.parametrize("name", RANDOM)
def test_draws_depend_on_seed_epoch_and_index_alone(name):
  made = chain(RANDOM[name])
  assert made.is_random(IMAGE)
  assert not made.is_random(VOLUME)
  show = lambda chain, *draw: chain(PICTURE, Draw(*draw, "what?")).array.tobytes()
  assert show(made, 3, 5) == show(chain(RANDOM[name]), 3, 5)
  for others in (
    [show(made, epoch, 5) for epoch in range(8)],
    [show(made, 3, index) for index in range(8)],
    [show(chain(RANDOM[name], seed), 3, 5) for seed in range(8)],
  ):
    assert len(set(others)) > 1


@pytest.mark.parametrize("name", RANDOM)
def test_without_a_draw_nothing_is_left_to_chance(name):
  settled = {"crop": {"crop": {"size": (8, 8)}}}.get(name, {})
  got = chain(RANDOM[name])(PICTURE)
  assert (got.array == chain(settled)(PICTURE).array).all()
  assert got.array.dtype == np.uint8
  assert got.array.shape == (8, 8, 3)


def test_a_picture_of_a_side_is_never_mirrored():
  made = chain(RANDOM["flip"])
  shown = {made(PICTURE, Draw(i, 0, "Which side? left")).array.tobytes() for i in range(20)}
  assert len(shown) == 1


def test_decoders_may_scale_down_only_what_nothing_else_is_done_to():
  made = chain({"crop": {"size": (100, 100)}})
  assert made.smallest(IMAGE) is None
  assert made.smallest(VOLUME) == (4, 8, 8)
  assert MediaChain(SIZES, {}, 0).smallest(IMAGE) == (8, 8)


def test_what_a_scan_cannot_have_done_is_told():
  made = chain({"resample": {"spacing": (1.0, 1.0)}})
  with pytest.raises(UserError, match="does not tell its spacing"):
    made(PICTURE)
