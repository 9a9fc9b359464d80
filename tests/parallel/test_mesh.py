import dataclasses

import jax
import pytest

from medflax.parallel.mesh import AXES, make_mesh, sensible_sizes
from medflax.utils import UserError


def test_one_device():
  mesh = make_mesh(dict.fromkeys(AXES, 1) | {"data": -1})
  assert dict(mesh.shape) == dict.fromkeys(AXES, 1)


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ((1, 2, 1, 1, 1), "does not fit 1 device; the sizes must multiply"),
    ((1, -1, 2, 1, 1), "data -1 · fsdp 2 · sequence 1"),
    ((-1, -1, 1, 1, 1), "at most one is -1"),
    ((1, 0, 1, 1, 1), "at least 1"),
  ],
)
def test_sizes_that_do_not_fit(sizes, message):
  with pytest.raises(UserError) as error:
    make_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices()[:1])
  assert message.replace("·", "×") in str(error.value)


@dataclasses.dataclass(frozen=True)
class Chip:
  """What stands for a TPU core that this machine does not have."""

  id: int
  slice_index: int
  process_index: int = 0
  platform: str = "cpu"
  device_kind: str = "cpu"


def test_slices_are_the_outermost_axis():
  chips = [Chip(i, i % 2) for i in range(8)]
  sizes = dict(zip(AXES, (2, 1, 4, 1, 1), strict=True))
  grid = make_mesh(sizes, chips).devices
  assert [{chip.slice_index for chip in slice_.flat} for slice_ in grid] == [{0}, {1}]
  with pytest.raises(UserError, match="2 slices, so replica must be a multiple"):
    make_mesh(sizes | {"replica": 1, "fsdp": 8}, chips)


@pytest.mark.parametrize(
  ("devices", "rows", "state", "slices", "sizes"),
  [
    (8, 32, 1.0, 1, {"data": 8}),  # it fits on one: nothing is split but rows
    (8, 32, 10.0, 1, {"data": 2, "fsdp": 4}),
    (8, 32, 99.0, 1, {"fsdp": 8}),  # as far as it goes
    (16, 4, 10.0, 1, {"data": 4, "tensor": 4}),  # more devices than rows
    (64, 2, 10.0, 1, {"data": 2, "sequence": 4, "tensor": 8}),
    (16, 32, 10.0, 2, {"replica": 2, "data": 2, "fsdp": 4}),
    (6, 4, 0.0, 1, {"data": 2, "sequence": 3}),  # 32 heads cannot be split in three
  ],
)
def test_sizes_to_begin_with(devices, rows, state, slices, sizes):
  found = sensible_sizes(devices, rows=rows, state_bytes=state, memory=9.0, heads=32, slices=slices)
  assert found == dict.fromkeys(AXES, 1) | sizes
  assert set(found) == set(AXES)
