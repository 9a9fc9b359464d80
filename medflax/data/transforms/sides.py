"""Whether a text speaks of a side or a direction, so that its picture must not be mirrored."""

import re
import unicodedata

# Beginnings of words, in English, German, French, Spanish, Italian and Portuguese. A word that only
# happens to begin so costs one mirrored picture.
_STEMS = (
  *(
    "left",
    "right",
    "bilateral",
    "unilateral",
    "contralateral",
    "ipsilateral",
    "lateral",
    "medial",
  ),
  *("mirror", "situs", "dextro", "levo", "sinist", "clockwise", "counterclockwise", "anticlock"),
  *("anterior", "posterior", "ventral", "dorsal", "superior", "inferior", "cranial", "caudal"),
  *("cephal", "rostral", "upper", "upward", "lower", "downward", "quadrant", "toward", "sided"),
  *("hemithora", "hemidiaphragm", "hemisphere", "orientation", "flipped", "inverted"),
  *("link[es]", "recht[es]", "beidseit", "seitlich", "oben", "unten", "vorn", "hinten", "obere"),
  *("untere", "gauche", "droit", "arriere", "superieur", "inferieur", "izquierd", "derech"),
  *("arriba", "abajo", "delante", "detras", "destr", "sopra", "sotto", "esquerd", "direit"),
  *("acima", "abaixo"),
)
# Whole words, among them what reports abbreviate.
_WHOLE = (
  *("side", "sides", "up", "upright", "down", "top", "bottom", "above", "below", "front", "back"),
  *("behind", "seite", "seiten", "haut", "bas", "avant", "cote", "lado", "lados", "lato", "lati"),
  *("l", "r", "lt", "rt", "lhs", "rhs", "od", "os", "ou", "rul", "rml", "rll", "lul", "lll"),
  *("ruq", "rlq", "luq", "llq", "lv", "rv", "la", "ra", "lvh", "rvh", "lvef", "lad", "lca", "rca"),
  *("lcx", "rao", "lao", "lmca", "rmca", "laca", "raca", "lpca", "rpca", "lbbb", "rbbb"),
  *("lcc", "rcc", "lmlo", "rmlo", "lij", "rij"),
)
_IDEOGRAPHS = "左右上下前后後侧側两兩双雙旁边邊"  # left, right, up, down, front, back, side, both

_WORDS = re.compile(rf"\b(?:(?:{'|'.join(_STEMS)})\w*|(?:{'|'.join(_WHOLE)}))\b|[{_IDEOGRAPHS}]")
_UNSEEN = ("Mn", "Cf")  # accents, soft hyphens, marks of width zero
_READABLE = re.compile(r"[\x00-\x7f\u2000-\u206f\u3000-\u303f\u4e00-\u9fff\uff00-\uffef°μ×±·]*")


def mentions_side(text: str) -> bool:
  """True if `text` names a side or direction, or is in a script that cannot be judged.

  Words are those of radiology in English, Chinese and five more languages; accents and case do
  not matter. It errs on the side of True: a picture less is mirrored.
  """
  plain = unicodedata.normalize("NFKD", text.casefold())
  plain = "".join(letter for letter in plain if unicodedata.category(letter) not in _UNSEEN)
  return bool(_WORDS.search(plain)) or not _READABLE.fullmatch(plain)
