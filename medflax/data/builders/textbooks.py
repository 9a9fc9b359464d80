"""Your own textbooks as interleaved documents, by the recipe of Med-Flamingo's MTB (Moor, 2023).

A folder a book, of HTML pages with their images. Tags are removed, images become their places in
the text, paragraphs that a book repeats are left out, and the rest is cut into documents of 1 to
10 images. Books, not pages, are split 95 to 5.
"""

import html.parser
import pathlib
import posixpath
import urllib.parse
from collections.abc import Iterator

from medflax.data.builders.base import Builder, Record
from medflax.data.builders.interleave import Piece, records
from medflax.data.builders.source import Row, SourceFolder
from medflax.data.documents import IMAGE
from medflax.data.manifest import hash_fraction
from medflax.utils import UserError

MAX_IMAGES, MAX_WORDS = 10, 1500
VAL_SHARE = 0.05
PAGE = "page"
_SILENT = ("script", "style", "head", "nav", "template")
_BLOCKS = (
  *("p", "div", "li", "td", "th", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "figure", "figcaption"),
  *("section", "article", "table", "ul", "ol", "dl", "dt", "dd", "blockquote", "br", "hr", "body"),
)
_PICTURES = (".png", ".jpg", ".jpeg")


class _Page(html.parser.HTMLParser):
  """Collects the paragraphs of a page, and the images that stand before each."""

  def __init__(self, folder: str):
    super().__init__()
    self._folder, self._silent = folder, 0
    self._text: list[str] = []
    self._images: list[str] = []
    self.pieces: list[Piece] = []

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    if tag in _SILENT:
      self._silent += 1
    if tag in _BLOCKS:
      self.finish()
    path = urllib.parse.unquote(dict(attrs).get("src") or "") if tag == "img" else ""
    if path.lower().endswith(_PICTURES):
      self.finish()
      self._images.append(posixpath.normpath(posixpath.join(self._folder, path)))

  def handle_endtag(self, tag: str) -> None:
    if tag in _SILENT:
      self._silent = max(0, self._silent - 1)
    if tag in _BLOCKS:
      self.finish()

  def handle_data(self, data: str) -> None:
    if not self._silent:
      self._text.append(data)

  def finish(self) -> None:
    """Closes the paragraph, if it has begun; images wait for the next one with text."""
    text = " ".join("".join(self._text).split())
    self._text = []
    if text:
      self.pieces.append(Piece(text, tuple(self._images)))
      self._images = []

  def close(self) -> None:
    super().close()
    self.finish()
    if self._images:
      self.pieces.append(Piece("", tuple(self._images)))


def _rows(source: SourceFolder) -> Iterator[Row]:
  seen: dict[str, set[str]] = {}
  pages = sorted({*source.names("*/**/*.html"), *source.names("*/**/*.htm")})
  if not pages:
    source.absent.append("*/**/*.html")
  for number, name in enumerate(pages, start=1):
    book = pathlib.PurePosixPath(name).parts[0]
    split = "val" if hash_fraction(book) < VAL_SHARE else "train"
    try:
      text = source.text(name)
    except UserError as error:
      yield Row(name, number, {}, split, str(error))
      continue
    page = _Page(posixpath.dirname(name))
    page.feed(text)
    page.close()
    known = seen.setdefault(book, set())
    pieces = [piece for piece in page.pieces if piece.images or piece.text not in known]
    known |= {piece.text for piece in page.pieces}
    yield Row(name, number, {"book": book, "pieces": pieces}, split)


def _records(row: Row) -> Iterator[Record]:
  book, page = row.text("book"), row.table.rsplit(".", 1)[0]
  limits = dict(max_images=MAX_IMAGES, max_words=MAX_WORDS)
  pieces = row.fields["pieces"]
  yield from records(pieces, name=page, split=row.split, task=PAGE, group=book, **limits)


TEXTBOOKS = Builder(
  name="textbooks",
  version="1",
  url="https://arxiv.org/abs/2307.15189",
  licence="of your books",
  layout="a folder for each book with its HTML pages and images",
  group="book",
  tasks=(PAGE,),
  media=(IMAGE,),
  rows=_rows,
  records=_records,
  interleaved=True,
)
