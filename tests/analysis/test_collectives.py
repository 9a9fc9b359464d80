import pathlib

import pytest

from medflax.analysis import hlo, traffic
from medflax.analysis.collectives import collectives

MESH = {"data": 2, "fsdp": 4}

# Written by hand, in the compiler's grammar.
PROGRAM = pathlib.Path(__file__).with_name("step.hlo").read_text()


def test_exchanges_by_kind_and_axis():
  found = {(c.kind, c.axes): (c.times, c.bytes) for c in collectives(hlo.parse(PROGRAM), MESH)}
  assert found == {
    ("all-gather", ("fsdp",)): (10, 10 * 4096 * 3 / 4),
    ("reduce-scatter", ("fsdp",)): (10, 10 * 1024 * 3 / 4),
    ("collective-permute", ("data",)): (1, 400),
    ("all-reduce", ("data",)): (1, 400),
  }


def test_an_exchange_with_nobody_does_not_count():
  text = PROGRAM.replace("{{0,1,2,3},{4,5,6,7}}", "{{0},{1},{2},{3},{4},{5},{6},{7}}")
  assert "all-gather" not in {c.kind for c in collectives(hlo.parse(text), MESH)}


def test_axes_are_those_along_which_a_group_differs():
  text = PROGRAM.replace("{{0,1,2,3},{4,5,6,7}}", "{{0,1,2,3,4,5,6,7}}")
  axes = {c.kind: c.axes for c in collectives(hlo.parse(text), MESH)}
  assert axes["all-gather"] == ("data", "fsdp")


def test_bytes_moved():
  """Of a stack that a loop slices, a row a turn; nothing of what stays in on-chip memory."""
  row = 1024
  gather, scatter = row + 4096, row + 256
  turn = (row + 4 + row) + gather + scatter  # the fused slice also reads its index
  permute, reduce = 400 + 400, 400
  assert traffic.bytes_moved(hlo.parse(PROGRAM)) == 10 * turn + permute + reduce


def test_an_update_in_place_moves_what_is_written():
  text = """
%put (cache: f32[64,16], new: f32[1,16], i: s32[]) -> f32[64,16] {
  %cache = f32[64,16]{1,0} parameter(0)
  %new = f32[1,16]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %out = f32[64,16]{1,0} dynamic-update-slice(%cache, %new, %i, %i)
}

ENTRY %main (a: f32[64,16], b: f32[1,16], c: s32[]) -> f32[64,16] {
  %a = f32[64,16]{1,0} parameter(0)
  %b = f32[1,16]{1,0} parameter(1)
  %c = s32[] parameter(2)
  ROOT %out = f32[64,16]{1,0} fusion(%a, %b, %c), kind=kLoop, calls=%put
}
"""
  assert traffic.bytes_moved(hlo.parse(text)) == 64 + 4 + 64


def test_shapes():
  found = hlo.arrays("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, s4[10])")
  assert [(a.dtype, a.shape, a.space, a.bytes) for a in found] == [
    ("bf16", (2, 3), 1, 12),
    ("u32", (), 2, 4),
    ("s4", (10,), 0, 5),
  ]


def test_other_text_is_refused():
  with pytest.raises(ValueError, match="not the text of an HLO module"):
    hlo.parse("hello")


@pytest.mark.parametrize(
  ("groups", "axes"),
  [
    ("{{0,4},{1,5},{2,6},{3,7}}", ("data",)),
    ("[2,4]<=[8]", ("fsdp",)),
    ("[4,2]<=[2,4]T(1,0)", ("data",)),
    ("mesh['a'=2,'b'=4] {'b'}", ("fsdp",)),
    ("mesh['a'=2,'b'=4] {'a','b'}", ("data", "fsdp")),
    ("mesh['a'=2,'b'=4] {'b':(1)2}", ("fsdp",)),
    ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",)),
    ("{}", ("data", "fsdp")),
  ],
)
def test_groups_are_written_in_many_ways(groups, axes):
  text = PROGRAM.replace("{{0,1,2,3},{4,5,6,7}}", groups)
  assert {c.kind: c.axes for c in collectives(hlo.parse(text), MESH)}["all-gather"] == axes


def test_groups_in_an_unknown_form_are_not_guessed():
  text = PROGRAM.replace("{{0,1,2,3},{4,5,6,7}}", "hypercube")
  with pytest.raises(ValueError, match="not known"):
    collectives(hlo.parse(text), MESH)


def test_what_runs_beside_other_instructions_is_one_exchange():
  again = (
    "  %again = f32[1024]{0:T(1024)} all-gather(%row), channel_id=3, replica_groups=[2,4]<=[8]\n"
  )
  text = PROGRAM.replace("use_global_device_ids=true", "channel_id=3")
  both = text.replace("  %whole =", again + again.replace("again", "more") + "  %whole =")
  assert collectives(hlo.parse(both), MESH) == collectives(hlo.parse(text), MESH)


@pytest.mark.parametrize(
  ("transfer", "kind", "sent"),
  [
    ("ALL_REDUCE", "all-reduce", 1024 * 2 * 3 / 4),
    ("ALL_GATHER", "all-gather", 1024 * 3),
    ("ONE_TO_ONE", "one-to-one", 1024),
  ],
)
def test_slices_exchange_through_their_hosts(transfer, kind, sent):
  text = f"""
ENTRY %main (a: f32[256]) -> f32[256] {{
  %a = f32[256]{{0}} parameter(0)
  %first = token[] after-all()
  %send = (f32[256]{{0}}, u32[], token[]) send(%a, %first), channel_id=2, is_host_transfer=true, \
frontend_attributes={{_xla_megascale_target="{{1,2,3,4}}x{{0:3}}",\
_xla_megascale_transfer_type="{transfer}"}}
  %logged = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %other = (f32[256]{{0}}, u32[], token[]) send(%a, %first), channel_id=3, is_host_transfer=true
  ROOT %out = f32[256]{{0}} negate(%a)
}}
"""
  (found,) = collectives(hlo.parse(text), {"replica": 4, "fsdp": 4})
  assert (found.kind, found.axes, found.times, found.bytes) == (kind, ("replica",), 1, sent)
