r"""Trains the classifier that chooses an image's expert.

python -m medflax.tools.train_classifier --to FILE.safetensors
python -m medflax.tools.train_classifier --images DIR --tower CLIP_DIR --to FILE.safetensors

Without --images it learns from generated ones: phantoms of radiology, charts, and other pictures,
microscopy among them. DIR has a folder for each kind, named after it. --tower is what
`medflax.tools.import_weights` made of a CLIP; the shipped tower otherwise.
"""

import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from medflax.data.documents import IMAGE
from medflax.data.phantoms import LOOKS
from medflax.data.phantoms.charts import draw_chart, render_chart
from medflax.data.phantoms.others import render_curves, render_other
from medflax.data.phantoms.questions import ask_modality
from medflax.data.phantoms.scenes import render
from medflax.experts.classifier import (
  KINDS,
  NONE,
  PLOT,
  RADIOLOGY,
  Head,
  Picture,
  embedded,
  fit_head,
)
from medflax.experts.system import opened
from medflax.flags import Parser
from medflax.leakage.embed import TowerEmbedder
from medflax.utils import UserError, write_atomic

BATCH = 16  # phantoms that are drawn together, at one size
HELD_OUT = 4  # one image of so many of one's own is held out
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")


def generated(count: int, *, seed: int, split: str) -> dict[str, list[Picture]]:
  """About `count` generated images of each kind, of many sizes and shapes.

  Args:
    split: images of "train" and "test" have no random number in common.
  """
  images: dict[str, list[Picture]] = {kind: [] for kind in KINDS}
  for number in range(-(-count // BATCH)):
    rng = np.random.default_rng((seed, ("train", "test").index(split), number))
    size = tuple(rng.integers(64, 161, 2).tolist())
    scenes = [ask_modality(rng, int(rng.integers(2**31)), IMAGE).scene for _ in range(BATCH)]
    for scene, image in zip(scenes, render(scenes, (1, *size), rng)[:, 0], strict=True):
      stained = LOOKS[scene.look].modality == "microscopy"
      images[NONE if stained else RADIOLOGY].append(exposed(rng, image))
    half = range(BATCH // 2)
    images[PLOT] += [render_chart(draw_chart(rng), size, rng) for _ in half]
    images[PLOT] += [render_curves(rng, size) for _ in half]
    images[NONE] += [render_other(rng, size) for _ in range(BATCH)]
  return images


def exposed(rng: np.random.Generator, image: Picture) -> Picture:
  """The image lighter or darker, and now and then inverted, as films are that others digitised."""
  image = 255 - image if rng.random() < 0.1 else image
  return (255 * (image / 255) ** np.exp(rng.uniform(-0.8, 0.8))).astype(np.uint8)


def own(folder: pathlib.Path) -> dict[str, list[Picture]]:
  """The images in each folder of a folder, by its name.

  Raises:
    UserError: for less than two kinds, an empty one, or an image that cannot be read.
  """
  kinds = sorted(path for path in folder.glob("*") if path.is_dir())
  if len(kinds) < 2:
    raise UserError(f"--images {folder}: needs a folder of images for each of two or more kinds")
  found = {kind.name: sorted(p for p in kind.iterdir() if p.suffix in SUFFIXES) for kind in kinds}
  if empty := [name for name, paths in found.items() if len(paths) < 2]:
    raise UserError(f"--images {folder / empty[0]}: needs two or more images")
  return {name: [opened(path) for path in paths] for name, paths in found.items()}


def halves(images: Mapping[str, Sequence[Picture]]) -> tuple[dict[str, list[Picture]], ...]:
  """Every kind's images to learn from, and the others, one in HELD_OUT."""
  held = lambda i, n: i % min(HELD_OUT, n) == 0
  parts = ({}, {})
  for kind, pictures in images.items():
    for i, image in enumerate(pictures):
      parts[held(i, len(pictures))].setdefault(kind, []).append(image)
  return parts


def confusion(
  head: Head, embedder: TowerEmbedder, images: Mapping[str, Sequence[Picture]]
) -> Iterator[str]:
  """A line for each kind: how many of its images were taken for which."""
  for kind, pictures in images.items():
    chosen = head.log_probabilities(embedded(embedder, pictures)).argmax(1)
    counts = np.bincount(chosen, minlength=len(head.kinds))
    right = counts[head.kinds.index(kind)]
    taken = "  ".join(f"{name} {n}" for name, n in zip(head.kinds, counts, strict=True))
    yield f"{kind:12} {right}/{len(pictures)} right   taken for  {taken}"


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = Parser("medflax.tools.train_classifier", __doc__)
  parser.add_argument("--to", type=pathlib.Path, required=True, help="the safetensors file")
  parser.add_argument("--images", type=pathlib.Path, help="a folder with one for each kind")
  parser.add_argument("--tower", default="", help="an imported tower; default: the shipped one")
  parser.add_argument("--count", type=int, default=640, help="generated images of each kind")
  parser.add_argument("--seed", type=int, default=0)
  try:
    flags, _ = parser.parse(argv)
    if flags.to.exists():
      raise UserError(f"--to {flags.to} exists; remove it or choose another file")
    if flags.images:
      train, test = halves(own(flags.images))
    else:
      make = lambda split, count: generated(count, seed=flags.seed, split=split)
      train, test = make("train", flags.count), make("test", max(flags.count // 4, BATCH))
    embedder = TowerEmbedder(flags.tower)
    features = np.concatenate([embedded(embedder, pictures) for pictures in train.values()])
    labels = np.repeat(np.arange(len(train)), [len(pictures) for pictures in train.values()])
    head = fit_head(features, labels, tuple(train), flags.tower)
    print("held out:")
    for line in confusion(head, embedder, test):
      print(line)
    write_atomic(flags.to, head.to_bytes())
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(f"{flags.to}: give it to medflax.tools.ask as --classifier")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
