import pytest

from medflax.analysis.hardware import CHIPS, TOPOLOGIES, check_topology, chip_of, find_chip
from medflax.utils import UserError


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("TPU v5 lite", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6 lite", "v6e"),
    ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA A100-SXM4-80GB", "a100"),
    ("NVIDIA H200", "h200"),
  ],
)
def test_devices_are_known_by_what_they_call_themselves(kind, name):
  assert chip_of(kind).name == name


def test_others_are_not():
  assert find_chip("cpu") is None
  with pytest.raises(UserError, match="no figures for 'TPU v9'"):
    chip_of("TPU v9")


def test_a_link_is_slower_than_memory_and_faster_than_the_network():
  for chip in CHIPS.values():
    assert chip.network_bandwidth <= chip.link_bandwidth < chip.hbm_bandwidth


def test_topologies():
  assert check_topology("v5e:4x4").name == "v5e"
  with pytest.raises(UserError, match=r"unknown topology 'v9:2x2': known are v4, v5p, v5e, v6e"):
    check_topology("v9:2x2")
  with pytest.raises(UserError, match=r"of v5e there are 2x2, 2x4, .*16x16"):
    check_topology("v5e:3x5")
  assert all(
    shape.count("x") == CHIPS[g].torus - 1 for g, all_ in TOPOLOGIES.items() for shape in all_
  )
