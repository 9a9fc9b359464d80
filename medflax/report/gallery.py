"""Cards of questions and answers to filter, search and leaf through in the browser.

The cards are JSON inside the page, shown by `gallery.js`, so that tens of thousands of answers
stay usable. Its pictures and its support examples are there once, however many cards show them.
"""

import base64
import dataclasses
import functools
import importlib.resources
import json
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from medflax.metrics.text import normalise
from medflax.report.fewshot import plural
from medflax.report.page import in_words, section
from medflax.report.results import Evaluation, condition_name

RIGHT, WRONG = "right", "wrong"
OTHER = "(other)"  # what answers as nothing that is ever right
MOST_LABELS = 20  # more distinct answers are no classes
# To choose from in one filter, and their letters; the words can be searched for all the same.
_MOST_VALUES, _MOST_LETTERS = 200, 60
_MOST_CANDIDATES = 8
_MOST_BYTES = 48 * 2**20  # of pictures in one page
_LABELS = {"seed": "every seed", "stop": "every end"}


@dataclasses.dataclass(frozen=True)
class Card:
  """One question with its answers; all plain text.

  Attributes:
    verdict: the kind ("right", "wrong" or "") that colours it, and how it is told.
    fields: what it can be filtered by, the same order in all cards; the first is the verdict.
    head: the line beside the verdict.
    rows: (name, text, kind) of the question, the answer and the predictions.
    candidates: (text, probability, kind) of scored answers, best first.
    told: the line at its end.
    media: PNG files; those that somebody has tidied away are left out.
    support: (question, answer, PNG files) of each example that the model was shown.
  """

  id: str
  verdict: tuple[str, str]
  fields: Mapping[str, str]
  head: str
  rows: Sequence[tuple[str, str, str]]
  candidates: Sequence[tuple[str, float, str]] = ()
  told: str = ""
  media: Sequence[pathlib.Path] = ()
  support: Sequence[tuple[str, str, Sequence[pathlib.Path]]] = ()


@functools.cache
def script() -> str:
  """What a page with a gallery must run."""
  return importlib.resources.files("medflax.report").joinpath("gallery.js").read_text("utf-8")


def gallery(heading: str, cards: Sequence[Card], note: str) -> str:
  """The section; "" without cards. Those with pictures come first, else the order is kept."""
  if not cards:
    return ""
  cards = sorted(cards, key=lambda card: not card.media)
  pictures = _Pictures()
  support = _Table()
  facets = _facets(cards)
  numbers = [(name, {value: n for n, value in enumerate(values)}) for name, values in facets]
  data = {
    "facets": [{"name": n, "label": _LABELS.get(n, f"every {n}"), "values": v} for n, v in facets],
    "verdicts": dict(facets)["verdict"],
    "cards": [
      {
        "id": card.id,
        "verdict": card.verdict,
        "fields": [values.get(card.fields.get(name)) for name, values in numbers],
        "head": card.head,
        "rows": card.rows,
        "candidates": card.candidates,
        "told": card.told,
        "media": pictures.add(card.media),
        "support": [
          support.add(json.dumps({"question": q, "answer": a, "media": pictures.add(media)}))
          for q, a, media in card.support
        ],
      }
      for card in cards
    ],
  }
  data["pictures"] = [{"png": png, "wide": wide} for png, wide in pictures.table.rows]
  data["support"] = [json.loads(row) for row in support.rows]
  left_out = f" {pictures.left_out:,} pictures are too many for one page." * bool(pictures.left_out)
  # In JSON "<" stands only within texts, where its number means the same: no tag can end early.
  embedded = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
  body = (
    '<div id="filters"></div><p class="note"><output id="count"></output></p>'
    '<div class="samples" id="sheet"><noscript>The answers need JavaScript.</noscript></div>'
    f'<div id="pages"></div><script type="application/json" id="cards">{embedded}</script>'
  )
  return section(heading, body, note + left_out)


def answer_cards(evaluation: Evaluation, samples: Sequence[Mapping[str, Any]]) -> list[Card]:
  """The cards of lines of samples.jsonl."""
  shown = Labels(evaluation.answers)
  return [_card(sample, evaluation, shown) for sample in samples]


class Labels:
  """The distinct right answers of some samples by their normal form, as first written."""

  def __init__(self, samples: Sequence[Mapping[str, Any]]):
    self.names: dict[str, str] = {}
    for sample in samples:
      self.names.setdefault(normalise(sample["answer"]), sample["answer"])

  def of(self, answer: str) -> str:
    """The right answer that this one is, or `OTHER`."""
    return self.names.get(normalise(answer), OTHER)


class _Table:
  """Distinct values by number."""

  def __init__(self):
    self.numbers: dict[Any, int] = {}

  def add(self, value: Any) -> int:
    return self.numbers.setdefault(value, len(self.numbers))

  @property
  def rows(self) -> list[Any]:
    return list(self.numbers)


class _Pictures:
  """Distinct PNG files, as (base64, whether it is a strip of slices), up to `_MOST_BYTES`."""

  def __init__(self):
    self.table, self.bytes, self.left_out = _Table(), 0, 0

  def add(self, paths: Sequence[pathlib.Path]) -> list[int]:
    read = [path.read_bytes() for path in paths if path.is_file()]
    numbers = []
    for data in read:
      picture = base64.b64encode(data).decode(), _is_wide(data)
      if picture not in self.table.numbers:
        if self.bytes + len(data) > _MOST_BYTES:
          self.left_out += 1
          continue
        self.bytes += len(data)
      numbers.append(self.table.add(picture))
    return numbers


def _is_wide(png: bytes) -> bool:
  """A PNG's width and height are its bytes 16 to 24."""
  width, height = struct.unpack(">II", png[16:24])
  return width > 2 * height


def _facets(cards: Sequence[Card]) -> list[tuple[str, list[str]]]:
  """The fields that can be chosen by, with their values; the verdict first."""
  values: dict[str, dict[str, None]] = {"verdict": {}}
  for card in cards:
    for name, value in card.fields.items():
      values.setdefault(name, {})[value] = None
  return [
    (name, sorted(found, key=_by_number))
    for name, found in values.items()
    if name == "verdict"
    or (1 < len(found) <= _MOST_VALUES and max(map(len, found)) <= _MOST_LETTERS)
  ]


def _by_number(value: str) -> tuple[int, str]:
  return (int(value), "") if value.isascii() and value.isdigit() else (-1, value)


def _card(sample: Mapping[str, Any], evaluation: Evaluation, shown: Labels) -> Card:
  right, folder = sample["correct"], evaluation.folder
  kind = RIGHT if right else WRONG
  condition = condition_name(sample["condition"])
  fields = {
    "verdict": kind,
    "evaluation": evaluation.name,
    "shots": str(sample["num_shots"]),
    "condition": sample["condition"],
    "task": sample["task"],
    "seed": str(sample.get("seed", "")),
    "stop": sample["stop"],
    "answer": shown.of(sample["answer"]),
    "prediction": shown.of(sample["prediction"]),
  }
  meta = {key: in_words(value) for key, value in sample["meta"].items()}
  reserved = {*fields, "id", "words"}
  fields |= {f"meta.{key}" if key in reserved else key: value for key, value in meta.items()}
  rows = [
    ("question", sample["question"], ""),
    ("choices", ", ".join(map(str, sample["choices"])), ""),
    ("answer", sample["answer"], ""),
    ("model", sample["prediction"] or "(nothing)", kind),
  ]
  seed = f", seed {sample['seed']}" if sample.get("seed") is not None else ""
  scores = {name: f"{value:.3g}" for name, value in sample.get("scores", {}).items()}
  told = {"group": sample["group"], **meta, "end": sample["stop"], **scores}
  return Card(
    id=sample["id"],
    verdict=(kind, "✓ right" if right else "✗ wrong"),
    fields=fields,
    head=f"{sample['task']}, {plural(sample['num_shots'])}, {condition}{seed}",
    rows=[row for row in rows if row[1]],
    candidates=_candidates(sample),
    told=" · ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items() if value),
    media=[folder / path for path in sample["media"]],
    support=[
      (shot["question"], shot["answer"], [folder / path for path in shot["media"]])
      for shot in sample["support"]
    ],
  )


def _candidates(sample: Mapping[str, Any]) -> list[tuple[str, float, str]]:
  """The likeliest answers, and the right one wherever it stands."""
  ranked = sorted(sample.get("candidates", ()), key=lambda one: -one["probability"])
  answer = normalise(sample["answer"])
  return [
    (one["text"], round(one["probability"], 4), RIGHT if is_answer else "")
    for rank, one in enumerate(ranked)
    if (is_answer := normalise(one["text"]) == answer) or rank < _MOST_CANDIDATES
  ]
