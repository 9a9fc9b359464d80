import dataclasses

import pytest

from medflax.analysis.hardware import CHIPS
from medflax.analysis.roofline import torus_bandwidth
from medflax.analysis.scaling import Work, estimate, suggest_mesh

V5E = CHIPS["v5e"]
# 7 G weights of which 1 G are trained: float32 with two moments and a gradient.
WORK = Work(
  model=20e12,
  executed=25e12,
  weights=7 * 10**9,
  trainable=10**9,
  state=4 * 7 * 10**9 + 12 * 10**9,
  itemsize=2,
)


def test_a_step_by_hand():
  guess = estimate(WORK, V5E, (4, 4), 1, rows=4)
  assert guess.chips == 16
  assert guess.held == WORK.state / 16
  assert guess.roofline.compute == 4 * 25e12 / 197e12
  # 4 × 4 is no torus: one link along each of two dimensions, 50 GB/s each.
  assert guess.roofline.communication == {("fsdp",): 2 * 22e9 * 15 / 16 / 100e9}
  assert guess.roofline.bound == "compute"
  assert guess.mfu[0] == pytest.approx(20 / 25)
  assert guess.mfu[1] < guess.mfu[0]


def test_slices_talk_over_the_network():
  one, four = (estimate(WORK, V5E, (16, 16), slices, rows=4) for slices in (1, 4))
  assert four.chips == 1024
  assert four.held == one.held
  summed = four.roofline.communication["replica",]
  assert summed == 2 * 3 / 4 * 4e9 / 256 / V5E.network_bandwidth


def test_rings_have_links_both_ways():
  assert torus_bandwidth(V5E, (16, 16)) == 4 * V5E.link_bandwidth
  assert torus_bandwidth(V5E, (8, 16)) == 3 * V5E.link_bandwidth
  assert torus_bandwidth(CHIPS["v5p"], (4, 4, 4)) == 6 * CHIPS["v5p"].link_bandwidth
  assert torus_bandwidth(V5E, (1, 1)) == V5E.link_bandwidth


def test_weights_are_split_no_further_than_they_must():
  assert suggest_mesh(WORK, V5E, 64)["fsdp"] == 8  # 40 GB over 8 is less than a third of 15.75 GiB
  small = dataclasses.replace(WORK, state=10**9)
  assert suggest_mesh(small, V5E, 64, slices=2) == {
    **{"replica": 2, "data": 64, "fsdp": 1, "sequence": 1, "tensor": 1}
  }
  assert suggest_mesh(WORK, V5E, 4)["fsdp"] == 4  # all there are
