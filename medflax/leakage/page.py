"""The findings of a comparison as files: JSON, lists of samples to leave out, and a page."""

import collections
import csv
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medflax.data.documents import Sample
from medflax.evals.base import PICTURES
from medflax.leakage.check import REASONS, TEXT, Findings, Limits, Pair
from medflax.leakage.sides import Medium, Side
from medflax.report.page import page, picture, section, table, text
from medflax.utils import UserError, write_atomic

JSON, TRAIN_LIST, EVAL_LIST, PAGE = "leakage.json", "leakage.csv", "leakage_eval.csv", "report.html"
SIDES = {"train": TRAIN_LIST, "eval": EVAL_LIST}
_PICTURE_SIDE = 190  # pixels
_MOST_IDS, _MOST_ROWS = 4, 40  # named in a card, listed in a table

_STYLE = """
.scroll { overflow-x: auto; }
.twos { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr));
  gap: 14px; margin-top: 12px; align-items: start; }
.two { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; min-width: 0; }
.two.long { grid-column: 1 / -1; }
.two .head { display: flex; flex-wrap: wrap; gap: 6px 10px; padding: 8px 14px;
  background: var(--wash); border-bottom: 1px solid var(--line); font-size: 13px; }
.two .head b { font-weight: 600; }
.two .body { display: grid; grid-template-columns: 1fr 1fr; }
.two .body > div { padding: 14px; min-width: 0; }
.two .body > div + div { border-left: 1px solid var(--line); }
.two.long .body { grid-template-columns: 1fr; }
.two.long .body > div + div { border-left: 0; border-top: 1px solid var(--line); }
.two img { display: block; max-width: 100%; height: auto; border-radius: 5px; background: #000; }
.two h4 { margin: 0 0 8px; font-size: 12.5px; color: var(--soft); font-weight: 500; }
.two p { margin: 8px 0 0; font-size: 13px; overflow-wrap: anywhere; }
.two p b { font-weight: 600; }
.tag { background: #dbeaf5; color: #0b4a73; border-radius: 20px; padding: 1px 10px; }
"""


def write_findings(
  findings: Findings,
  folder: pathlib.Path,
  *,
  limits: Limits,
  reasons: Sequence[str],
  whole_groups: bool,
  num_pictured: int,
) -> dict[str, Any]:
  """Writes leakage.json, leakage.csv, leakage_eval.csv and report.html; returns the counts.

  Args:
    findings: of `compare`.
    folder: made if it does not exist.
    limits: that the findings were made with.
    reasons: for which samples are to be left out.
    whole_groups: whether the rest of their groups is left out with them.
    num_pictured: how many pairs are shown on the page.

  Raises:
    UserError: if the folder holds findings already.
  """
  check_free(folder)
  excluded = {side: findings.excluded(side, reasons, whole_groups=whole_groups) for side in SIDES}
  counts = _counts(findings, excluded)
  record = {
    "train": _side_record(findings.train),
    "eval": _side_record(findings.eval),
    "limits": vars(limits),
    "excluded_for": list(reasons),
    "whole_groups": whole_groups,
    "counts": counts,
    "pairs": [_pair_record(findings, pair) for pair in findings.pairs],
    "groups": [
      {"reason": reason, "group": group, **_ids(findings, *samples)}
      for reason, group, *samples in findings.groups
    ],
    "texts": [
      {"question": question, "answer": answer, **_ids(findings, *samples)}
      for (question, answer), *samples in findings.texts
    ],
    "unreadable": [*findings.train.unreadable, *findings.eval.unreadable],
  }
  for side, name in SIDES.items():
    write_atomic(folder / name, _list(getattr(findings, side), excluded[side]))
  write_atomic(folder / PAGE, _page(findings, counts, reasons, num_pictured))
  write_atomic(folder / JSON, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
  return counts


def check_free(folder: pathlib.Path) -> None:
  """Raises UserError if a file of ours is in the folder already."""
  for name in (JSON, TRAIN_LIST, EVAL_LIST, PAGE):
    if (folder / name).exists():
      raise UserError(f"{folder / name} exists; choose another folder or remove it")


def _side_record(side: Side) -> list[dict[str, Any]]:
  return [
    {
      "data": part.collection.name,
      "version": part.collection.version,
      "split": part.split,
      "samples": len(part.collection.splits[part.split]),
      "bad_rows": len(part.collection.bad),
    }
    for part in side.parts
  ]


def _counts(findings: Findings, excluded: Mapping[str, Mapping]) -> dict[str, Any]:
  by_reason: dict[str, dict[str, int]] = {}
  shared = {side: findings.reasons(side) for side in SIDES}
  for reason in REASONS:
    pairs = sum(reason in pair.reasons for pair in findings.pairs)
    samples = {
      f"{side}_samples": sum(reason in scores for scores in shared[side].values()) for side in SIDES
    }
    if any(samples.values()):
      by_reason[reason] = {"pairs_of_media": pairs, **samples}
  return {
    "samples": {side: len(getattr(findings, side).samples) for side in SIDES},
    "media": {side: len(getattr(findings, side).media) for side in SIDES},
    "reasons": by_reason,
    "excluded": {side: len(samples) for side, samples in excluded.items()},
    "unreadable": {side: len(getattr(findings, side).unreadable) for side in SIDES},
  }


def _pair_record(findings: Findings, pair: Pair) -> dict[str, Any]:
  sides = {side: getattr(findings, side).media[getattr(pair, side)].samples for side in SIDES}
  scores = {reason: round(score, 4) for reason, score in pair.reasons.items()}
  return {"reasons": scores, **_ids(findings, *sides.values())}


def _ids(findings: Findings, train: Sequence[int], evaluated: Sequence[int]) -> dict[str, Any]:
  place = lambda side, number: {
    "data": side.samples[number].part.collection.name,
    "split": side.samples[number].part.split,
    "id": side.samples[number].id,
    "group": side.samples[number].group,
  }
  return {
    "train": [place(findings.train, number) for number in train],
    "eval": [place(findings.eval, number) for number in evaluated],
  }


def _list(side: Side, excluded: Mapping[int, Mapping[str, float]]) -> str:
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator="\n")
  writer.writerow(["data", "split", "id", "group", "reasons", "score"])
  for number, scores in excluded.items():
    sample = side.samples[number]
    known = [sample.part.collection.name, sample.part.split, sample.id, sample.group]
    writer.writerow([*known, " ".join(scores), f"{max(scores.values()):.4f}"])
  return buffer.getvalue()


def _page(
  findings: Findings, counts: Mapping[str, Any], reasons: Sequence[str], num_pictured: int
) -> str:
  shown = sorted(_spread(findings.pairs)[:num_pictured], key=lambda pair: pair.rank)
  left = len(findings.pairs) - len(shown)
  of = lambda side: f"of {counts['samples'][side]:,} samples, {counts['media'][side]:,} media"
  facts = [
    ("pairs of media", f"{len(findings.pairs):,}", "taken for the same"),
    ("training samples to leave out", f"{counts['excluded']['train']:,}", of("train")),
    ("evaluated samples affected", f"{counts['excluded']['eval']:,}", of("eval")),
    ("shared groups", f"{len(findings.groups):,}", "patients, cases"),
    ("not readable", f"{sum(counts['unreadable'].values()):,}", "samples, listed below"),
  ]
  names = lambda side: ", ".join(
    f"{part.collection.name}:{part.split}" for part in getattr(findings, side).parts
  )
  rows = [
    (REASONS[name], *(f"{n:,}" for n in row.values()), "yes" if name in reasons else "no")
    for name, row in counts["reasons"].items()
  ]
  more = f" {left:,} more pairs are in {JSON}." if left else ""
  parts = [
    section(
      "What is shared",
      table(
        ("reason", "pairs of media", "training samples", "evaluated samples", "leads to exclusion"),
        rows,
      )
      or "<p>Nothing was found.</p>",
      f"{TRAIN_LIST} lists the training samples to leave out (data.exclude), {EVAL_LIST} the "
      "evaluated ones, for a test set that is cleaned instead.",
    ),
    section(
      "Pairs side by side",
      f'<div class="twos">{"".join(_card(findings, pair) for pair in shown)}</div>'
      if shown
      else "",
      f"The surest of every reason; scores are at most 1.{more}",
    ),
    section("Shared groups", *_groups(findings)),
    section("The same question and answer", *_texts(findings)),
    section("Not readable", *_unreadable(findings)),
  ]
  return page(
    "Leakage",
    kind="medflax check_leakage",
    lead=f"Training data {names('train')} against {names('eval')}",
    facts=facts,
    parts=parts,
    style=_STYLE,
  )


def _spread(pairs: Sequence[Pair]) -> list[Pair]:
  """In turn a pair of every reason, the surest of each first."""
  turns: collections.Counter[int] = collections.Counter()
  keys = []
  for pair in pairs:
    reason, _ = pair.rank
    keys.append((turns[reason], reason))
    turns[reason] += 1
  return [pair for _, pair in sorted(zip(keys, pairs, strict=True), key=lambda item: item[0])]


def _capped(rows: Sequence[Any]) -> tuple[Sequence[Any], str]:
  left = len(rows) - _MOST_ROWS
  return rows[:_MOST_ROWS], f"{left:,} more are in {JSON}." if left > 0 else ""


def _groups(findings: Findings) -> tuple[str, str]:
  rows, note = _capped(findings.groups)
  head = ("group", "why", "training samples", "evaluated samples")
  return table(head, [(g, REASONS[why], len(a), len(b)) for why, g, a, b in rows]), note


def _texts(findings: Findings) -> tuple[str, str]:
  rows, note = _capped(findings.texts)
  head = ("question", "answer", "training samples", "evaluated samples")
  listed = [(*words, len(a), len(b)) for words, a, b in rows]
  common = "Common with templates; a sign of leakage where texts are long. Longest first. "
  return table(head, listed, plain=True), common + note if listed else ""


def _unreadable(findings: Findings) -> tuple[str, str]:
  rows, note = _capped([*findings.train.unreadable, *findings.eval.unreadable])
  head = ("data", "split", "id", "reason")
  return table(head, [[row[name] for name in head] for row in rows], plain=True), note


def _card(findings: Findings, pair: Pair) -> str:
  sides = [_half(getattr(findings, side), getattr(pair, side), side) for side in SIDES]
  long = " long" if any('class="wide"' in half for half in sides) else ""
  tags = "".join(
    f'<span class="tag">{text(REASONS[reason])} <b>{score:.3f}</b></span>'
    for reason, score in pair.reasons.items()
  )
  return (
    f'<article class="two{long}"><div class="head">{tags}</div>'
    f'<div class="body">{"".join(sides)}</div></article>'
  )


def _half(side: Side, number: int, name: str) -> str:
  medium = side.media[number]
  known = side.samples[medium.samples[0]]
  sample = known.load()
  ids = [side.samples[i].id for i in medium.samples[:_MOST_IDS]]
  more = len(medium.samples) - len(ids)
  others = f" and {more} more" if more else ""
  said = {"train": "training", "eval": "evaluated"}[name]
  place = f"{said}: {known.part.collection.name}:{known.part.split}, group {known.group}"
  return (
    f"<div><h4>{text(place)}</h4>{_picture(sample, medium)}"
    f"<p>{text(', '.join(ids) + others)}</p>"
    f"<p>{text(sample.question)} <b>{text(sample.answer)}</b></p></div>"
  )


def _picture(sample: Sample, medium: Medium) -> str:
  media = sample.media[medium.ordinal]
  return picture(PICTURES[media.kind](media.array), _PICTURE_SIDE)


def summary(counts: Mapping[str, Any], folder: pathlib.Path) -> Iterator[str]:
  """The counts as lines for the terminal."""
  samples, excluded = counts["samples"], counts["excluded"]
  for reason, row in counts["reasons"].items():
    pairs = f"{row['pairs_of_media']:,} pairs, " if row["pairs_of_media"] else ""
    yield (
      f"{reason:10} {pairs}{row['train_samples']:,} training and {row['eval_samples']:,} evaluated "
      f"samples: {REASONS[reason]}"
    )
  if not counts["reasons"].keys() - {TEXT}:
    yield "no shared media or groups"
  yield (
    f"to leave out: {excluded['train']:,} of {samples['train']:,} training samples "
    f"({folder / TRAIN_LIST}), or {excluded['eval']:,} of {samples['eval']:,} evaluated ones "
    f"({folder / EVAL_LIST})"
  )
  unreadable = sum(counts["unreadable"].values())
  if unreadable:
    yield f"not readable: {unreadable:,} samples, listed in {folder / PAGE}"
