"""The page on which answers are rated, without a server and without the systems' names."""

import base64
import importlib.resources
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from medflax.report.page import page, text
from medflax.utils import write_atomic

SCORES = range(11)  # from useless to perfect

_STYLE = """
.rated { margin: 18px 0 0; padding: 14px 0 0; border-top: 1px solid var(--line); }
.rated p { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 16px; }
.rated fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 5px; }
.rated legend { color: var(--soft); font-size: 13px; padding: 0 0 4px; }
.rated label { cursor: pointer; }
.rated input { position: absolute; opacity: 0; }
.rated span { display: block; min-width: 38px; padding: 6px 0; text-align: center; }
.rated span { border: 1px solid #c6ced6; border-radius: 6px; }
.rated input:checked + span { background: var(--blue); border-color: var(--blue); color: #fff; }
.rated input:focus-visible + span { outline: 3px solid var(--ink); outline-offset: 1px; }
.shown { display: flex; flex-wrap: wrap; gap: 10px; margin: 10px 0; }
.shown img { max-width: 100%; max-height: 420px; border-radius: 6px; background: #000; }
#save { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 10px 16px;
  align-items: center; padding: 12px 16px; }
#save input { font: inherit; padding: 5px 9px; border: 1px solid #c6ced6; border-radius: 6px; }
#save button { padding: 6px 16px; background: var(--blue); color: #fff; border: 0; }
"""


def write_ratings_page(
  path: pathlib.Path, name: str, questions: Sequence[Mapping[str, Any]]
) -> None:
  """Writes the page.

  Args:
    path: of the HTML file.
    name: which the ratings are saved under, so that they are read with the right key.
    questions: each with "question", "reference", "answers", distinct texts in the order to be
      shown, and "media", PNG files.
  """
  bar = (
    '<section id="save"><label>Your name <input id="rater" autocomplete="off"></label>'
    '<output id="count"></output><button id="download">Save ratings</button>'
    "<noscript>Rating needs JavaScript.</noscript></section>"
  )
  cards = [_card(number, len(questions), q) for number, q in enumerate(questions)]
  content = page(
    "Rate the answers",
    kind="medflax ratings",
    lead="How useful is each answer, from 0, useless or wrong, to 10, perfect? Answers are those "
    "of several systems or of one, in random order. Ratings stay in this browser until they are "
    "saved as a file, which nobody else gets unless you send it.",
    facts=[("questions", f"{len(questions):,}", "")],
    parts=[f'<div id="ratings" data-name="{text(name)}"></div>', bar, *cards],
    style=_STYLE,
    script=importlib.resources.files("medflax.report").joinpath("ratings.js").read_text("utf-8"),
  )
  write_atomic(path, content)


def _card(number: int, total: int, question: Mapping[str, Any]) -> str:
  pictures = "".join(
    f'<img alt="" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
    for path in question["media"]
  )
  said = f'<p class="note">Question {number + 1} of {total}</p><p><b>{text(question["question"])}'
  said += f"</b></p><p>Reference answer: {text(question['reference'])}</p>"
  answers = (
    f'<div class="rated"><p>{text(answer or "(nothing)")}</p>{_scale(f"{number}.{place}", place)}'
    "</div>"
    for place, answer in enumerate(question["answers"])
  )
  heading = f'<div class="shown">{pictures}</div>' if pictures else ""
  return f"<section>{heading}{said}{''.join(answers)}</section>"


def _scale(name: str, place: int) -> str:
  marks = "".join(
    f'<label><input type="radio" name="{name}" value="{score}"><span>{score}</span></label>'
    for score in SCORES
  )
  return f"<fieldset><legend>Answer {place + 1}</legend>{marks}</fieldset>"
