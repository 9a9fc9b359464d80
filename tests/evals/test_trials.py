"""The blind controls' properties."""

from hypothesis import given
from hypothesis import strategies as st

from medflax.data.documents import Document, Episode, Sample, Source, Text
from medflax.data.encode import encode_document
from medflax.data.tokenizer import load_tokenizer
from medflax.evals.trials import CONTROLS, Trial, derangement

NAMES = st.lists(st.text(max_size=3), min_size=2, max_size=20, unique=True)
# Of each query: its group and how many images it has.
QUERIES = st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.integers(0, 2)), max_size=12)

ENCODED = encode_document(
  Document((Text("q"),), Source("d", "1", "val")), load_tokenizer(), media_rule="prev_image"
)


@given(NAMES, st.integers(0, 99))
def test_derangement_moves_every_name(names, seed):
  mapping = derangement(names, (seed, 1))
  assert sorted(mapping) == sorted(mapping.values()) == sorted(names)
  assert all(name != other for name, other in mapping.items())
  assert mapping == derangement(names, (seed, 1))


def test_nothing_to_exchange():
  assert derangement(["a"], (0, 0)) == {}


def trials(queries):
  rows = iter(range(1000))
  return [
    Trial(
      num_shots=0,
      condition="image",
      index=index,
      episode=Episode(Sample(str(index), (), "q", "a", Source("d", "1", "val"), group=group)),
      encoded=ENCODED,
      kinds=("image",) * count,
      support_rows=(),
      query_rows=tuple(next(rows) for _ in range(count)),
      blank_rows=(999,) * count,
    )
    for index, (group, count) in enumerate(queries)
  ]


@given(QUERIES, st.integers(0, 9))
def test_shuffled_media_are_foreign_alike_for_a_group_and_of_the_same_kinds(queries, seed):
  asked = trials(queries)
  owner = {row: trial.group for trial in asked for row in trial.query_rows}
  given_to = {}
  for trial, rows in zip(asked, CONTROLS["shuffled"](asked, (seed, 0)), strict=True):
    others = {t.group for t in asked if t.kinds == trial.kinds} - {trial.group}
    assert bool(rows) == bool(others and trial.kinds)
    if rows:
      assert len(rows) == len(trial.kinds)
      assert trial.group not in {owner[row] for row in rows}
      assert given_to.setdefault((trial.group, trial.kinds), rows) == rows
  assert len(set(given_to.values())) == len(given_to)  # one to one: balance is kept


@given(QUERIES)
def test_no_image_blanks_every_image(queries):
  asked = trials(queries)
  assert CONTROLS["no_image"](asked, (0, 0)) == [(999,) * count for _, count in queries]
