"""Which expert an image is for: a linear classifier of a vision tower's features.

The original's classifier was not published. This one is a multinomial logistic regression on the
mean of a frozen tower's tokens (of the shipped tower, or of an imported one such as CLIP's) and on
a few numbers about colours, which towers tend to forget.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
import scipy.optimize
import scipy.special
from jaxtyping import Float, Int, UInt8

from medflax.data.documents import IMAGE, Media
from medflax.leakage.embed import TowerEmbedder
from medflax.utils import UserError

RADIOLOGY, PLOT, NONE = KINDS = ("radiology", "plot", "none")
SHIPPED = pathlib.Path(__file__).parent / "assets" / "image_kind.safetensors"
DECAY = 1e-3  # of the squared weights, against the mean loss
CHUNK = 64  # images that are embedded together

Picture = UInt8[np.ndarray, "_ _ 3"]


class Routed(NamedTuple):
  """A kind of image and how sure that is."""

  kind: str
  probability: float


class Head(NamedTuple):
  """The classifier on features, standardised by their `mean` and `scale`.

  Attributes:
    kinds: the classes' names.
    tower: the folder of the tower; "": the shipped one.
  """

  kinds: tuple[str, ...]
  tower: str
  mean: Float[np.ndarray, " d"]
  scale: Float[np.ndarray, " d"]
  kernel: Float[np.ndarray, "d kinds"]
  bias: Float[np.ndarray, " kinds"]

  def log_probabilities(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n kinds"]:
    standard = (features - self.mean) / self.scale
    return scipy.special.log_softmax(standard @ self.kernel + self.bias, axis=1)

  def to_bytes(self) -> bytes:
    """A safetensors file, which `load_head` reads."""
    arrays = {name: np.asarray(getattr(self, name), np.float32) for name in _ARRAYS}
    told = {"kinds": json.dumps(self.kinds), "tower": self.tower}
    return safetensors.numpy.save(arrays, told)


_ARRAYS = ("mean", "scale", "kernel", "bias")


def fit_head(
  features: Float[np.ndarray, "n d"],
  labels: Int[np.ndarray, " n"],
  kinds: Sequence[str],
  tower: str = "",
) -> Head:
  """The classifier that fits best, every kind weighing the same however many examples it has."""
  mean, scale = features.mean(0), features.std(0) + 1e-6
  x, shape = (features - mean) / scale, (features.shape[1] + 1, len(kinds))
  x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
  weight = 1 / np.bincount(labels, minlength=len(kinds))[labels] / len(kinds)
  truth = np.eye(len(kinds))[labels]

  def objective(flat: Float[np.ndarray, " k"]) -> tuple[float, Float[np.ndarray, " k"]]:
    w = flat.reshape(shape)
    log_p = scipy.special.log_softmax(x @ w, axis=1)
    loss = -(weight @ (truth * log_p).sum(1)) + DECAY * (w[:-1] ** 2).sum()
    slope = x.T @ ((np.exp(log_p) - truth) * weight[:, None])
    slope[:-1] += 2 * DECAY * w[:-1]
    return loss, slope.ravel()

  found = scipy.optimize.minimize(objective, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B")
  w = found.x.reshape(shape)
  return Head(tuple(kinds), tower, mean, scale, w[:-1], w[-1])


def load_head(path: str | pathlib.Path) -> Head:
  """A head that `medflax.tools.train_classifier` has written.

  Raises:
    UserError: if it cannot be read or is none.
  """
  try:
    with safetensors.safe_open(path, "np") as file:
      told = file.metadata() or {}
      arrays = [file.get_tensor(name).astype(np.float64) for name in _ARRAYS]
    kinds = tuple(json.loads(told["kinds"]))
  except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
    raise UserError(
      f"{path} is no classifier that medflax.tools.train_classifier has written: {error}"
    ) from None
  return Head(kinds, told.get("tower", ""), *arrays)


class Classifier:
  """Tells kinds of images apart.

  Attributes:
    head: the linear part.

  Raises:
    UserError: if the head or its tower cannot be read, or they do not fit each other.
  """

  def __init__(self, path: str | pathlib.Path = SHIPPED):
    """`path` is a head's file; the default ships with the package."""
    self.head = load_head(path)
    self._embedder = TowerEmbedder(self.head.tower)

  def __call__(self, images: Sequence[Picture]) -> list[Routed]:
    """The likeliest kind of each image."""
    if not images:
      return []
    features = embedded(self._embedder, images)
    if features.shape[1] != len(self.head.mean):
      raise UserError(
        f"the classifier reads {len(self.head.mean)} features, its tower "
        f"{self.head.tower!r} makes {features.shape[1]}; train it again"
      )
    probabilities = np.exp(self.head.log_probabilities(features))
    best = probabilities.argmax(1)
    return [
      Routed(self.head.kinds[k], float(p[k])) for k, p in zip(best, probabilities, strict=True)
    ]


def embedded(embedder: TowerEmbedder, images: Sequence[Picture]) -> Float[np.ndarray, "n d"]:
  """A tower's features of images of any size, and `colours`."""
  fitted = [embedder.prepare(Media(image)) for image in images]
  chunks = [np.stack(fitted[i : i + CHUNK]) for i in range(0, len(fitted), CHUNK)]
  features = np.concatenate([embedder(IMAGE, chunk) for chunk in chunks])
  return np.concatenate([features, [colours(image) for image in images]], axis=1, dtype=np.float64)


def colours(image: Picture) -> Float[np.ndarray, "5"]:
  """Brightness and its deviation, saturation, and the shares of paper white and of black."""
  grey, pixels = image.mean(-1) / 255, image.astype(np.int16)
  saturation = (pixels.max(-1) - pixels.min(-1)).mean() / 255
  return np.array([grey.mean(), grey.std(), saturation, (grey > 0.9).mean(), (grey < 0.1).mean()])
