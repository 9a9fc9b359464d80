from hypothesis import given
from hypothesis import strategies as st

from medflax.analysis.programs import largest


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


def test_nothing_fits():
  assert largest(lambda n: 20.0, 15.75) == 0
