"""Line and forest charts as inline SVG: axes, ticks, whiskers, a reference line, a legend.

Small on purpose: a report then needs no plotting library, no script and no second file.
"""

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

# Okabe & Ito's palette, which the common forms of colour blindness can tell apart.
BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = (
  "#0072b2", "#d55e00", "#009e73", "#9b4f96", "#56b4e9", "#6b7280",
)  # fmt: skip
# For an ordered quantity: light to dark (ColorBrewer's YlGnBu, without its palest).
SHADES = ("#9fd8b8", "#5fc1c0", "#2f9bc4", "#2467ac", "#1d2f83", "#0d1540")

Number = int | float
Scale = Callable[[Number], Number]  # data to pixels

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 34, 46  # margins in pixels
# Of a forest chart: the width of its axis, a row's height, a letter's width, in pixels; the most
# letters of a label.
_FOREST, _ROW, _LETTER, _LETTERS = 360, 25, 6.6, 40


@dataclasses.dataclass(frozen=True)
class Series:
  """One line of a chart.

  `low` and `high`, if given, are drawn as whiskers at the points, `spread` as a broad bar of half
  that height to each side. `marker` is "circle", "square", "triangle", "diamond" or "" for none;
  shapes carry what colour cannot in a grey print.
  """

  label: str
  x: Sequence[Number]
  y: Sequence[Number]
  color: str
  low: Sequence[Number] = ()
  high: Sequence[Number] = ()
  spread: Sequence[Number] = ()
  marker: str = ""
  dash: str = ""
  width: Number = 2.0
  opacity: Number = 1.0


@dataclasses.dataclass(frozen=True)
class Bar:
  """One row of a forest chart: a value, its interval, and what is written beside it."""

  label: str
  value: Number
  low: Number
  high: Number
  color: str
  told: str = ""
  marker: str = "circle"


def ticks(low: Number, high: Number, count: int = 5) -> list[Number]:
  """About `count` round numbers within [low, high]: multiples of 1, 2, 2.5 or 5 times 10^k."""
  if not high > low:
    return [low]
  rough = (high - low) / count
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [round(index * step, 12) for index in range(first, last + 1)]


def line_chart(
  series: Sequence[Series],
  *,
  title: str,
  x_label: str,
  y_label: str,
  y_range: tuple[Number, Number] | None = None,
  x_ticks: Sequence[Number] | None = None,
  width: int = 520,
  height: int = 300,
) -> str:
  """An SVG element of `series` over common axes.

  Args:
    series: drawn in order, the last on top and first in the legend; each with at least one point.
    title: for screen readers; shown as the tooltip.
    x_label: the name, and unit, of the horizontal axis.
    y_label: the same of the vertical axis.
    y_range: the vertical axis; None: round numbers around all points and whiskers.
    x_ticks: where the horizontal axis is marked, evenly spaced whatever their values
      (shots 0, 1, 2, 4, 8); None: a linear axis from 0 (or below) with round numbers.
    width: pixels of the view box; the element scales with its container.
    height: the same.
  """
  xs = [x for one in series for x in one.x]
  ys = [y for one in series for y in (*one.y, *one.low, *one.high)]
  ys += [y + d for one in series for y, s in zip(one.y, one.spread, strict=False) for d in (-s, s)]
  y_low, y_high = y_range or _padded(min(ys), max(ys))
  legend, top = _legend(series, width)
  slots = {x: slot for slot, x in enumerate(x_ticks or ())}
  x_low, x_high = (-0.3, len(slots) - 0.7) if slots else (min(0, *xs), max(xs))

  def to_x(x: Number) -> Number:
    share = ((slots[x] if slots else x) - x_low) / ((x_high - x_low) or 1)
    return round(_LEFT + share * (width - _LEFT - _RIGHT), 1)

  def to_y(y: Number) -> Number:
    share = (min(max(y, y_low), y_high) - y_low) / ((y_high - y_low) or 1)
    return round(height - _BOTTOM - share * (height - top - _BOTTOM), 1)

  bottom, right = height - _BOTTOM, width - _RIGHT
  parts = [f"<title>{html.escape(title)}</title>"]
  for tick in ticks(y_low, y_high):
    parts.append(f'<path class="grid" d="M{_LEFT} {to_y(tick)}H{right}"/>')
    parts.append(f'<text x="{_LEFT - 8}" y="{to_y(tick) + 4}" class="end">{_number(tick)}</text>')
  for tick in x_ticks or ticks(x_low, x_high):
    parts.append(f'<text x="{to_x(tick)}" y="{bottom + 18}" class="mid">{_number(tick)}</text>')
  parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
  middle = (top + bottom) / 2
  parts.append(
    f'<text x="{(_LEFT + right) / 2}" y="{height - 8}" class="mid name">'
    f"{html.escape(x_label)}</text>"
    f'<text transform="translate(14 {middle}) rotate(-90)" class="mid name">'
    f"{html.escape(y_label)}</text>"
  )
  for one in series:
    points = [(to_x(x), to_y(y)) for x, y in zip(one.x, one.y, strict=True)]
    parts.append(_whiskers(one, to_x, to_y))
    path = "L".join(f"{x} {y}" for x, y in points)
    parts.append(f'<path d="M{path}" {_stroke(one)} fill="none"/>')
    parts += [_marker(one.marker, x, y, one.color) for x, y in points if one.marker]
  parts.append(legend)
  body = "".join(parts)
  return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img">{body}</svg>'


def forest_chart(
  bars: Sequence[Bar], *, title: str, x_label: str, reference: Number | None = None
) -> str:
  """An SVG element with a row a bar: its label, its interval over a common axis, its text.

  Args:
    bars: from the top; at least one.
    title: for screen readers; shown as the tooltip.
    x_label: the name, and unit, of the axis.
    reference: a vertical line, such as no difference; it is within the axis.
  """
  ends = [end for bar in bars for end in (bar.low, bar.high, bar.value)]
  ends += [] if reference is None else [reference]
  margin = 0.05 * ((max(ends) - min(ends)) or 1)
  x_low, x_high = min(ends) - margin, max(ends) + margin
  labels = [_short(bar.label) for bar in bars]
  left = 12 + _LETTER * max(map(len, labels))
  right, bottom = left + _FOREST, 8 + len(bars) * _ROW
  width = right + 12 + _LETTER * max(len(bar.told) for bar in bars)

  def to_x(x: Number) -> Number:
    return round(left + (x - x_low) / (x_high - x_low) * (right - left), 1)

  parts = [f"<title>{html.escape(title)}</title>"]
  for tick in ticks(x_low, x_high):
    parts.append(f'<path class="grid" d="M{to_x(tick)} 4V{bottom}"/>')
    parts.append(f'<text x="{to_x(tick)}" y="{bottom + 17}" class="mid">{_number(tick)}</text>')
  if reference is not None:
    parts.append(f'<path class="axis" d="M{to_x(reference)} 4V{bottom}"/>')
  parts.append(
    f'<text x="{(left + right) / 2}" y="{bottom + 36}" class="mid name">'
    f"{html.escape(x_label)}</text>"
  )
  for row, (bar, label) in enumerate(zip(bars, labels, strict=True)):
    y = 8 + (row + 0.5) * _ROW
    whisker = f"M{to_x(bar.low)} {y}H{to_x(bar.high)}"
    whisker += "".join(f"M{to_x(end)} {y - 4}v8" for end in (bar.low, bar.high))
    parts.append(
      f'<text x="{left - 12}" y="{y + 4}" class="end name">{html.escape(label)}'
      f"<title>{html.escape(bar.label)}</title></text>"
      f'<path d="{whisker}" stroke="{bar.color}" stroke-width="1.6"/>'
      f"{_marker(bar.marker, to_x(bar.value), y, bar.color)}"
      f'<text x="{width}" y="{y + 4}" class="end">{html.escape(bar.told)}</text>'
    )
  return (
    f'<svg class="chart forest" viewBox="0 0 {width:.0f} {bottom + 42}" width="{width:.0f}" '
    f'role="img">{"".join(parts)}</svg>'
  )


def _short(label: str) -> str:
  return label if len(label) <= _LETTERS else label[: _LETTERS - 1] + "…"


def _padded(low: Number, high: Number) -> tuple[Number, Number]:
  margin = 0.06 * ((high - low) or abs(high) or 1)
  return (0.0 if 0 <= low < margin * 4 else low - margin), high + margin


def _number(value: Number) -> str:
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _stroke(one: Series) -> str:
  dash = f' stroke-dasharray="{one.dash}"' if one.dash else ""
  return (
    f'stroke="{one.color}" stroke-width="{one.width}" stroke-opacity="{one.opacity}"'
    f' stroke-linejoin="round"{dash}'
  )


def _whiskers(one: Series, to_x: Scale, to_y: Scale) -> str:
  marks = []
  for x, low, high in zip(one.x, one.low, one.high, strict=False):
    x, low, high = to_x(x), to_y(low), to_y(high)
    marks.append(f"M{x} {low}V{high}M{x - 4} {low}h8M{x - 4} {high}h8")
  broad = [
    f"M{to_x(x)} {to_y(y - spread)}V{to_y(y + spread)}"
    for x, y, spread in zip(one.x, one.y, one.spread, strict=False)
  ]
  thick = f'stroke="{one.color}" stroke-width="9" stroke-opacity="0.25"'
  return (f'<path d="{"".join(broad)}" {thick}/>' if broad else "") + (
    f'<path d="{"".join(marks)}" stroke="{one.color}" stroke-width="1.4"/>' if marks else ""
  )


def _marker(shape: str, x: Number, y: Number, color: str) -> str:
  shapes = {
    "circle": f'<circle cx="{x}" cy="{y}" r="4.2"',
    "square": f'<rect x="{x - 3.8}" y="{y - 3.8}" width="7.6" height="7.6"',
    "triangle": f'<path d="M{x} {y - 4.8}l4.8 8.4h-9.6z"',
    "diamond": f'<path d="M{x} {y - 5.2}l5.2 5.2l-5.2 5.2l-5.2 -5.2z"',
  }
  return f'{shapes[shape]} fill="{color}" stroke="#fff" stroke-width="1.2"/>'


def _legend(series: Sequence[Series], width: int) -> tuple[str, int]:
  """The names from the last drawn to the first, in as many lines as they need; where they end."""
  parts, x, y = [], 12, 14
  for one in reversed(series):
    if not one.label:
      continue
    room = 41 + 6.0 * len(one.label)
    if x > 12 and x + room > width:
      x, y = 12, y + 18
    solid = dataclasses.replace(one, opacity=1.0)
    parts.append(f'<path d="M{x} {y}h18" {_stroke(solid)}/>')
    if one.marker:
      parts.append(_marker(one.marker, x + 9, y, one.color))
    parts.append(f'<text x="{x + 23}" y="{y + 4}">{html.escape(one.label)}</text>')
    x += room
  return "".join(parts), y + _TOP - 14
