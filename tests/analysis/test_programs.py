from types import SimpleNamespace

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax.analysis.programs import DoesNotFitError, Program, largest
from medflax.build import Parts


@given(st.floats(0, 50), st.floats(0.1, 10), st.floats(1, 200))
def test_the_largest_that_fits_where_memory_is_linear(base, slope, capacity):
  calls = []

  def memory(n):
    calls.append(n)
    return base + slope * n

  found = largest(memory, capacity, tries=12)
  assert found == 0 if memory(1) > capacity else memory(found) <= capacity < memory(found + 1)
  assert len(calls) <= 12 + 3


def test_few_compiles_do():
  calls = []

  def memory(n):
    calls.append(n)
    return 3.0 + 0.5 * n

  assert largest(memory, 15.75) == 25
  assert len(calls) <= 4


def test_memory_that_grows_in_steps():
  """As compilers pad: 1 GiB more every fourth row."""
  assert largest(lambda n: 2 + n // 4, 7.5) == 23


@pytest.mark.parametrize(
  "words",
  [
    "Ran out of memory in memory space hbm. Used 17.15G of 15.75G hbm. Exceeded by 1.4G.",
    "the total memory required for HLO temporaries (17.15G) exceeds available HBM (15.75G).",
  ],
)
def test_what_the_compiler_says_of_too_much(words):
  class Lowered:
    def compile(self):
      raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {words}")

  jitted = SimpleNamespace(lower=lambda: Lowered())
  program = Program(rows=1, tokens=1, jitted=jitted, args=(), counts={}, executed=0)
  parts = object.__new__(Parts)  # of which the mesh alone is asked
  object.__setattr__(parts, "mesh", jax.make_mesh((1,), ("data",)))
  with pytest.raises(DoesNotFitError) as error:
    program.compile(parts)
  assert (error.value.needed, error.value.capacity) == (int(17.15 * 2**30), int(15.75 * 2**30))


def test_nothing_fits():
  assert largest(lambda n: 20.0, 15.75) == 0
