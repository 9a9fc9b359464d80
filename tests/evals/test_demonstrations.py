import collections
import dataclasses
import io
import itertools

import hypothesis
import numpy as np
import PIL.Image
import pytest
from hypothesis import strategies as st

from medflax.data.documents import Media, Sample, Source
from medflax.data.mixture import Mixture
from medflax.data.phantoms import Phantoms
from medflax.data.support import Subset
from medflax.evals.demonstrations import TYPES, make_demonstrations, make_support
from medflax.evals.similarity import most_similar, word_vectors
from medflax.utils import UserError


class Samples:
  """A `PoolSource` of given samples; counts how often each is decoded."""

  def __init__(self, samples):
    self.samples, self.reads = samples, collections.Counter()
    self.groups = [sample.group for sample in samples]
    self.topics = [sample.task for sample in samples]

  def __len__(self):
    return len(self.samples)

  def __getitem__(self, index):
    return self.read(index, 0)

  def read(self, index, epoch):
    self.reads[index] += 1
    return self.samples[index]

  def text(self, index):
    return dataclasses.replace(self.samples[index], media=())

  def media_keys(self, index):
    return tuple(media.array.tobytes() for media in self.samples[index].media)


class Data:
  """A data set of a training and a test split."""

  name, version, tasks = "made", "1", ("vqa",)
  media_per_sample = {"image": 1}  # noqa: RUF012

  def __init__(self, train, test):
    self.splits = {"train": Samples(train), "test": Samples(test)}

  def samples(self, task, split):
    assert task == "vqa"
    return self.splits[split]

  def episodes(self, task, split, num_shots, num_episodes=None):
    raise AssertionError("not asked for support")


def sample(name, group="", topic="t", answer="a", question="q", media=(), **meta):
  source = Source("made", "1", "train")
  return Sample(
    name, tuple(media), question, answer, source, task=topic, group=group or name, meta=meta
  )


def image(value, shape=(4, 4)):
  """Its feature is the direction of its first two values."""
  array = np.zeros((*shape, 3), np.uint8)
  array.flat[:2] = value
  return Media(array)


def embed(media):
  return np.stack([m.array.reshape(-1)[:2].astype(np.float32) for m in media])


def make(data, fields, shots=(4,), where=None, episodes=10**9, **rest):
  return make_support(
    "x",
    make_demonstrations("x", fields),
    data,
    task="vqa",
    split="test",
    where=where or {},
    num_shots=shots,
    num_episodes=episodes,
    **rest,
  )


def shown(data, fields, k, seed=0, **rest):
  """The ids of the demonstrations by the id of the question."""
  episodes = make(data, fields, (k,), **rest).read(embed).episodes(k, seed)
  return {e.query.id: [s.id for s in e.support] for e in episodes}


RECORDS = st.lists(
  st.tuples(
    st.sampled_from("abcdef"), st.sampled_from("xy"), st.sampled_from("yn"), st.integers(1, 3)
  ),
  min_size=1,
  max_size=12,
)


def records(prefix, drawn):
  return [
    sample(f"{prefix}{i}", group, topic, answer, f"is {topic}?", [image((value, 4 - value))])
    for i, (group, topic, answer, value) in enumerate(drawn)
  ]


@hypothesis.given(
  RECORDS,
  RECORDS,
  st.sampled_from(list(TYPES)),
  st.booleans(),
  st.integers(0, 4),
  st.integers(0, 3),
)
@hypothesis.settings(deadline=None)
def test_what_holds_for_every_choice(train, test, type_, fixed, k, seed):
  data = Data(records("p", train), records("q", test))
  fields = {"type": type_, "fixed": fixed and not TYPES[type_]}
  try:
    chosen = make(data, fields, (k,)).read(embed)
  except UserError:
    asked = [{g for g, *_ in test}] if fields["fixed"] else [{g} for g, *_ in test]
    assert min(sum(g not in groups for g, *_ in train) for groups in asked) < k
    return
  episodes = list(chosen.episodes(k, seed))
  assert sorted(e.query.id for e in episodes) == sorted(f"q{i}" for i in range(len(test)))
  for fewer, episode in zip(chosen.episodes(max(k - 1, 0), seed), episodes, strict=True):
    names = [s.id for s in episode.support]
    assert len(names) == len(set(names)) == k
    assert episode.query.group not in {s.group for s in episode.support}
    assert fewer.query.id == episode.query.id
    assert {s.id for s in fewer.support} <= set(names)
    if fields["fixed"]:
      assert names == [s.id for s in episodes[0].support]
  assert episodes == list(make(data, fields, (k,)).read(embed).episodes(k, seed))
  other = chosen.episodes(k, seed + 1)
  assert [e.query.id for e in other] == [e.query.id for e in episodes]


def test_seeds_draw_other_demonstrations_for_the_same_questions():
  data = Data([sample(f"p{i}") for i in range(30)], [sample(f"q{i}") for i in range(9)])
  first, second = (shown(data, {}, 4, seed, episodes=5) for seed in (0, 1))
  assert list(first) == list(second)
  assert first != second
  assert len(first) == 5


def test_balanced_answers_within_the_topic():
  answers = ["yes"] * 20 + ["No."] * 3 + ["no"] + ["maybe"]
  pool = [sample(f"p{i}", topic="t", answer=a) for i, a in enumerate(answers)]
  pool += [sample(f"o{i}", topic="other", answer=f"o{i}") for i in range(9)]
  data = Data(pool, [sample("q")])
  by_id = {s.id: s.answer.strip(".").lower() for s in pool}
  support = make(data, {"type": "balanced"}, (25, 30)).read(embed)

  def counts(k, seed):
    [episode] = support.episodes(k, seed)
    return collections.Counter(by_id[s.id] for s in episode.support)

  for seed in range(5):
    assert sorted(counts(2, seed).values()) == [1, 1]
    assert counts(6, seed)["maybe"] == 1
    assert {counts(6, seed)["yes"], counts(6, seed)["no"]} == {2, 3}
    assert counts(9, seed) == {"yes": 4, "no": 4, "maybe": 1}
    assert sum(n for name, n in counts(30, seed).items() if name.startswith("o")) == 5
  places = {
    [s.answer for s in support.episodes(6, seed)[0].support].index("maybe") for seed in range(30)
  }
  assert len(places) == 6


ANGLES = {"a": (9, 1), "b": (8, 2), "c": (5, 5), "d": (2, 8), "e": (1, 9)}


@pytest.fixture
def angles():
  pool = [sample(name, media=[image(value)]) for name, value in ANGLES.items()]
  return Data(pool, [sample("low", media=[image((10, 0))]), sample("high", media=[image((0, 10))])])


def test_rices_shows_the_most_similar_images(angles):
  assert shown(angles, {"type": "image"}, 3) == {"low": list("cba"), "high": list("cde")}
  first = {"type": "image", "order": "nearest_first"}
  assert shown(angles, first, 3) == {"low": list("abc"), "high": list("edc")}
  orders = {
    tuple(shown(angles, {"type": "image", "order": "random"}, 3, seed)["low"]) for seed in range(40)
  }
  assert orders == set(itertools.permutations("abc"))


def test_the_group_is_passed_over(angles):
  angles.splits["train"].groups[0] = angles.splits["test"].groups[0]
  assert shown(angles, {"type": "image"}, 2)["low"] == ["c", "b"]


def test_each_medium_is_read_and_embedded_once():
  pool = [sample(f"p{i}", media=[image((1 + i % 7, 3), (4, 4 + i % 2))]) for i in range(150)]
  data, seen = Data(pool, [sample("q", media=[image((1, 3))])]), []

  def counting(media):
    assert len({m.array.shape for m in media}) == 1
    seen.extend(m.array.tobytes() for m in media)
    return embed(media)

  support = make(data, {"type": "image"}, (1, 8)).read(counting)
  assert len(seen) == len(set(seen)) == 14
  assert set(data.splits["train"].reads) == set(range(14)) - {0}
  assert set(data.splits["train"].reads.values()) == {1}
  assert len(support.episodes(8, 0)[0].support) == 8


def test_those_of_the_topic_come_first():
  pool = [sample(f"p{i}", topic="tu"[i % 2], media=[image((3, i // 2))]) for i in range(6)]
  data = Data(pool, [sample("q", topic="u", media=[image((1, 0))])])
  fields = {"type": "image", "order": "nearest_first"}
  assert shown(data, fields, 5)["q"] == ["p1", "p3", "p5", "p0", "p2"]
  assert shown(data, fields | {"topic": False}, 5)["q"] == ["p0", "p1", "p2", "p3", "p4"]
  for type_ in ("random", "balanced"):
    everyone = (shown(data, {"type": type_, "topic": False}, 3, seed)["q"] for seed in range(20))
    assert set(itertools.chain(*everyone)) == {f"p{i}" for i in range(6)}
    assert set(shown(data, {"type": type_}, 3)["q"]) == {"p1", "p3", "p5"}


def test_samples_without_media_are_similar_to_none():
  pool = [sample("none"), sample("two", media=[image((1, 3)), image((3, 1))])]
  data = Data(pool, [sample("q", media=[image((1, 1))]), sample("blind")])
  found = shown(data, {"type": "image"}, 1)
  assert found == {"q": ["two"], "blind": ["none"]}


def test_the_most_similar_question():
  pool = [
    sample("where", question="Where is the lesion?"),
    sample("plane", question="Which plane is it?"),
    sample("large", question="How large is the liver lesion?"),
  ]
  data = Data(pool, [sample("q", question="What is the size of this LIVER lesion")])
  fields = {"type": "text", "order": "nearest_first"}
  assert shown(data, fields, 3)["q"] == ["large", "where", "plane"]


def test_both_similarities_are_weighed():
  pool = [
    sample("picture", media=[image((9, 1))], question="what"),
    sample("words", media=[image((1, 9))], question="which plane"),
  ]
  data = Data(pool, [sample("q", media=[image((9, 0))], question="which plane")])
  for weight, best in ((0.9, "picture"), (0.1, "words")):
    assert shown(data, {"type": "image_text", "weight": weight}, 1)["q"] == [best]


def test_word_vectors_weigh_as_they_are_said_to():
  queries, pool = word_vectors(["a zebra", "b"], ["a b", "a", "a", "c c"])
  idf = {"a": np.log(5 / 4) + 1, "b": np.log(5 / 2) + 1}
  cosines = (queries.rows @ pool.rows.T).toarray()[queries.index][:, pool.index]
  both = np.hypot(idf["a"], idf["b"])
  expected = [[idf["a"] / both, 1, 1, 0], [idf["b"] / both, 0, 0, 0]]
  np.testing.assert_allclose(cosines, expected, atol=1e-6)


@hypothesis.given(
  st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans())), st.integers(0, 9)
)
def test_most_similar_is_sorting(rows, count):
  scores, eligible, preferred = (
    np.array([row[i] for row in rows], dtype) for i, dtype in enumerate((np.float32, bool, bool))
  )
  among = [i for i in range(len(rows)) if eligible[i]]
  expected = sorted(among, key=lambda i: (not preferred[i], -scores[i], i))[:count]
  assert most_similar(scores, eligible, preferred, count).tolist() == expected


def picture(seed, size=(64, 48)):
  """Of a scan's structure, with the black bars of fitting it to a square."""
  noise = np.random.default_rng(seed).integers(0, 255, (9, 9), np.uint8)
  scaled = PIL.Image.fromarray(noise).resize(size[::-1], PIL.Image.Resampling.BICUBIC)
  square = np.zeros((64, 64, 3), np.uint8)
  square[:, 8:56] = np.asarray(scaled)[..., None]
  return square


def recompressed(array):
  buffer = io.BytesIO()
  PIL.Image.fromarray(array).save(buffer, "JPEG", quality=60)
  return np.asarray(PIL.Image.open(buffer))


@pytest.mark.parametrize(
  "fields", [{"type": "random"}, {"type": "random", "fixed": True}, {"type": "image"}]
)
def test_copies_of_the_questions_image_are_left_out(fields):
  pool = [sample(f"p{i}", media=[Media(picture(i))]) for i in range(6)]
  pool.append(sample("copy", media=[Media(recompressed(picture(100)))]))
  pool.append(sample("same", media=[Media(picture(100))]))
  asked = {"q": Media(picture(100)), "r": Media(picture(7))}
  data = Data(pool, [sample(name, media=[media]) for name, media in asked.items()])
  chosen = make(data, fields | {"leakage": "exclude"}, (6,)).read(embed)
  support = {e.query.id: {s.id for s in e.support} for e in chosen.episodes(6, 0)}
  assert support["q"] == {f"p{i}" for i in range(6)}
  if fields.get("fixed"):
    assert support["r"] == support["q"]
  [note] = chosen.notes
  assert "leave out 2 of 8 candidates" in note
  with pytest.raises(UserError, match=r"7 shots need .* 2 copies of its media .* has 6 of 8"):
    make(data, fields | {"leakage": "exclude"}, (7,)).read(embed)
  unguarded = make(data, fields, (8,)).read(embed)
  assert {"copy", "same"} <= {s.id for s in unguarded.episodes(8, 0)[0].support}
  assert not unguarded.notes


def test_others_may_still_be_shown_what_is_a_copy_for_one():
  pool = [sample("same", media=[Media(picture(1))]), sample("else", media=[Media(picture(2))])]
  asked = {"q": Media(picture(1)), "r": Media(picture(3))}
  data = Data(pool, [sample(name, media=[media]) for name, media in asked.items()])
  found = make(data, {"leakage": "exclude"}, (1,)).read(embed)
  names = collections.defaultdict(set)
  for episode in (e for seed in range(20) for e in found.episodes(1, seed)):
    names[episode.query.id].add(episode.support[0].id)
  assert names == {"q": {"else"}, "r": {"same", "else"}}


def test_copies_of_volumes_are_left_out():
  rng = np.random.default_rng(0)
  volumes = [
    Media(np.repeat(rng.integers(0, 255, (8, 12, 12, 1), np.uint8), 2, axis=2), "volume")
    for _ in range(5)
  ]
  brighter = Media(np.minimum(volumes[0].array.astype(int) + 9, 255).astype(np.uint8), "volume")
  pool = [sample(f"p{i}", media=[volume]) for i, volume in enumerate([brighter, *volumes[1:]])]
  data = Data(pool, [sample("q", media=[volumes[0]])])
  assert set(shown(data, {"leakage": "exclude"}, 4)["q"]) == {"p1", "p2", "p3", "p4"}


def test_where_selects_questions_and_candidates_without_decoding():
  kinds = [("open", "en"), ("closed", "en"), ("closed", "zh"), ("closed", "fr")] * 3
  made = lambda prefix: [
    sample(f"{prefix}{i}", answer_type=kind, language=language, tags=["ct", "mr"][: i % 3])
    for i, (kind, language) in enumerate(kinds)
  ]
  data = Data(made("p"), made("q"))
  where = {"answer_type": "closed", "language": ("en", "fr")}
  support = make(data, {}, (2,), where=where)
  assert not data.splits["train"].reads
  for episode in support.read(embed).episodes(2, 0):
    for s in (episode.query, *episode.support):
      assert (s.meta["answer_type"], s.meta["language"] in ("en", "fr")) == ("closed", True)
  assert len(support.read(embed).episodes(2, 0)) == 6
  tagged = make(data, {}, (1,), where={"tags": "mr"}).read(embed).episodes(1, 0)
  assert {e.query.id for e in tagged} == {"q2", "q5", "q8", "q11"}
  with pytest.raises(UserError, match=r"evals\.x\.where: no record has the key 'langage'; did you"):
    make(data, {}, where={"langage": "en"})
  with pytest.raises(
    UserError, match=r"leaves none of 12 samples: language is one of 'en', 'fr', '"
  ):
    make(data, {}, where={"language": "de"})


def test_no_shots_need_no_training_split():
  data = Data([], [sample("q")])
  assert shown(data, {"type": "image", "leakage": "exclude"}, 0) == {"q": []}
  with pytest.raises(UserError, match=r"config\.evals\.x: 1 shots need .* has 0 of 0"):
    make(data, {}, (0, 1))


def test_fixed_demonstrations_need_a_group_that_no_question_has():
  pool = [sample(f"p{i}", group=f"g{i}") for i in range(4)]
  data = Data(pool, [sample("q0", group="g0"), sample("q1", group="g1")])
  found = shown(data, {"fixed": True}, 2)
  assert found["q0"] == found["q1"]
  assert set(found["q0"]) == {"p2", "p3"}
  with pytest.raises(UserError, match=r"3 shots .* without any question's group .* has 2 of 4"):
    make(data, {"fixed": True}, (3,))


def test_a_part_of_a_mixture():
  data = Mixture({"part": Data([sample("p")], [sample("q")])})
  support = make_support(
    "x",
    make_demonstrations("x", {}),
    data,
    task="part/vqa",
    split="test",
    where={},
    num_shots=(1,),
    num_episodes=9,
  )
  assert [s.id for s in support.read(embed).episodes(1, 0)[0].support] == ["p"]


def test_generated_data_draw_their_own():
  phantoms = Phantoms((32, 32), (8, 32, 32), 0)
  [task, *_] = phantoms.tasks

  def support(fields, **rest):
    made = make_demonstrations("x", fields)
    options = {"task": task, "split": "val", "where": {}, "num_shots": (2,), "num_episodes": 3}
    return make_support("x", made, phantoms, **options | rest)

  episodes = support({}).read(embed).episodes(2, 0)
  ids = [(e.query.id, [s.id for s in e.support]) for e in episodes]
  assert ids == [
    (e.query.id, [s.id for s in e.support]) for e in phantoms.episodes(task, "val", 2, 3)
  ]
  for fields in ({"type": "image"}, {"fixed": True}, {"leakage": "exclude"}):
    with pytest.raises(UserError, match=r"config\.evals\.x\.demonstrations: phantom"):
      support(fields)
  with pytest.raises(UserError, match=r"config\.evals\.x\.where: phantom"):
    support({}, where={"task": "a"})
  with pytest.raises(UserError, match=r"config\.evals\.x\.num_seeds: phantom"):
    support({}, num_seeds=3)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"kind": "random"}, r"unknown field config\.evals\.x\.demonstrations\.kind"),
    ({"type": "rices"}, r"demonstrations\.type is 'rices'; known: balanced, image"),
    ({"order": "nearest"}, r"demonstrations\.order is 'nearest'; did you mean 'nearest_"),
    ({"leakage": "none"}, r"demonstrations\.leakage is 'none'; known: exclude, group"),
    ({"order": "nearest_last"}, "needs a type of similarity, not random"),
    ({"type": "text", "fixed": True}, "so none is nearest"),
    ({"type": "image_text", "weight": 2.0}, "it must be from 0 to 1"),
  ],
)
def test_mistakes_are_told(fields, message):
  with pytest.raises(UserError, match=message):
    make_demonstrations("x", fields)


def test_interleaved_data_are_refused():
  data = Data([], [sample("q")])
  data.interleaved = True
  with pytest.raises(UserError, match="holds documents, not questions"):
    make(data, {})


def test_subsets_of_sources_are_sources():
  data = Data([sample("p"), sample("r")], [sample("q")])
  data.splits["train"] = Subset(data.splits["train"], [1])
  assert shown(data, {}, 1)["q"] == ["r"]
