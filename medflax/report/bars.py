"""Counts as bars and histograms, in plain HTML and SVG."""

from collections.abc import Mapping, Sequence

import numpy as np

from medflax.report import plots
from medflax.report.page import text

STYLE = """
.bars { display: grid; grid-template-columns: minmax(60px, max-content) 1fr auto; gap: 5px 10px;
  align-items: center; font-size: 13px; }
.bars span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; max-width: 150px; }
.bars i { background: #5b9dc9; border-radius: 3px; height: 13px; min-width: 2px; }
.bars b { font-weight: 500; color: var(--soft); font-size: 12.5px; text-align: right; }
.bars .rest { color: var(--faint); }
.bars .rest + i { visibility: hidden; }
.histogram { width: min(100%, 380px); height: auto; display: block; }
.histogram text { font-size: 11px; fill: var(--soft); }
.histogram rect { fill: #5b9dc9; }
.histogram .axis { stroke: var(--faint); }
"""
_BINS = 24
_WIDTH, _HEIGHT, _FOOT, _WIDEST = 320, 118, 18, 40  # pixels


def bars(counts: Mapping[str, int], most: int = 10) -> str:
  """The commonest names with their counts and shares; the others in one last bar."""
  total = sum(counts.values())
  ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  # A last bar for a single name would say less than the name.
  shown = ranked if len(ranked) <= most + 1 else ranked[:most]
  rows = [(name or "(empty)", count, "") for name, count in shown]
  if len(ranked) > len(shown):
    rest = total - sum(count for _, count in shown)
    rows.append((f"{len(ranked) - len(shown):,} others", rest, ' class="rest"'))
  widest = ranked[0][1]
  cells = "".join(
    f'<span{kind} title="{text(name)}">{text(name)}</span>'
    f'<i style="width:{min(1.0, count / widest):.1%}"></i><b>{count:,} · {count / total:.1%}</b>'
    for name, count, kind in rows
  )
  return f'<div class="bars">{cells}</div>'


def histogram(values: Sequence[int], unit: str) -> str:
  """Columns of how many values there are; the last one also holds the highest hundredth."""
  array = np.array(values)
  low, high = int(array.min()), int(np.ceil(np.percentile(array, 99)))
  step = max(1, -(-(high - low + 1) // _BINS))
  bins = (np.minimum(array, high) - low) // step
  counts = np.bincount(bins, minlength=(high - low) // step + 1)
  column = min(_WIDTH / len(counts), _WIDEST)
  foot = _HEIGHT - _FOOT
  heights = counts / counts.max() * (foot - 6)
  columns = "".join(
    f'<rect x="{i * column + 0.5:.1f}" y="{foot - h:.1f}" width="{max(column - 1, 0.5):.1f}" '
    f'height="{h:.1f}"><title>{_range(low + i * step, step)} {text(unit)}: {n:,}</title></rect>'
    for i, (h, n) in enumerate(zip(heights, counts, strict=True))
  )
  marks = "".join(
    f'<text x="{(tick - low + 0.5) / step * column:.1f}" y="{_HEIGHT - 4}" '
    f'text-anchor="middle">{tick:g}</text>'
    for tick in plots.ticks(low, high, 5)
    if float(tick).is_integer() and (tick - low + 0.5) / step * column < _WIDTH - 8
  )
  median = f"median {np.median(array):g}, longest {array.max():,} {unit}"
  return (
    f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{columns}'
    f'<path class="axis" d="M0 {foot}H{_WIDTH}"/>{marks}</svg>'
    f'<p class="note">{text(median)}</p>'
  )


def _range(start: int, step: int) -> str:
  return str(start) if step == 1 else f"{start} to {start + step - 1}"
