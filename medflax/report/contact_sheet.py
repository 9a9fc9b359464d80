"""The contact sheet of a data set: counts as charts, and its samples as cards to filter."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medflax.report import bars
from medflax.report.page import page, section, table, text

_STYLE = """
.scroll { overflow-x: auto; }
.charts { columns: 300px; column-gap: 38px; }
.charts > div { break-inside: avoid; padding: 14px 0 6px; }
.charts h3 { margin-top: 0; }
.warn { border-left: 5px solid #d98324; }
.warn ul { margin: 6px 0 0; padding-left: 20px; }
.filter { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; margin: 12px 0 14px; }
.filter select, .filter input { font: inherit; font-size: 14px; padding: 5px 10px;
  border: 1px solid #c6ced6; border-radius: 6px; background: #fff; color: var(--ink); }
.filter input { flex: 1 1 220px; min-width: 0; }
.filter output { color: var(--soft); font-size: 13.5px; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(220px, 100%), 1fr));
  gap: 14px; grid-auto-flow: dense; }
.card { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; min-width: 0;
  display: flex; flex-direction: column; }
.card[hidden] { display: none; }
.card.wide { grid-column: 1 / -1; }
.card .shots { display: flex; gap: 2px; background: #0a0d10; justify-content: center;
  align-items: center; min-height: 90px; flex-wrap: wrap; }
.card img { display: block; max-width: 100%; height: auto; }
.card.wide img { width: auto; min-height: 110px; object-fit: contain; }
.card .shots.many img { max-width: calc(50% - 2px); }
.card .said { padding: 9px 12px 11px; font-size: 13px; line-height: 1.45; }
.card .said p { margin: 0 0 5px; overflow-wrap: anywhere; }
.card .said b { font-weight: 650; color: var(--right); }
.card .where { color: var(--faint); font-size: 12px; overflow-wrap: anywhere; }
.card .problem { color: #ffd9b0; padding: 10px 14px; font-size: 12.5px; }
"""

# Shows the cards that match all three: the page works without a server, and without this.
_SCRIPT = """
const cards = [...document.querySelectorAll('.card')];
const [split, task, words] = ['split', 'task', 'words'].map(id => document.getElementById(id));
function filter() {
  const wanted = words.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let count = 0;
  for (const card of cards) {
    const told = card.textContent.toLowerCase();
    card.hidden = (split.value && card.dataset.split !== split.value) ||
      (task.value && card.dataset.task !== task.value) || !wanted.every(w => told.includes(w));
    count += !card.hidden;
  }
  document.getElementById('count').textContent = count + ' of ' + cards.length + ' shown';
}
for (const input of [split, task, words]) input.addEventListener('input', filter);
filter();
"""
_LONGEST = 420  # characters of a question or an answer on a card


@dataclasses.dataclass(frozen=True)
class Card:
  """A sample as it is shown; `pictures` are HTML, all else plain text.

  `wide`: whether it takes a whole row, as strips of slices do.
  """

  id: str
  split: str
  task: str
  group: str
  question: str
  answer: str
  choices: Sequence[str]
  meta: Mapping[str, str]
  pictures: Sequence[str]
  wide: bool = False
  problem: str = ""


def contact_sheet(
  title: str,
  *,
  lead: str,
  facts: Iterable[tuple[str, Any, str]],
  warnings: Sequence[str],
  tables: Mapping[str, tuple[Sequence[str], Iterable[Sequence[Any]]]],
  counts: Mapping[str, Mapping[str, int]],
  lengths: Mapping[str, tuple[Sequence[int], str]],
  cards: Sequence[Card],
  note: str,
) -> str:
  """The page.

  Args:
    title: of the data set.
    lead: a sentence about it.
    facts: (name, value, detail) of the numbers at the top.
    warnings: what needs attention.
    tables: by heading, the names of the columns and the rows.
    counts: by heading, what is drawn as bars.
    lengths: by heading, what is drawn as a histogram, with its unit.
    cards: the samples.
    note: how they were chosen.
  """
  items = "".join(f"<li>{text(warning)}</li>" for warning in warnings)
  charts = {
    **{name: table(head, rows) for name, (head, rows) in tables.items()},
    **{name: bars.histogram(*values) for name, values in lengths.items()},
    **{name: bars.bars(values) for name, values in counts.items() if values},
  }
  drawn = "".join(f"<div><h3>{text(name)}</h3>{chart}</div>" for name, chart in charts.items())
  parts = [
    f'<section class="warn"><h2>Needs attention</h2><ul>{items}</ul></section>' if items else "",
    section("What it holds", f'<div class="charts">{drawn}</div>'),
    section(
      "Samples", _filter(cards) + f'<div class="sheet">{"".join(map(_card, cards))}</div>', note
    ),
  ]
  return page(
    title,
    kind="medflax explore",
    lead=lead,
    facts=facts,
    parts=parts,
    style=_STYLE + bars.STYLE,
    script=_SCRIPT,
  )


def _filter(cards: Sequence[Card]) -> str:
  def select(name: str, values: Iterable[str]) -> str:
    options = "".join(f"<option>{text(value)}</option>" for value in dict.fromkeys(values))
    return (
      f'<select id="{name}" aria-label="{name}"><option value="">every {name}</option>'
      f"{options}</select>"
    )

  return (
    '<div class="filter">'
    + select("split", (card.split for card in cards))
    + select("task", sorted(card.task for card in cards))
    + '<input id="words" type="search" placeholder="words in question, answer, id …" '
    'aria-label="words"><output id="count"></output></div>'
  )


def _card(card: Card) -> str:
  shown = (
    "".join(card.pictures) or f'<span class="problem">{text(card.problem or "no media")}</span>'
  )
  many = " many" if len(card.pictures) > 1 and not card.wide else ""
  choices = f'<p class="where">of {text(", ".join(card.choices))}</p>' if card.choices else ""
  told = {"group": card.group, **card.meta}
  listed = " · ".join(f"{key} {value}" for key, value in told.items() if value)
  return (
    f'<article class="card{" wide" if card.wide else ""}" data-split="{text(card.split)}" '
    f'data-task="{text(card.task)}"><div class="shots{many}">{shown}</div><div class="said">'
    f"<p>{text(_short(card.question))} <b>{text(_short(card.answer))}</b></p>{choices}"
    f'<p class="where">{text(card.split)} · {text(card.task)} · {text(card.id)}</p>'
    f'<p class="where">{text(_short(listed))}</p></div></article>'
  )


def _short(words: str) -> str:
  return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"
