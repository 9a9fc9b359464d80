"""A self-contained HTML page in the style of the report: frame, sections and pictures."""

import base64
import hashlib
import html
import importlib.resources
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def page(
  title: str,
  *,
  kind: str,
  lead: str,
  facts: Iterable[tuple[str, Any, str]],
  parts: Sequence[str],
  style: str = "",
  script: str = "",
) -> str:
  """The whole file.

  Args:
    title: the heading, plain text.
    kind: the small line above it.
    lead: the sentence below it.
    facts: (name, value, detail) of the numbers at the top.
    parts: sections as HTML.
    style: CSS beside the report's.
    script: JavaScript that runs at the end; the page must make sense without.
  """
  numbers = "".join(
    f"<div><dt>{text(name)}</dt><dd>{text(value)}<small>{text(detail)}</small></dd></div>"
    for name, value, detail in facts
  )
  css = importlib.resources.files("medflax.report").joinpath("style.css").read_text()
  content = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">'
    f"<title>{text(title)}</title><style>{css}{style}</style></head><body>"
    f'<header class="masthead"><div><div class="kind">{text(kind)}</div><h1>{text(title)}</h1>'
    f'<p>{text(lead)}</p><dl class="facts">{numbers}</dl></div></header><main>{"".join(parts)}'
    "<footer>Made by medflax for research. Not a medical device.</footer></main>"
    f"{f'<script>{script}</script>' if script else ''}</body></html>\n"
  )
  # JSON can hold halves of surrogate pairs, which no file of UTF-8 can.
  return content.encode("utf-8", "replace").decode("utf-8")


def _policy(script: str) -> str:
  """Lets the browser run `script` and nothing else, and load nothing but pictures inside."""
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  allowed = f"'sha256-{digest}'" if script else "'none'"
  return (
    f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; "
    "base-uri 'none'; form-action 'none'"
  )


def section(heading: str, body: str, note: str = "") -> str:
  """A card with a heading and, in plain text, a note below it; "" without a body."""
  said = f'<p class="note">{text(note)}</p>' if note else ""
  return f"<section><h2>{text(heading)}</h2>{said}{body}</section>" if body else ""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, plain: bool = False) -> str:
  """A table of plain text; "" without rows. `plain`: all columns are text, none numbers."""
  names = "".join(f"<th>{text(name)}</th>" for name in head)
  body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
  if not body:
    return ""
  return (
    f'<div class="scroll"><table{" class=plain" if plain else ""}><thead><tr>{names}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def picture(pixels: UInt8[np.ndarray, "h w *rgb"], side: int) -> str:
  """An `img` element with the picture inside, its height at most `side`; strips stay wide."""
  image = Image.fromarray(pixels)
  scale = min(1.0, side / image.height)
  if scale < 1:
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
  buffer = io.BytesIO()
  image.save(buffer, "PNG", optimize=True)
  data = base64.b64encode(buffer.getvalue()).decode()
  wide = ' class="wide"' if image.width > 2.5 * image.height else ""
  return (
    f'<img alt=""{wide} width="{image.width}" height="{image.height}" '
    f'src="data:image/png;base64,{data}">'
  )


def in_words(value: Any) -> str:
  """A value of JSON as words: names, values and commas, without brackets and quotes."""
  if isinstance(value, Mapping):
    return ", ".join(f"{key} {in_words(item)}" for key, item in value.items())
  if isinstance(value, list | tuple):
    return ", ".join(map(in_words, value))
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def text(value: Any) -> str:
  """Plain text as HTML."""
  return html.escape(str(value))
