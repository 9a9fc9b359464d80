"""Comparing two sides: which media, groups and texts they share."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tqdm
from jaxtyping import Float, UInt8

from medflax.data.documents import IMAGE, VOLUME
from medflax.leakage.pictures import alignment, hashes, zoomed_hashes
from medflax.leakage.search import nearest, pairs_above
from medflax.leakage.sides import Side
from medflax.utils import UserError

PIXELS, PHASH, CROP, SLICE, EMBEDDING = "pixels", "phash", "crop", "slice", "embedding"
GROUP, GROUP_NAME, TEXT, COMPANY = "group", "group_name", "text", "company"
# What each reason means, by which of a pair's is shown first.
REASONS = {
  PIXELS: "the same pixels",
  PHASH: "a copy: scaled, compressed, brighter or darker",
  CROP: "a crop, or nearly the same view",
  SLICE: "an image that is a slice of a volume",
  EMBEDDING: "alike to the vision tower",
  GROUP: "the same patient, case or group",
  GROUP_NAME: "a group of the same name in another data set",
  TEXT: "the same question with the same answer",
  COMPANY: "of the group of a sample that leaks",
}
_MOST_ALIKE, _FEW = 1e-3, 10_000  # of all pairs, or so many, may be alike to a tower
_CANDIDATES = 5  # a crop is looked for among so many of the nearest hashes


@dataclasses.dataclass(frozen=True)
class Limits:
  """From which score on, of at most 1, two media count as the same; docs/data.md has the tests.

  Attributes:
    phash: the cosine of hashes: 14 of 143 bits may differ.
    crop: the alignment of two images.
    volume: the mean alignment of the views of two volumes.
    embedding: the cosine of two embeddings.
  """

  phash: float = 0.8
  crop: float = 0.76
  volume: float = 0.62
  embedding: float = 0.998


@dataclasses.dataclass(frozen=True)
class Pair:
  """A medium of either side, and why they are taken for the same: a score for each reason."""

  train: int
  eval: int
  reasons: Mapping[str, float]

  @property
  def rank(self) -> tuple[int, float]:
    """Sorts the surest first."""
    first = next(number for number, name in enumerate(REASONS) if name in self.reasons)
    return first, -max(self.reasons.values())


@dataclasses.dataclass(frozen=True)
class Findings:
  """What two sides share.

  Attributes:
    train, eval: the sides.
    pairs: of media, the surest first.
    groups: (reason, group, samples of train, samples of eval) for every group on both sides.
    texts: (text, samples of train, samples of eval) for every question and answer on both.
  """

  train: Side
  eval: Side
  pairs: Sequence[Pair]
  groups: Sequence[tuple[str, str, list[int], list[int]]]
  texts: Sequence[tuple[tuple[str, str], list[int], list[int]]]

  def reasons(self, side: str) -> dict[int, dict[str, float]]:
    """For every sample of "train" or "eval" that shares something: the reasons with scores."""
    found: dict[int, dict[str, float]] = collections.defaultdict(dict)

    def add(sample: int, reason: str, score: float) -> None:
      found[sample][reason] = max(score, found[sample].get(reason, -1.0))

    media = getattr(self, side).media
    for pair in self.pairs:
      for sample in media[getattr(pair, side)].samples:
        for reason, score in pair.reasons.items():
          add(sample, reason, score)
    at = ("train", "eval").index(side)
    for reason, _, *samples in self.groups:
      for sample in samples[at]:
        add(sample, reason, 1.0)
    for _, *samples in self.texts:
      for sample in samples[at]:
        add(sample, TEXT, 1.0)
    return dict(found)

  def excluded(
    self, side: str, reasons: Sequence[str], *, whole_groups: bool
  ) -> dict[int, dict[str, float]]:
    """The samples to leave out for one of `reasons`, and with `whole_groups` their company."""
    found = {
      sample: kept
      for sample, scores in sorted(self.reasons(side).items())
      if (kept := {name: score for name, score in scores.items() if name in reasons})
    }
    if whole_groups:
      samples = getattr(self, side).samples
      key = lambda sample: (samples[sample].part.collection.root, samples[sample].group)
      groups = {key(sample) for sample in found}
      company = [i for i in range(len(samples)) if i not in found and key(i) in groups]
      found |= {sample: {COMPANY: 1.0} for sample in company}
    return dict(sorted(found.items()))


def compare(train: Side, evaluated: Side, limits: Limits) -> Findings:
  """Finds everything that the sides share.

  Raises:
    UserError: if the tower of the embeddings cannot tell pictures apart.
  """
  scores: dict[tuple[int, int], dict[str, float]] = collections.defaultdict(dict)
  for reason, i, j, score in _media_pairs(train, evaluated, limits):
    scores[i, j][reason] = max(score, scores[i, j].get(reason, -1.0))
  pairs = [Pair(i, j, reasons) for (i, j), reasons in sorted(scores.items())]
  return Findings(
    train=train,
    eval=evaluated,
    pairs=sorted(pairs, key=lambda pair: pair.rank),
    groups=list(_shared_groups(train, evaluated)),
    texts=list(_shared_texts(train, evaluated)),
  )


def _media_pairs(
  train: Side, evaluated: Side, limits: Limits
) -> Iterator[tuple[str, int, int, float]]:
  by_digest = {medium.digest: number for number, medium in enumerate(train.media)}
  for number, medium in enumerate(evaluated.media):
    if medium.digest in by_digest:
      yield PIXELS, by_digest[medium.digest], number, 1.0
  for kind, least in {IMAGE: limits.crop, VOLUME: limits.volume}.items():
    yield from print_pairs(train.prints[kind], evaluated.prints[kind], limits.phash, least)
  image = lambda side: (side.prints[IMAGE][0], side.prints[IMAGE][1])
  sliced = lambda side: (side.slices[0], side.slices[1][:, None])
  for a, b in ((sliced(train), image(evaluated)), (image(train), sliced(evaluated))):
    for _, i, j, score in print_pairs(a, b, limits.phash, limits.crop):
      yield SLICE, i, j, score
  for kind in train.vectors.keys() & evaluated.vectors.keys():
    (rows, a), (columns, b) = train.vectors[kind], evaluated.vectors[kind]
    most = max(_MOST_ALIKE * len(a) * len(b), _FEW)
    for count, (i, j, score) in enumerate(pairs_above(a, b, limits.embedding)):
      if count > most:
        raise UserError(
          f"the tower finds more than {most:,.0f} pairs of {kind}s alike by --embedding "
          f"{limits.embedding}, too many to be copies; raise it or use another --tower"
        )
      yield EMBEDDING, int(rows[i]), int(columns[j]), score


def print_pairs(
  train: tuple[np.ndarray, np.ndarray],
  evaluated: tuple[np.ndarray, np.ndarray],
  phash: float,
  crop: float,
) -> Iterator[tuple[str, int, int, float]]:
  """Pairs of media whose fingerprints [n, views, side, side] match."""
  (rows, a), (columns, b) = train, evaluated
  if not (len(a) and len(b)):
    return
  mine = _of_views(a, lambda view: hashes(view)[None])[0]
  zoomed = _of_views(b, zoomed_hashes)
  sure = set()
  for i, j, score in pairs_above(mine, zoomed[0], phash):
    sure.add((i, j))
    yield PHASH, int(rows[i]), int(columns[j]), score
  candidates = nearest(zoomed, mine, _CANDIDATES)
  progress = tqdm.tqdm(candidates, "looking for crops", unit=" media", disable=None, leave=False)
  for j, found in enumerate(progress):
    for i in found.tolist():
      if (i, j) not in sure:
        score = float(np.mean([alignment(x, y) for x, y in zip(a[i], b[j], strict=True)]))
        if score >= crop:
          yield CROP, int(rows[i]), int(columns[j]), score


def _of_views(
  prints: UInt8[np.ndarray, "n views s s"], hashed: Callable[[np.ndarray], np.ndarray]
) -> Float[np.ndarray, "zooms n bits"]:
  """The hashes of all views of a medium as one unit vector."""
  views = [hashed(prints[:, view]) for view in range(prints.shape[1])]
  return np.concatenate(views, axis=-1) / np.float32(np.sqrt(len(views)))


def _shared_groups(train: Side, evaluated: Side) -> Iterator[tuple[str, str, list[int], list[int]]]:
  """Groups of the same data set by any name, of different ones by those they give."""

  def members(side: Side) -> dict[str, dict]:
    found: dict[str, dict] = collections.defaultdict(lambda: collections.defaultdict(list))
    for number, sample in enumerate(side.samples):
      found[sample.group][sample.part.place[0], sample.named].append(number)
    return found

  ours, theirs = members(train), members(evaluated)
  for group in sorted(ours.keys() & theirs.keys()):
    same: dict[str, tuple[set[int], set[int]]] = {}
    for (root, named), mine in ours[group].items():
      for (other, other_named), yours in theirs[group].items():
        if root == other or (named and other_named):
          held = same.setdefault(GROUP if root == other else GROUP_NAME, (set(), set()))
          held[0].update(mine)
          held[1].update(yours)
    for reason, (mine, yours) in same.items():
      yield reason, group, sorted(mine), sorted(yours)


def _shared_texts(
  train: Side, evaluated: Side
) -> Iterator[tuple[tuple[str, str], list[int], list[int]]]:
  """The longest first, which are the least likely to agree by chance."""

  def members(side: Side) -> dict[tuple[str, str], list[int]]:
    found = collections.defaultdict(list)
    for number, sample in enumerate(side.samples):
      found[sample.text].append(number)
    return found

  ours, theirs = members(train), members(evaluated)
  shared = sorted(ours.keys() & theirs.keys(), key=lambda text: (-sum(map(len, text)), text))
  for text in shared:
    yield text, ours[text], theirs[text]
