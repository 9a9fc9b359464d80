"""Questions about scenes: RadBench's five tasks (Wu et al. 2023, RadFM), on generated images.

Every function below draws one scene and asks about it. `cell` decides the answer's class and
nothing else does, so counting through the cells gives an exactly balanced set of questions.
Left and right are the sides of the image as shown, not of the patient.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from medflax.data.phantoms.findings import FINDINGS, MAX_COUNT, NO_FINDING, SIDES, SIZES
from medflax.data.phantoms.looks import LOOKS, MODALITIES
from medflax.data.phantoms.scenes import LOOK_NAMES, Scene

NAMES = tuple(FINDINGS)
COUNTED = tuple(name for name, finding in FINDINGS.items() if finding.plural)
NUMBERS = ("one", "two", "three")
YES_NO = ("yes", "no")


class Asked(NamedTuple):
  """A scene with a question about it."""

  scene: Scene
  question: str
  answer: str
  choices: tuple[str, ...] = ()
  question_type: str = ""


Ask = Callable[[np.random.Generator, int, str], Asked]  # (rng, cell, media kind)


def pick(rng: np.random.Generator, options: Sequence):
  """One of `options`, uniformly."""
  return options[int(rng.random() * len(options))]


def draw_scene(rng: np.random.Generator, kind: str, finding: str, **fixed) -> Scene:
  """A scene with this finding; what is not `fixed` is random.

  Three of a finding only fit a side if they are small, so large ones are one or two.
  """
  scene = dict(
    look=pick(rng, LOOK_NAMES[kind]), finding=finding, side=pick(rng, SIDES), size=pick(rng, SIZES)
  )
  scene |= fixed
  most = MAX_COUNT if scene["size"] == "small" else MAX_COUNT - 1
  count = 1 + int(rng.random() * most) if finding in COUNTED else 1
  return Scene(**{"count": count, **scene})


def noun(scene: Scene) -> str:
  """The finding's name, in the plural if there are several."""
  return FINDINGS[scene.finding].plural if scene.count > 1 else scene.finding


def ask_modality(rng: np.random.Generator, cell: int, kind: str) -> Asked:
  """Which modality; the finding is a nuisance."""
  known = tuple(m for m in MODALITIES if any(LOOKS[n].modality == m for n in LOOK_NAMES[kind]))
  modality = known[cell % len(known)]
  look = pick(rng, [name for name in LOOK_NAMES[kind] if LOOKS[name].modality == modality])
  scene = draw_scene(rng, kind, pick(rng, (*NAMES, NO_FINDING)), look=look)
  return Asked(scene, "Which modality is this?", modality, known, "modality")


def ask_diagnosis(rng: np.random.Generator, cell: int, kind: str) -> Asked:
  """Whether a finding is shown: every finding is asked for as often with yes as with no."""
  about = NAMES[cell // 2 % len(NAMES)]
  others = [name for name in (*NAMES, NO_FINDING) if name != about]
  shown = about if cell % 2 == 0 else pick(rng, others)
  question = f"Does this {kind} show {FINDINGS[about].phrase}?"
  return Asked(draw_scene(rng, kind, shown), question, YES_NO[cell % 2], YES_NO, "diagnosis")


def ask_finding(rng: np.random.Generator, cell: int, kind: str) -> Asked:
  """The finding's name."""
  choices = (*NAMES, NO_FINDING)
  name = choices[cell % len(choices)]
  question = f"Which finding does this {kind} show?"
  return Asked(draw_scene(rng, kind, name), question, name, choices, "finding")


def _ask_side(rng, cell, kind):
  scene = draw_scene(rng, kind, pick(rng, NAMES), side=SIDES[cell % 2])
  return Asked(scene, f"Side of the {noun(scene)}: left or right?", scene.side, SIDES, "side")


def _ask_size(rng, cell, kind):
  finding = pick(rng, NAMES)
  count = 1 + int(rng.random() * 2) if finding in COUNTED else 1  # says nothing about the size
  scene = draw_scene(rng, kind, finding, size=SIZES[cell % 2], count=count)
  return Asked(scene, f"Size of the {noun(scene)}: small or large?", scene.size, SIZES, "size")


def _ask_count(rng, cell, kind):
  finding, count = pick(rng, COUNTED), 1 + cell % MAX_COUNT
  scene = draw_scene(rng, kind, finding, size="small", count=count)
  question = f"How many {FINDINGS[finding].plural}: one, two or three?"
  return Asked(scene, question, NUMBERS[count - 1], NUMBERS, "count")


_VQA = (ask_finding, _ask_side, _ask_size, _ask_count)


def ask_vqa(rng: np.random.Generator, cell: int, kind: str) -> Asked:
  """In turn: the finding's name, side, size, count."""
  return _VQA[cell % len(_VQA)](rng, cell // len(_VQA), kind)


def report(scene: Scene) -> str:
  """Modality, then count, size, name and side of the finding."""
  modality = LOOKS[scene.look].modality
  finding = f"{scene.size} {noun(scene)} on the {scene.side}"
  if scene.finding == NO_FINDING:
    finding = NO_FINDING
  elif scene.finding in COUNTED:
    finding = f"{NUMBERS[scene.count - 1]} {finding}"
  return f"{modality[0].upper() + modality[1:]}. {finding.capitalize()}."


def ask_report(rng: np.random.Generator, cell: int, kind: str) -> Asked:
  """For a `report`."""
  scene = draw_scene(rng, kind, (*NAMES, NO_FINDING)[cell % (len(NAMES) + 1)])
  return Asked(scene, f"Write a short report of this {kind}.", report(scene), (), "report")


def rationale(finding: str) -> str:
  """The finding with the sign it is told by."""
  return f"{finding}, because {FINDINGS[finding].reason}"


def ask_rationale(rng: np.random.Generator, cell: int, kind: str) -> Asked:
  """Which of two findings is shown, and by which sign one sees it."""
  name = NAMES[cell % len(NAMES)]
  other = pick(rng, [other for other in NAMES if other != name])
  first, second = (name, other) if rng.random() < 0.5 else (other, name)
  question = f"Which is it, and why: {first} or {second}?"
  choices = (rationale(first), rationale(second))
  return Asked(draw_scene(rng, kind, name), question, rationale(name), choices, "rationale")


ASKS: dict[str, Ask] = {
  "modality": ask_modality,
  "finding": ask_finding,
  "diagnosis": ask_diagnosis,
  "vqa": ask_vqa,
  "report": ask_report,
  "rationale": ask_rationale,
}
