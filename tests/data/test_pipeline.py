import collections
import collections.abc
import dataclasses
import itertools
import multiprocessing
import os
import signal
import threading
import time
import types

import ml_collections
import numpy as np
import pytest
from absl import flags

from medflax.data.documents import ENDLESS, Episode, Media, Prompt, Sample, Source
from medflax.data.pipeline import (
  row_shape,
  train_iterator,
  with_media_slots,
)
from medflax.data.prefetch import prefetch_to_device
from medflax.data.tokenizer import load_tokenizer
from medflax.utils import UserError

TOKENIZER = load_tokenizer()


class Episodes(collections.abc.Sequence):
  """Episode i asks "i?"; its answer names the task, its picture holds i mod 256."""

  def __init__(self, task, num_shots, length):
    self.task, self.length = task, length
    self.low, self.high = (num_shots,) * 2 if isinstance(num_shots, int) else num_shots

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    if not 0 <= index < self.length:
      raise IndexError(index)
    picture = Media(np.full((2, 2, 3), index % 256, np.uint8))
    source = Source("toy", "1", "train")
    sample = Sample(str(index), (picture,), f"{index}?", self.task, source)
    return Episode(sample, (sample,) * (self.low + index % (self.high - self.low + 1)))


LENGTHS = {"few": 10, "endless": ENDLESS, "broken": 10, "none": 0}


class Toy:
  name, version, tasks = "toy", "1", tuple(LENGTHS)
  media_per_sample = types.MappingProxyType({"image": 1})

  def episodes(self, task, split, num_shots, num_episodes=None):
    length = min(LENGTHS[task], num_episodes or ENDLESS)
    return (Broken if task == "broken" else Episodes)(task, num_shots, length)


class Broken(Episodes):
  def __getitem__(self, index):
    raise UserError("a.png: truncated")


def entry(task, num_shots=(0, 3), weight=1.0):
  return {"task": task, "num_shots": num_shots, "weight": weight, "targets": "all"}


def make_config(workers=0, batch_size=4, max_tokens=48, shards=-1, **train):
  train = train or {"a": entry("few"), "b": entry("endless", weight=3.0)}
  data = {
    "image_size": (2, 2),
    "volume_size": (1, 2, 2),
    "train": train,
    "max_tokens": max_tokens,
    "max_media": {"image": 5, "volume": 0},
    "media_mark": "<image>",
    "media_tokens": 0,
    "answer_tokens": 0,
    "loss_words": (),
    "media_rule": "prev_image",
    "num_workers": workers,
    "packing_bins": 6,
    "shards": shards,
    "temperature": 1.0,
  }
  prompt = dataclasses.asdict(Prompt())
  tree = {"prompt": prompt, "data": data, "train": {"batch_size": batch_size}}
  return ml_collections.ConfigDict(tree)


@pytest.fixture
def iterate():
  """Makes iterators that are closed at the end of the test."""
  made = []

  def make(config=None, seed=0, **options):
    made.append(train_iterator(Toy(), TOKENIZER, config or make_config(), seed=seed, **options))
    return made[-1]

  yield make
  for iterator in made:
    iterator.close()


def take(iterator, count):
  return list(itertools.islice(iterator, count))


def assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want, strict=True):
    assert a.keys() == b.keys()
    assert all((a[key] == b[key]).all() for key in a)


def documents(batches):
  """(task, episode) of every document, read back from the tokens."""
  found = []
  for batch in batches:
    for tokens, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
      for segment in range(1, segments.max() + 1):
        text = TOKENIZER.decode(tokens[segments == segment])
        question, task = text.split("Question: ")[-1].split("? Answer: ")
        found.append((task, int(question.rstrip("?"))))
  return found


def test_batches_follow_the_contract(iterate):
  batch = next(iterate())
  shapes = {key: (array.shape, array.dtype.name) for key, array in batch.items()}
  assert shapes == {
    "tokens": ((4, 48), "int32"),
    "loss_mask": ((4, 48), "float32"),
    "positions": ((4, 48), "int32"),
    "segment_ids": ((4, 48), "int32"),
    "media_index": ((4, 48), "int32"),
    "media_first": ((4, 48), "int32"),
    "media/image": ((4, 5, 2, 2, 3), "uint8"),
    "media_ordinal/image": ((4, 5), "int32"),
  }


def test_batches_depend_on_config_and_seed_alone(iterate):
  first = take(iterate(), 5)
  assert_same(take(iterate(), 5), first)
  assert documents(take(iterate(seed=1), 5)) != documents(first)


def test_the_mixture_follows_its_weights(iterate):
  tasks = collections.Counter(task for task, _ in documents(take(iterate(), 60)))
  assert tasks["few"] / tasks.total() == pytest.approx(0.25, abs=0.02)


def test_a_finite_task_is_shuffled_anew_every_pass(iterate):
  one_shot = make_config(batch_size=1, max_tokens=24, a=entry("few", num_shots=0))
  one_shot.data.max_media.image = 1  # one document a row
  one_shot.data.packing_bins = 1
  found = [index for _, index in documents(take(iterate(one_shot), 40))]
  counts = collections.Counter(found)
  assert set(counts) == set(range(10))
  assert max(counts.values()) - min(counts.values()) <= 1
  assert sorted(found) != found[:10] * 4


@pytest.mark.parametrize("taken", [0, 1, 4, 7])
def test_resuming_gives_the_remaining_batches(iterate, taken):
  iterator = iterate()
  take(iterator, taken)
  state = iterator.get_state()
  rest = take(iterator, 5)
  resumed = iterate()
  take(resumed, 2)
  resumed.set_state(state)
  assert_same(take(resumed, 5), rest)
  assert resumed.get_state() == iterator.get_state()
  assert resumed.counters == iterator.counters


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_and_resume(iterate):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # app.run does in a program; workers read absl's flags
  iterator = iterate(make_config(workers=2, shards=2))
  alone = iterate(make_config(shards=2))
  head = take(iterator, 4)
  assert_same(head, take(alone, 4))
  state = iterator.get_state()
  assert state == alone.get_state()
  workers = multiprocessing.active_children()
  for worker in workers:
    os.kill(worker.pid, signal.SIGINT)  # as a terminal's Ctrl-C does, which is not for them
  rest = take(iterator, 5)
  assert len(workers) >= 2 and all(worker.is_alive() for worker in workers)
  for workers in (0, 1, 2):
    resumed = iterate(make_config(workers=workers, shards=2))
    resumed.set_state(state)
    assert_same(take(resumed, 5), rest)


def global_batches(iterate, processes, count, state=None, **options):
  """Batches of all processes, each put together from theirs, and the state of all."""
  made = [
    iterate(make_config(**options), process_index=p, process_count=processes)
    for p in range(processes)
  ]
  if state is not None:
    for iterator in made:
      iterator.set_state(state)
  parts = [take(iterator, count) for iterator in made]
  batches = [
    {key: np.concatenate([part[key] for part in step]) for key in step[0]}
    for step in zip(*parts, strict=True)
  ]
  counters = collections.Counter()
  for iterator in made:
    counters.update(iterator.counters)
  return batches, b"\n".join(iterator.get_state() for iterator in made), counters


@pytest.mark.parametrize("processes", [2, 4])
def test_batches_are_the_same_for_every_number_of_processes(iterate, processes):
  alone, _, counters = global_batches(iterate, 1, 9, shards=4)
  shared, _, counters_shared = global_batches(iterate, processes, 9, shards=4)
  assert_same(shared, alone)
  assert counters == counters_shared


def test_the_number_of_processes_may_change_between_runs(iterate):
  uninterrupted, _, counters = global_batches(iterate, 1, 12, shards=4)
  batches, state, _ = global_batches(iterate, 4, 3, shards=4)
  for processes, count in ((1, 4), (2, 3), (4, 2)):
    more, state, counted = global_batches(iterate, processes, count, state, shards=4)
    batches += more
  assert_same(batches, uninterrupted)
  assert counted == counters


def test_a_state_of_other_shards_is_refused(iterate):
  state = iterate(make_config(shards=2)).get_state()
  with pytest.raises(UserError, match=r"saved with 2 shards, this run has 4; set data\.shards = 2"):
    iterate(make_config(shards=4)).set_state(state)
  state = iterate(make_config(shards=4), process_index=1, process_count=2).get_state()
  with pytest.raises(UserError, match="lacks shard 0"):
    iterate(make_config(shards=4)).set_state(state)


@pytest.mark.parametrize("state", [b"", b"[]", b"{}", b'{"format": 9, "layout": {}}'])
def test_a_damaged_state_is_refused(iterate, state):
  with pytest.raises(UserError, match="state"):
    iterate().set_state(state)


def test_processes_share_out_the_stream_of_a_single_one(iterate):
  config = make_config(a=entry("few", num_shots=0), b=entry("endless", weight=2.0))
  whole = collections.Counter(documents(take(iterate(config), 30)))
  shards = [
    collections.Counter(documents(take(iterate(config, process_index=p, process_count=2), 30)))
    for p in range(2)
  ]
  endless = [{i for task, i in shard if task == "endless"} for shard in shards]
  assert not endless[0] & endless[1]
  last = min(max(numbers) for numbers in endless)
  union = endless[0] | endless[1]
  settled = {i for i in union if i < last // 2}  # far from the packing groups' ragged ends
  assert settled == set(range(last // 2)) <= {i for task, i in whole if task == "endless"}


def test_shards_must_divide_among_processes(iterate):
  with pytest.raises(UserError, match=r"data\.shards = 2 must be a multiple of the 4 processes"):
    iterate(make_config(shards=2), process_count=4)


def test_batch_size_must_divide_among_processes(iterate):
  with pytest.raises(UserError, match="batch_size = 4 must be a multiple of the 3 shards"):
    iterate(process_index=0, process_count=3)
  assert next(iterate(process_index=1, process_count=2))["tokens"].shape == (2, 48)


@pytest.mark.parametrize(
  ("train", "message"),
  [
    ({"a": entry("endles")}, r"data\.train\.a: toy has no task 'endles'; did you mean 'endless'"),
    ({"a": entry("none")}, r"data\.train\.a: toy has no training data of 'none'"),
    ({"a": entry("few", weight=0.0)}, r"data\.train\.a\.weight must be positive"),
  ],
)
def test_a_mixture_that_cannot_be_is_refused(iterate, train, message):
  with pytest.raises(UserError, match=message):
    iterate(make_config(**train))


def test_the_targets_of_an_entry_reach_its_documents(iterate):
  batches = [
    next(iterate(make_config(a=entry("few", num_shots=3) | {"targets": targets})))
    for targets in ("all", "repeated", "none")
  ]
  counts = [batch["loss_mask"].sum() / batch["segment_ids"].max(1).sum() for batch in batches]
  assert counts[0] * 3 == counts[1] * 4 == counts[2] * 12  # of four answers, all the same


def test_media_slots_may_be_left_to_the_data():
  config = make_config(a=entry("few", num_shots=(0, 3)), b=entry("few", num_shots=1)).lock()
  assert with_media_slots(config, {"image": 7}) == config
  with config.unlocked():
    config.data.max_media = {"image": -1, "volume": -1, "signal": 2}
  slots = with_media_slots(config, {"image": 2}).data.max_media
  assert slots.to_dict() == {"image": 2 * 4, "volume": 0, "signal": 2}
  assert config.data.max_media.image == -1


def test_an_unknown_kind_of_media_is_refused():
  config = make_config()
  config.data.max_media = {"video": 1}
  with pytest.raises(UserError, match=r"data\.max_media\.video: unknown kind"):
    row_shape(config.data)


def test_counters_add_up_and_tell_what_was_cut(iterate):
  iterator = iterate(make_config(max_tokens=36))
  batches = take(iterator, 6)
  counters = iterator.counters
  assert counters["documents"] == len(documents(batches))
  assert counters["tokens"] == sum((b["segment_ids"] > 0).sum() for b in batches)
  assert counters["token_slots"] == 6 * 4 * 36
  assert counters["media"] == sum((b["media_ordinal/image"] > 0).sum() for b in batches)
  assert counters["media_slots"] == 6 * 4 * 5
  assert 0 < counters["truncated_documents"] <= counters["dropped_chunks"]
  assert counters["cut_tokens"] == 0
  for name in ("documents", "tokens", "media", "dropped_chunks"):
    assert counters[f"a/{name}"] + counters[f"b/{name}"] == counters[name]
  tasks = collections.Counter(task for task, _ in documents(batches))
  assert counters["a/documents"] == tasks["few"]


def test_an_error_of_the_data_set_reaches_the_caller(iterate):
  with pytest.raises(UserError, match=r"a\.png: truncated"):
    next(iterate(make_config(a=entry("broken"))))


def test_prefetch_state_is_that_of_the_batch_handed_out(iterate):
  iterator = iterate()
  ahead = prefetch_to_device(iterator, lambda batch: batch, size=3)
  assert ahead.get_state() == iterate().get_state()
  head = take(ahead, 2)
  time.sleep(0.05)  # let it run ahead
  state, counters = ahead.get_state(), ahead.counters
  rest = take(ahead, 3)
  ahead.close()
  plain = iterate()
  assert_same(take(plain, 2), head)
  assert (plain.get_state(), plain.counters) == (state, counters)
  assert_same(take(plain, 3), rest)


def test_prefetch_puts_batches_in_its_thread_and_counts_the_wait(iterate):
  def put(batch):
    time.sleep(0.05)
    return threading.current_thread().name

  ahead = prefetch_to_device(iterate(), put)
  assert next(ahead) == "prefetch"
  assert ahead.wait_seconds >= 0.05
  ahead.close()
  assert "prefetch" not in {thread.name for thread in threading.enumerate()}
  with pytest.raises(StopIteration):
    next(ahead)


def test_prefetch_hands_on_the_original_error(iterate):
  ahead = prefetch_to_device(iterate(make_config(a=entry("broken"))), lambda batch: batch)
  with pytest.raises(UserError, match=r"a\.png: truncated"):
    next(ahead)
  with pytest.raises(StopIteration):
    next(ahead)
