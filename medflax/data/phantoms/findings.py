"""What can be found: fifteen shapes, each the same concept in every look.

A finding is drawn as a signed field: positive where it is denser than the tissue around it,
negative where it is more lucent, zero where it is not. The looks turn density into brightness (or
stain), so a finding keeps its geometry and its polarity everywhere. Patterns are written in the
finding's own frame, in which its nominal radius is 1, `u` points away from the midline and `v`
down; they vanish a few radii away.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Field = Float[np.ndarray, "m p"]
# (u, v, width of a pixel, noise in about [-1, 1]) -> the signed field.
Pattern = Callable[[Field, Field, Float[np.ndarray, "m 1"], Field], Field]


@dataclasses.dataclass(frozen=True)
class Finding:
  """One finding.

  Attributes:
    phrase: with its article, as it stands in a sentence.
    plural: "" if it is never counted: several run together (effusions) or look like another
      finding (cysts like gas bubbles).
    reason: what is seen, as it follows "because".
    pattern: the drawing.
    place: (lateral, vertical) centre on its side, in units of the look's `site`.
    spread: how far the centre may move from `place`, in the same units.
    extent: nominal radius relative to the other findings', so that all fill a similar area.
    tilt: largest rotation, radians.
  """

  phrase: str
  plural: str
  reason: str
  pattern: Pattern
  place: tuple[float, float] = (1.0, 0.0)
  spread: tuple[float, float] = (0.2, 0.7)
  extent: float = 1.0
  tilt: float = 3.1


def _inside(distance, width):
  """Coverage of a shape from the signed distance to its border, antialiased."""
  return np.clip(0.5 - distance / width, 0, 1)


def _disc(u, v, x, y, radius, width):
  return _inside(np.sqrt((u - x) ** 2 + (v - y) ** 2) - radius, width)


def _nodule(u, v, width, noise):
  return _disc(u, v, 0, 0, 1, width)


def _spiculated_mass(u, v, width, noise):
  root = np.sqrt(np.abs(u)) + np.sqrt(np.abs(v))
  diagonal = np.sqrt(np.abs(u + v)) + np.sqrt(np.abs(u - v))
  star = np.minimum(root - 1.34, 0.84 * diagonal - 1.34)
  return _inside(star, np.maximum(width, 0.12))


def _cyst(u, v, width, noise):
  return -_disc(u, v, 0, 0, 1, width)


def _abscess(u, v, width, noise):
  radius = np.sqrt(u * u + v * v)
  return _inside(radius - 1.1, width) - 1.8 * _inside(radius - 0.66, width)


def _calcifications(u, v, width, noise):
  spacing = 1 / 0.8
  row = np.round(v * spacing)
  du = u * spacing + 0.5 * row
  du, dv = du - np.round(du) + 0.15 * noise, v * spacing - row
  dots = _inside(np.sqrt(du * du + dv * dv) - 0.28, width * spacing)
  return dots * (u * u + v * v < 1.25)


def _consolidation(u, v, width, noise):
  radius = np.sqrt(u * u + v * v)
  cloud = _inside(radius - 1.1 - 0.25 * noise, np.maximum(width, 0.5))
  branch = np.minimum(np.abs(u) + 9 * (v > 0.1), np.abs(np.abs(u) - 0.9 * v) + 9 * (v < 0))
  return cloud * (0.85 - 1.5 * _inside(branch - 0.17, np.maximum(width, 0.2)))


def _effusion(u, v, width, noise):
  pool = np.sqrt((0.8 * u) ** 2 + (0.8 * v) ** 2) - 1.05
  level = -0.15 - 0.22 * u * u - v
  return _inside(np.maximum(pool, level), width)


def _crescent(u, v, width):
  outer = np.sqrt((u + 0.6) ** 2 + (0.8 * v) ** 2) - 1.35
  inner = np.sqrt((u + 1.35) ** 2 + (0.8 * v) ** 2) - 1.35
  return _inside(np.maximum(outer, -inner), width), _inside(
    np.maximum(np.abs(inner + 0.12) - 0.14, outer - 0.1), width
  )


def _pneumothorax(u, v, width, noise):
  air, pleura = _crescent(u, v, width)
  return np.where(air > 0.5, -air, pleura)


def _haemorrhage(u, v, width, noise):
  return _crescent(u, v, width)[0]


def _fracture(u, v, width, noise):
  wave = 0.95 * u
  away = np.abs(v - 1.9 * (np.abs(wave - np.round(wave)) - 0.25))
  length = np.abs(u) - 1.45
  gap = _inside(np.maximum(away - 0.3, length), width)
  return _inside(np.maximum(away - 0.7, length), width) * 0.5 - 1.5 * gap


def _infarct(u, v, width, noise):
  wedge = _inside(np.maximum(np.abs(v) - 0.5 * (u + 1.4), u - 0.75), width)
  return _inside(np.maximum(np.abs(v) - 1.05, np.abs(u - 1.0) - 0.22), width) - wedge


def _oedema(u, v, width, noise):
  window = _inside(np.sqrt(u * u + v * v) - 1.2, np.maximum(width, 0.5))
  return window * np.cos(7.4 * v + 0.4 * noise)


def _atelectasis(u, v, width, noise):
  return _inside(np.maximum(np.abs(v) - 0.34, np.abs(u) - 1.8), width)


def _gas_bubbles(u, v, width, noise):
  bubbles = _disc(u, v, -0.5, -0.35, 0.48, width) + _disc(u, v, 0.6, -0.55, 0.4, width)
  return -(bubbles + _disc(u, v, 0.5, 0.5, 0.48, width) + _disc(u, v, -0.55, 0.75, 0.36, width))


def _foreign_body(u, v, width, noise):
  metal = _inside(np.maximum(np.abs(u) - 0.5, np.abs(v) - 0.75), width)
  streak = np.maximum(np.abs(v) - 0.5 * np.abs(u), np.abs(u) - 1.7)
  return np.maximum(metal * 2, 0) - _inside(streak, np.maximum(width, 0.3)) * (1 - metal)


FINDINGS: dict[str, Finding] = {
  "nodule": Finding("a nodule", "nodules", "a dense round spot has a sharp border", _nodule),
  "spiculated mass": Finding(
    "a spiculated mass",
    "spiculated masses",
    "dense spikes radiate from a core",
    _spiculated_mass,
    extent=1.25,
  ),
  "cyst": Finding("a cyst", "", "a lucent round spot has a sharp border", _cyst),
  "abscess": Finding("an abscess", "abscesses", "a dense ring surrounds a lucent core", _abscess),
  "calcifications": Finding(
    "calcifications", "", "tiny dense dots form a cluster", _calcifications, extent=1.5
  ),
  "consolidation": Finding(
    "a consolidation",
    "",
    "a dense cloud is crossed by lucent branches",
    _consolidation,
    extent=1.4,
    tilt=0.4,
  ),
  "effusion": Finding(
    "an effusion",
    "",
    "a dense pool has a level top",
    _effusion,
    place=(1.0, 0.6),
    spread=(0.12, 0.25),
    extent=1.05,
    tilt=0.1,
  ),
  "pneumothorax": Finding(
    "a pneumothorax",
    "",
    "a lucent crescent lies outside a thin dense line",
    _pneumothorax,
    place=(1.25, -0.2),
    spread=(0.12, 0.5),
    extent=1.3,
    tilt=0.4,
  ),
  "fracture": Finding(
    "a fracture", "", "a lucent zigzag line has dense edges", _fracture, extent=1.25
  ),
  "haemorrhage": Finding(
    "a haemorrhage",
    "",
    "a dense crescent lies along the border",
    _haemorrhage,
    place=(1.25, 0.0),
    spread=(0.12, 0.6),
    extent=1.3,
    tilt=0.4,
  ),
  "infarct": Finding(
    "an infarct",
    "infarcts",
    "a lucent wedge points inwards from a dense base",
    _infarct,
    extent=1.25,
    tilt=0.3,
  ),
  "oedema": Finding("oedema", "", "dense lines lie in parallel", _oedema, extent=1.25, tilt=0.3),
  "atelectasis": Finding(
    "atelectasis", "", "a dense straight band lies across", _atelectasis, tilt=0.4
  ),
  "gas bubbles": Finding(
    "gas bubbles", "", "several lucent bubbles lie together", _gas_bubbles, extent=1.5
  ),
  "foreign body": Finding(
    "a foreign body",
    "foreign bodies",
    "a dense block casts dark streaks sideways",
    _foreign_body,
    tilt=0.2,
  ),
}

NO_FINDING = "no finding"
SIDES = ("left", "right")  # of the image as shown, not of the patient
SIZES = ("small", "large")
RADII = {"small": (0.17, 0.2), "large": (0.3, 0.34)}  # of the image's half width
MAX_COUNT = 3
# Centres of one, two or three findings on a side, before jitter: (lateral, vertical).
ARRANGEMENTS = {
  1: ((0.0, 0.0),),
  2: ((0.0, -0.4), (0.0, 0.4)),
  3: ((-0.08, -0.52), (0.1, 0.0), (-0.08, 0.52)),
}
