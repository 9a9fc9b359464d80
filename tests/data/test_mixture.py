"""Mixtures of real data sets, from files on disk to batches."""

import collections
import itertools
import json

import numpy as np
import PIL.Image
import pytest
from absl import flags

from medflax import config as config_lib
from medflax.data import DATASETS
from medflax.data.builders import BUILDERS
from medflax.data.builders.prepare import prepare
from medflax.data.pipeline import train_iterator
from medflax.data.tokenizer import load_tokenizer
from medflax.defaults import base_config
from medflax.utils import UserError

TOKENIZER = load_tokenizer()
FLIP = {"image": {"flip": {}, "intensity": {"noise": 0.1}}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A folder of 40 questions, and two prepared books of a few pages."""
  root = tmp_path_factory.mktemp("data")
  rng = np.random.default_rng(0)
  (root / "folder").mkdir()
  lines = []
  for i in range(40):
    picture = rng.integers(0, 256, (8, 8), np.uint8)
    PIL.Image.fromarray(picture).save(root / f"folder/{i}.png")
    question = "Which side?" if i % 4 == 0 else "What is it?"
    row = {"images": f"{i}.png", "question": question, "answer": f"a{i}", "split": "train"}
    lines.append(json.dumps(row | {"group": f"g{i}"}))
  (root / "folder/manifest.jsonl").write_text("\n".join(lines))
  for book in ("Anatomy", "Pathology"):
    (root / "books" / book).mkdir(parents=True)
    PIL.Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(root / f"books/{book}/a.png")
    for page in range(4):
      text = f"<p>Page {page} of {book}.</p><img src='a.png'><p>Text.</p><img src='a.png'>More."
      (root / f"books/{book}/{page}.html").write_text(f"<body>{text}</body>")
  prepare(BUILDERS["textbooks"], root / "books", root / "prepared")
  return root


def make_config(root, train=None, **data):
  config = base_config("test", "tiny")
  config.data.source = "mixture"
  config.data.sources = {
    "own": {"source": "folder", "root": str(root / "folder")},
    "books": {"source": "prepared", "root": str(root / "prepared")},
  }
  entry = {"num_shots": (0, 2), "weight": 1.0, "targets": "all"}
  config.data.train = train or {
    "vqa": {"task": "own/vqa", **entry, "weight": 2.0},
    "pages": {"task": "books/page", **entry},
  }
  config.data.update({"image_size": (8, 8), "max_tokens": 96, "max_media": {"image": 6}} | data)
  config.train.batch_size = 4
  return config


@pytest.fixture
def iterate():
  made = []

  def make(config):
    dataset = DATASETS[config.data.source](config.data, config.seed)
    made.append(train_iterator(dataset, TOKENIZER, config, seed=0))
    return made[-1]

  yield make
  for iterator in made:
    iterator.close()


def take(iterator, count):
  return list(itertools.islice(iterator, count))


def assert_same(got, want):
  for a, b in zip(got, want, strict=True):
    assert all((a[key] == b[key]).all() for key in a)


def texts(batches):
  for batch in batches:
    for tokens, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
      for segment in range(1, segments.max() + 1):
        yield TOKENIZER.decode(tokens[segments == segment])


def test_questions_and_pages_are_mixed_by_weight(root, iterate):
  iterator = iterate(make_config(root))
  batches = take(iterator, 12)
  found = collections.Counter("Question:" in text for text in texts(batches))
  counters = iterator.counters
  assert (found[True], found[False]) == (counters["vqa/documents"], counters["pages/documents"])
  assert found[True] / found.total() == pytest.approx(2 / 3, abs=0.05)
  assert counters["pages/media"] == 2 * counters["pages/documents"]


def test_pages_are_learnt_whole_with_their_images_in_place(root, iterate):
  config = make_config(root)
  del config.data.train["vqa"]
  batch = next(iterate(config))
  first = batch["segment_ids"][0] == 1
  assert TOKENIZER.decode(batch["tokens"][0][first]).startswith("Page ")
  assert batch["media_index"][0][first].max() == 2
  marks = batch["tokens"][0] == TOKENIZER.special_id("<image>")
  text = (batch["segment_ids"][0] > 0) & ~marks
  assert batch["loss_mask"][0][text].mean() > 0.9  # all but <bos>
  assert not batch["loss_mask"][0][marks].any()


def test_a_mixture_is_a_data_set(root):
  config = make_config(root)
  data = DATASETS["mixture"](config.data, 0)
  assert set(data.tasks) == {"own/vqa", "books/vqa", "books/page"}
  assert data.media_per_sample == {"image": 2, "signal": 0, "volume": 0}
  assert len(data.episodes("own/vqa", "train", 1, 7)) == 7
  with pytest.raises(UserError, match="unknown part of the data 'onw'; did you mean 'own'"):
    data.episodes("onw/vqa", "train", 0)


def test_what_a_list_names_is_left_out_of_every_part(root, tmp_path):
  samples = DATASETS["mixture"](make_config(root).data, 0).parts["books"].samples("page", "train")
  pages = [samples[i].id for i in range(len(samples))]
  path = tmp_path / "leakage.csv"
  path.write_text(f"data,id\nfolder,line-1\ntextbooks,{pages[0]}\nfolder,{pages[1]}\n")
  config = make_config(root, exclude=str(path))
  data = DATASETS["mixture"](config.data, 0)
  assert [(row["source"], row["id"]) for row in data.skipped] == [
    ("books", pages[0]),
    ("own", "line-1"),
  ]
  assert len(data.parts["own"].samples("vqa", "train")) == 39
  left = data.parts["books"].documents("page", "train")
  assert {left[i].id for i in range(2 * len(pages))} == set(pages[1:])


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 40 / 48), (1e6, 1 / 2)])
def test_weights_left_to_the_data_follow_sizes_and_temperature(root, iterate, temperature, share):
  entry = {"num_shots": 0, "weight": -1.0, "targets": "all"}
  train = {"a": {"task": "own/vqa", **entry}, "b": {"task": "books/page", **entry}}
  config = make_config(root, train, temperature=temperature)
  iterator = iterate(config)
  take(iterator, 12)
  counted = iterator.counters
  assert counted["a/documents"] / counted["documents"] == pytest.approx(share, abs=0.04)
  config.data.train.a.weight = 2.0
  with pytest.raises(UserError, match=r"data\.train\.b\.weight must be positive, or -1 for all"):
    iterate(config)


def test_passes_differ_by_their_draws_and_sides_are_kept(root, iterate):
  config = make_config(root, transforms={"image": {"flip": {}}})
  del config.data.train["pages"]
  config.data.train.vqa.num_shots = (0, 0)
  config.data.max_media.image, config.data.max_tokens = 1, 24
  seen = collections.defaultdict(set)
  batches = take(iterate(config), 60)
  for batch in batches:
    for tokens, picture in zip(batch["tokens"], batch["media/image"][:, 0], strict=True):
      seen[TOKENIZER.decode(tokens)].add(picture.tobytes())
  assert len(seen) > 35
  for text, pictures in seen.items():
    assert len(pictures) == 1 if "side" in text else len(pictures) <= 2
  assert sum(len(pictures) for pictures in seen.values()) > 50


def test_evaluation_draws_nothing(root):
  config = make_config(root, transforms=FLIP)
  plain, drawn = (DATASETS["mixture"](c.data, 0) for c in (make_config(root), config))
  for data in (plain, drawn):
    assert data.parts["own"].samples("vqa", "train")[3].media[0].array.shape == (8, 8, 3)
  same = [data.parts["own"].samples("vqa", "train")[3].media[0].array for data in (plain, drawn)]
  assert (same[0] == same[1]).all()
  read = [data.episodes("own/vqa", "train", 0)[3].query.media[0].array for data in (plain, drawn)]
  assert (read[0] != read[1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_remaining_batches(root, iterate, workers):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  config = make_config(root, transforms=FLIP, shards=2, packing_bins=2)
  uninterrupted = take(iterate(config), 8)
  with config.unlocked():
    config.data.num_workers = workers
  iterator = iterate(config)
  assert_same(take(iterator, 3), uninterrupted[:3])
  resumed = iterate(config)
  resumed.set_state(iterator.get_state())
  assert_same(take(resumed, 5), uninterrupted[3:])


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("sources", {"a": {"source": "foldr"}}, r"unknown config\.data\.sources\.a\.source 'foldr'"),
    ("sources", {"a": {"sorce": "x"}}, r"unknown field of config\.data\.sources\.a 'sorce'"),
    ("transforms", {"image": {"flp": {}}}, r"transforms\.image: unknown transform 'flp'; did you"),
    ("transforms", {"imge": {}}, r"unknown kind of media in config\.data\.transforms 'imge'"),
    ("transforms", {"image": {"crop": {"at": "x"}}}, r"transforms\.image: transform crop"),
    ("temperature", 0.0, r"config\.data\.temperature must be positive, got 0\.0"),
  ],
)
def test_sections_of_the_config_are_checked(field, value, message):
  config = config_lib.load_config("configs/flamingo_med.py")
  with config.unlocked():
    config.data[field] = value
  with pytest.raises(UserError, match=message):
    config_lib.validate(config)
