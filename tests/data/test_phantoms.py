"""Phantoms: episodes are deterministic, balanced, and mean what they say."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from medflax.data.documents import IMAGE, VOLUME
from medflax.data.phantoms import FINDINGS, INVENTED_WORDS, LOOKS, MODALITIES, Phantoms
from medflax.utils import UserError

PHANTOMS = Phantoms((16, 16), (4, 16, 16))
TWO_D = tuple(task for task in Phantoms.tasks if not task.endswith("_3d"))


def pixels(sample):
  return sample.media[0].array


def equal(one, other):
  samples = zip((one.query, *one.support), (other.query, *other.support), strict=True)
  return all(
    (a.id, a.question, a.answer, a.group, a.meta) == (b.id, b.question, b.answer, b.group, b.meta)
    and np.array_equal(pixels(a), pixels(b))
    for a, b in samples
  )


@pytest.mark.parametrize("task", Phantoms.tasks)
@pytest.mark.parametrize("split", ["train", "test"])
def test_same_index_same_bits(task, split):
  episodes = PHANTOMS.episodes(task, split, (0, 3))
  again = Phantoms((16, 16), (4, 16, 16)).episodes(task, split, (0, 3))
  assert all(equal(episodes[i], again[i]) for i in (0, 1, 7, len(episodes) - 1))
  other = Phantoms((16, 16), (4, 16, 16), seed=1).episodes(task, split, (0, 3))
  assert not np.array_equal(pixels(episodes[3].query), pixels(other[3].query))


@pytest.mark.parametrize("task", Phantoms.tasks)
def test_samples_are_well_formed(task):
  for split in ("train", "val", "test"):
    episode = PHANTOMS.episodes(task, split, 3)[11]
    assert len(episode.support) == 3
    for sample in (episode.query, *episode.support):
      volume = task.endswith("_3d")
      assert pixels(sample).shape == ((4, 16, 16, 1) if volume else (16, 16, 3))
      assert pixels(sample).dtype == np.uint8
      assert sample.media[0].kind == sample.meta["kind"] == (VOLUME if volume else IMAGE)
      assert not sample.choices or sample.answer in sample.choices
      assert len(set(sample.choices)) == len(sample.choices)
      assert sample.source.split == split and sample.task == task
      assert sample.meta["modality"] in MODALITIES
    groups = [sample.group for sample in (episode.query, *episode.support)]
    ids = [sample.id for sample in (episode.query, *episode.support)]
    assert len(set(groups)) == len(set(ids)) == 4


def test_no_image_occurs_in_two_splits_or_tasks():
  seen = collections.Counter()
  for split in ("train", "val", "test"):
    for task in TWO_D:
      for i in range(0, 40, 4):
        episode = PHANTOMS.episodes(task, split, 2)[i]
        seen.update(pixels(s).tobytes() for s in (episode.query, *episode.support))
  assert len(seen) == 3 * len(TWO_D) * 10 * 3
  assert max(seen.values()) == 1


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.integers(0, 9), st.integers(2, 4), st.integers(0, 2**31 - 2))
def test_support_covers_the_ways_evenly(num_shots, ways, index):
  episodes = Phantoms((4, 4), (2, 4, 4), ways=ways).episodes("binding", "train", num_shots)
  episode = episodes[index]
  found = collections.Counter(sample.meta["finding"] for sample in episode.support)
  counts = [*found.values(), *[0] * (ways - len(found))]
  assert len(counts) == ways and max(counts) - min(counts) <= 1
  for sample in episode.support:
    same = sample.meta["finding"] == episode.query.meta["finding"]
    assert same == (sample.answer == episode.query.answer)
    assert sample.question == episode.query.question


def test_the_way_with_one_more_example_is_random():
  episodes = [Phantoms((2, 2)).episodes("binding", "train", 1)[i] for i in range(100)]
  same = [e.support[0].answer == e.query.answer for e in episodes]
  first = [e.query.answer == e.query.choices[0] for e in episodes]
  assert 30 < sum(same) < 70
  assert 30 < sum(first) < 70


@hypothesis.settings(max_examples=30)
@hypothesis.given(
  seed=st.integers(0, 2**20),
  group=st.integers(0, 200),
  num_shots=st.integers(0, 5),
  ways=st.integers(2, 3),
  task=st.sampled_from(["binding", "binding_3d"]),
  split=st.sampled_from(["val", "test"]),
)
def test_groups_are_counterbalanced(seed, group, num_shots, ways, task, split):
  phantoms = Phantoms((6, 6), (2, 6, 6), seed=seed, ways=ways)
  episodes = phantoms.episodes(task, split, num_shots, num_episodes=2048)
  members = [episodes[ways**2 * group + m] for m in range(ways**2)]
  assert len({e.query.group for e in members}) == 1
  assert len({e.query.id for e in members}) == ways**2
  by_prompt, by_support = collections.defaultdict(set), collections.defaultdict(set)
  for episode in members:
    # All a model sees of the query without, and of the support with, the answers.
    by_prompt[episode.query.question, pixels(episode.query).tobytes()].add(episode.query.answer)
    shots = tuple((pixels(s).tobytes(), s.question, s.answer) for s in episode.support)
    by_support[episode.query.question, shots].add(episode.query.answer)
    assert episode.query.choices == members[0].query.choices
    for shot, first in zip(episode.support, members[0].support, strict=True):
      assert np.array_equal(pixels(shot), pixels(first))
  assert len(by_prompt) == ways
  assert all(len(answers) == ways for answers in by_prompt.values())
  assert len(by_support) == (ways if num_shots else 1)
  assert all(len(answers) == ways for answers in by_support.values())


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_question_names_no_word(split):
  for shots in (0, 1, 4):
    query = PHANTOMS.episodes("binding", split, shots)[5].query
    assert query.question == "Which word?"
    assert query.answer in query.choices
    assert len(query.choices) == (2 if shots else 16)
  assert query.choices == tuple(sorted(query.choices))  # their order tells nothing


@pytest.mark.parametrize("task", ["binding", "binding_3d"])
@pytest.mark.parametrize("deal", [0, 1, 63])
def test_eight_quads_use_every_word_once(task, deal):
  episodes = Phantoms((2, 2), (2, 2, 2)).episodes(task, "test", 2)
  quads = [[episodes[32 * deal + 4 * q + m].query for m in range(4)] for q in range(8)]
  assert len({tuple(query.choices for query in quad) for quad in quads}) == 8
  dealt = [word for quad in quads for word in {query.answer for query in quad}]
  assert sorted(dealt) == sorted(INVENTED_WORDS)
  # Whatever word is always said, it is right for one query in sixteen.
  answers = collections.Counter(query.answer for quad in quads for query in quad)
  assert set(answers.values()) == {2} and sum(answers.values()) == 32


def test_deals_differ():
  episodes = Phantoms((2, 2)).episodes("binding", "test", 2)
  pairs = [[episodes[32 * deal + 4 * q].query.choices for q in range(8)] for deal in range(4)]
  assert len({tuple(deal) for deal in pairs}) == 4


def test_the_query_is_the_same_for_every_number_of_shots():
  for task in Phantoms.tasks:
    zero, four = (PHANTOMS.episodes(task, "test", shots)[9].query for shots in (0, 4))
    assert zero.answer == four.answer
    assert np.array_equal(pixels(zero), pixels(four))


def test_diagnosis_is_balanced_for_every_finding():
  count = 4 * len(FINDINGS)
  episodes = PHANTOMS.episodes("diagnosis", "test", 0)
  asked = collections.Counter()
  for i in range(count):
    sample = episodes[i].query
    about = next(n for n, f in FINDINGS.items() if f"show {f.phrase}?" in sample.question)
    assert (sample.answer == "yes") == (sample.meta["finding"] == about)
    asked[about, sample.answer] += 1
  assert len(asked) == 2 * len(FINDINGS) and set(asked.values()) == {2}


def test_vqa_modality_and_finding_answers_are_balanced():
  answers = collections.defaultdict(collections.Counter)
  episodes = PHANTOMS.episodes("vqa", "val", 0)
  for i in range(4 * 48):
    sample = episodes[i].query
    answers[sample.meta["question_type"]][sample.answer] += 1
  assert {kind: set(counts.values()) for kind, counts in answers.items()} == {
    "finding": {3}, "side": {24}, "size": {24}, "count": {16},
  }  # fmt: skip
  for task, known in (("modality", 5), ("modality_3d", 3), ("finding", 16), ("finding_3d", 16)):
    queries = [PHANTOMS.episodes(task, "val", 0)[i].query for i in range(3 * known)]
    found = collections.Counter(query.answer for query in queries)
    assert list(found.values()) == [3] * known
    about = task.removesuffix("_3d")
    assert all(query.answer == query.meta[about] for query in queries)


def test_answers_agree_with_what_is_drawn():
  number = {"one": 1, "two": 2, "three": 3}
  for i in range(80):
    sample = PHANTOMS.episodes("vqa", "train", 0)[i].query
    kind, meta = sample.meta["question_type"], sample.meta
    assert number.get(sample.answer, sample.answer) == meta[kind]
    report = PHANTOMS.episodes("report", "train", 0)[i].query
    words = report.answer.lower()
    assert report.answer == report.meta["caption"]
    assert words.startswith(report.meta["modality"].lower())
    assert str(report.meta["side"]) in words and str(report.meta["size"]) in words
    rationale = PHANTOMS.episodes("rationale", "train", 0)[i].query
    assert rationale.answer.startswith(rationale.meta["finding"] + ", because ")


def test_words_and_looks():
  assert len(set(INVENTED_WORDS)) == 16
  assert len(MODALITIES) >= 5 and len(FINDINGS) >= 12
  assert {look.modality for look in LOOKS.values() if look.planes} == {"CT", "MR", "ultrasound"}


def test_num_shots_range_and_lengths():
  episodes = PHANTOMS.episodes("binding", "train", (2, 4))
  assert {len(episodes[i].support) for i in range(40)} == {2, 3, 4}
  assert len(episodes) == 2**31 - 1
  assert len(PHANTOMS.episodes("binding", "test", 0)) == 2048
  assert len(Phantoms(ways=3).episodes("binding", "test", 0)) % 9 == 0
  short = PHANTOMS.episodes("vqa", "val", 0, num_episodes=3)
  assert len(list(short)) == 3
  with pytest.raises(IndexError):
    short[3]


def test_mistakes_are_told_in_one_line():
  with pytest.raises(UserError, match="did you mean 'binding'"):
    PHANTOMS.episodes("bindin", "train", 0)
  with pytest.raises(UserError, match="did you mean 'test'"):
    PHANTOMS.episodes("binding", "tset", 0)
  with pytest.raises(UserError, match="num_shots"):
    PHANTOMS.episodes("binding", "train", (3, 1))
  with pytest.raises(UserError, match="image_size"):
    Phantoms(image_size=(32, 32, 3))
  with pytest.raises(UserError, match="ways"):
    Phantoms(ways=1)
