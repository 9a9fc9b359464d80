import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from medflax.analysis import hlo, traffic

# As TPU programs are: the outer loop runs three times, the inner one counts 0, 2, 4.
NESTED = """
%bump (i: s32[], by: s32[]) -> s32[] {
  %i.1 = s32[]{:T(128)} parameter(0)
  %by = s32[]{:T(128)} parameter(1)
  ROOT %bumped = s32[]{:T(128)} add(%i.1, %by)
}

%less (i: u32[], n: u32[]) -> pred[] {
  %i.2 = u32[]{:T(128)} parameter(0)
  %n.2 = u32[]{:T(128)} parameter(1)
  ROOT %smaller = pred[]{:T(512)} compare(%i.2, %n.2), direction=LT
}

%inner (state: (f32[256], u32[])) -> (f32[256], u32[]) {
  %state = (f32[256]{0:T(256)}, u32[]{:T(128)}) parameter(0)
  %x = f32[256]{0:T(256)} get-tuple-element(%state), index=0
  %i.3 = u32[]{:T(128)} get-tuple-element(%state), index=1
  %two = u32[]{:T(128)} constant(2)
  %y = f32[256]{0:T(256)} negate(%x)
  %next = u32[]{:T(128)} add(%i.3, %two)
  ROOT %after = (f32[256]{0:T(256)}, u32[]{:T(128)}) tuple(%y, %next)
}

%inner_more (state: (f32[256], u32[])) -> pred[] {
  %state.1 = (f32[256]{0:T(256)}, u32[]{:T(128)}) parameter(0)
  %i.4 = u32[]{:T(128)} get-tuple-element(%state.1), index=1
  %five = u32[]{:T(128)} constant(5)
  ROOT %more = pred[]{:T(512)} fusion(%i.4, %five), kind=kLoop, calls=%less
}

%outer (state: (s32[], f32[256])) -> (s32[], f32[256]) {
  %state.2 = (s32[]{:T(128)}, f32[256]{0:T(256)}) parameter(0)
  %i.5 = s32[]{:T(128)} get-tuple-element(%state.2), index=0
  %x.5 = f32[256]{0:T(256)} get-tuple-element(%state.2), index=1
  %zero = u32[]{:T(128)} constant(0)
  %one = s32[]{:T(128)} constant(1)
  %begin = (f32[256]{0:T(256)}, u32[]{:T(128)}) tuple(%x.5, %zero)
  %loop = (f32[256]{0:T(256)}, u32[]{:T(128)}) while(%begin), condition=%inner_more, body=%inner
  %y.5 = f32[256]{0:T(256)} get-tuple-element(%loop), index=0
  %next.5 = s32[]{:T(128)} fusion(%i.5, %one), kind=kLoop, calls=%bump
  ROOT %after.5 = (s32[]{:T(128)}, f32[256]{0:T(256)}) tuple(%next.5, %y.5)
}

%outer_more (state: (s32[], f32[256])) -> pred[] {
  %state.3 = (s32[]{:T(128)}, f32[256]{0:T(256)}) parameter(0)
  %i.6 = s32[]{:T(128)} get-tuple-element(%state.3), index=0
  %seven = s32[]{:T(128)} constant(7)
  ROOT %more.6 = pred[]{:T(512)} compare(%i.6, %seven), direction=LT
}

ENTRY %main (x: f32[256]) -> f32[256] {
  %x.7 = f32[256]{0:T(256)} parameter(0)
  %four = s32[]{:T(128)S(6)} constant(4)
  %first = s32[]{:T(128)S(6)} copy(%four)
  %init = (s32[]{:T(128)}, f32[256]{0:T(256)}) tuple(%first, %x.7)
  %loops = (s32[]{:T(128)}, f32[256]{0:T(256)}) while(%init), condition=%outer_more, body=%outer
  ROOT %out = f32[256]{0:T(256)} get-tuple-element(%loops), index=1
}
"""
STEP = pathlib.Path(__file__).with_name("step.hlo").read_text()


def runs(text):
  return {name: times for name, times, _ in hlo.parse(text).runs()}


def test_nested_loops_run_as_often_as_their_counters_say():
  assert runs(NESTED) | {"outer": 3, "inner": 9, "inner_more": 9} == runs(NESTED)
  counting = (4 + 4 + 4) + (4 + 4 + 1)  # a sum and a comparison
  turn = 2 * 1024 + counting
  assert traffic.bytes_moved(hlo.parse(NESTED)) == 3 * (counting + 3 * turn)
  assert hlo.parse(NESTED).uncounted() == []


@pytest.mark.parametrize(
  ("said", "instead"),
  [
    ("constant(5)", "parameter(1)"),  # to where is not known
    ("direction=LT\n}\n\n%inner ", "direction=NE\n}\n\n%inner "),
    ("%two = u32[]{:T(128)} constant(2)", "%two = u32[]{:T(128)} negate(%i.3)"),
    ("tuple(%y, %next)", "tuple(%y, %two)"),
    ("%zero = u32[]{:T(128)} constant(0)", "%zero = u32[]{:T(128)} negate(%i.5)"),
  ],
)
def test_a_loop_that_does_not_say_how_often_is_named(said, instead):
  text = NESTED.replace(said, instead)
  assert text != NESTED
  assert hlo.parse(text).uncounted() == ["loop"]
  assert runs(text)["inner"] == runs(text)["outer"] == 3


def test_counters_tell_what_the_compiler_knows():
  """Of scans in a scan, forward and backward, compiled for CPUs, which have it in the text too."""

  def layers(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

  def loss(weights, x):
    return jax.lax.scan(lambda total, x: (total + layers(x, weights).sum(), None), 0.0, x)[0]

  shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 8, 8), (3, 4, 8))]
  text = jax.jit(jax.grad(loss)).lower(*shapes).compile().as_text() or ""
  counted = re.sub(r'"known_trip_count":\{"n":"\d+"\}', "", text)
  assert counted != text and runs(counted) == runs(text)
  assert {3, 15} <= set(runs(text).values())
  assert traffic.bytes_moved(hlo.parse(counted)) == traffic.bytes_moved(hlo.parse(text))


def test_how_often_a_number_that_is_computed_says_is_not_known():
  loop = jax.jit(lambda n, x: jax.lax.fori_loop(0, n, lambda _, x: x * 2, x))
  module = hlo.parse(loop.lower(3, jnp.ones(9)).compile().as_text() or "")
  assert len(module.uncounted()) == 1


def test_attributes_of_a_kernel_take_several_lines():
  kernel = """  %kernel = f32[256]{0:T(256)} custom-call(%row), frontend_attributes={kernel={
"blocks":"{\\"q\\": 512, \\
}}, metadata={op_name="splash"}
  %whole ="""
  text = STEP.replace("  %whole =", kernel)
  assert traffic.bytes_moved(hlo.parse(text)) == traffic.bytes_moved(hlo.parse(STEP)) + 10 * 2048


def test_a_computation_that_was_not_read_to_its_end():
  with pytest.raises(ValueError, match="pick has no ROOT"):
    hlo.parse(STEP.replace("  ROOT %flat", "  %flat"))
