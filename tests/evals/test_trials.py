"""The blind controls' properties."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from medflax.data.documents import Document, Episode, Sample, Source, Text
from medflax.data.encode import encode_document
from medflax.data.tokenizer import load_tokenizer
from medflax.evals.answering import Question
from medflax.evals.trials import CONTROLS, Trial, derangement, rows_of

NAMES = st.lists(st.text(max_size=3), min_size=2, max_size=20, unique=True)
# Of each query: its group and how many images it has.
QUERIES = st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.integers(0, 2)), max_size=12)


def under(condition, asked, seed):
  """The rows that each trial shows under a control; () where it is left out."""
  changed = CONTROLS[condition](asked, seed)
  assert all(t is None or t.condition == condition for t in changed)
  return [() if trial is None else trial.question.rows for trial in changed]


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


def trials(queries, num_shots=0):
  """Every media has a row of its own; with support, queries of one group share theirs."""
  fresh, support = iter(range(1000)), {}
  rows = lambda count: tuple(("image", next(fresh)) for _ in range(count))
  made = []
  for index, (group, count) in enumerate(queries):
    name = group or str(index)
    shots = support.setdefault(name, tuple(rows(1 + shot % 2) for shot in range(num_shots)))
    shown = (*shots, rows(count))
    made.append(
      Trial(
        num_shots=num_shots,
        condition="image",
        index=index,
        episode=Episode(Sample(str(index), (), "q", "a", Source("d", "1", "val"), group=group)),
        question=Question(ENCODED, rows_of(*shown)),
        bare=Question(ENCODED, ()),
        shown=shown,
        blank_rows=(999,) * len(rows_of(*shown)),
      )
    )
  return made


@given(QUERIES, st.integers(0, 9))
def test_shuffled_media_are_foreign_alike_for_a_group_and_of_the_same_kinds(queries, seed):
  asked = trials(queries)
  owner = {row: trial.group for trial in asked for row in trial.question.rows}
  given_to = {}
  for trial, rows in zip(asked, under("shuffled", asked, (seed, 0)), strict=True):
    others = {t.group for t in asked if t.kinds == trial.kinds} - {trial.group}
    assert bool(rows) == bool(others and trial.kinds)
    if rows:
      assert len(rows) == len(trial.kinds)
      assert trial.group not in {owner[row] for row in rows}
      assert given_to.setdefault((trial.group, trial.kinds), rows) == rows
  assert len(set(given_to.values())) == len(given_to)  # one to one: balance is kept


@given(QUERIES, st.integers(1, 4), st.integers(0, 9))
def test_with_support_shuffled_media_are_an_examples(queries, num_shots, seed):
  asked = trials(queries, num_shots)
  given_to = {}
  for trial, rows in zip(asked, under("shuffled", asked, (seed, 0)), strict=True):
    *support, query = trial.shown
    alike = [rows_of(shown) for shown in support if len(shown) == len(query)]
    if query and alike:
      assert rows[: -len(query)] == rows_of(*support)
      assert rows[-len(query) :] in alike
      assert (
        given_to.setdefault((trial.group, trial.kinds), rows[-len(query) :]) == rows[-len(query) :]
      )


def test_every_example_is_somebodys_shuffled_media():
  asked = trials([(str(i), 1) for i in range(60)], num_shots=3)
  places = [
    trial.question.rows.index(rows[-1])
    for trial, rows in zip(asked, under("shuffled", asked, (0, 3)), strict=True)
  ]
  assert set(places) == {0, 3}  # the examples of one image; the second has two


@given(QUERIES, st.integers(0, 3))
def test_no_image_blanks_every_image(queries, num_shots):
  asked = trials(queries, num_shots)
  expected = [(999,) * len(t.question.rows) if t.kinds else () for t in asked]
  assert under("no_image", asked, (0, 0)) == expected


@given(QUERIES, st.integers(0, 3))
def test_text_only_shows_nothing_and_marks_nothing(queries, num_shots):
  asked = trials(queries, num_shots)
  for trial, changed in zip(asked, CONTROLS["text_only"](asked, (0, 0)), strict=True):
    assert (changed is None) == (not trial.kinds)
    if changed is not None:
      assert changed.question is trial.bare


@given(QUERIES, st.integers(1, 3), st.integers(0, 9))
def test_examples_that_look_like_the_query_are_no_control(queries, num_shots, seed):
  asked = [dataclasses.replace(t, alike=True) for t in trials(queries, num_shots)]
  owner = {row: t.group for t in asked for row in rows_of(t.shown[-1])}
  for trial, rows in zip(asked, under("shuffled", asked, (seed, 0)), strict=True):
    if rows:
      shown = rows[-len(trial.kinds) :]
      assert trial.group not in {owner[row] for row in shown}
