r"""Asks a model about images or volumes of one's own.

python -m medflax.tools.predict runs/x --image a.png --question "Is there a fracture?" \
  --choices yes,no --example b.png "Is there a fracture?" no
python -m medflax.tools.predict configs/radfm.py:variant=full \
  --config.init=DIR/weights.safetensors --volume scan.nii.gz \
  --question "What does this scan show?" --decoding type=beam,num_beams=3

Prints the answer, why it stopped, and each choice with its log-probability and its probability
among the choices. `medflax.api` does the same from Python.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from medflax import api
from medflax.data.documents import IMAGE, VOLUME
from medflax.data.manifest import parse_manifest
from medflax.flags import Parser, add_model
from medflax.utils import UserError


def examples(manifest: pathlib.Path) -> list[api.Example]:
  """All rows of a manifest (docs/data.md) as examples, in its order.

  Raises:
    UserError: if it cannot be read, or for its first bad row.
  """
  try:
    content = manifest.read_bytes()
  except OSError as error:
    raise UserError(f"--support {manifest}: {error.strerror}") from None
  rows, bad = parse_manifest(content, manifest.parent)
  if bad:
    raise UserError(f"{manifest} line {bad[0].line}: {bad[0].reason}")
  paths = lambda row, kind: [manifest.parent / path for k, path in row.media if k == kind]
  return [
    api.Example(row.question, row.answer, images=paths(row, IMAGE), volumes=paths(row, VOLUME))
    for row in rows
  ]


def _decoding(text: str) -> dict[str, Any]:
  """`type=beam,num_beams=3` as fields of a decoder."""
  fields: dict[str, Any] = {}
  for part in filter(None, text.split(",")):
    name, given, value = part.partition("=")
    if not given:
      raise UserError(f"--decoding {part}: write NAME=VALUE")
    fields[name.strip()] = _value(value.strip())
  return fields


def _value(text: str) -> Any:
  if text.lower() in ("true", "false"):
    return text.lower() == "true"
  for number in (int, float):
    try:
      return number(text)
    except ValueError:
      continue
  return text


def _told(answer: api.Answer) -> str:
  lines = [f"answer  {answer.text}", f"stop    {answer.stop}"]
  if answer.candidates:
    width = max(len("choice"), *(len(candidate.text) for candidate in answer.candidates))
    lines.append(f"{'choice':{width}}  log-probability  probability")
    lines += [
      f"{c.text:{width}}  {c.logprob:15.3f}  {c.probability:11.3f}" for c in answer.candidates
    ]
  return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = Parser("medflax.tools.predict", __doc__)
  add_model(parser)
  parser.add_argument("--image", action="append", default=[], help="may be repeated")
  parser.add_argument("--volume", action="append", default=[], help="NIfTI, or a DICOM folder")
  parser.add_argument("--question", required=True)
  parser.add_argument("--choices", default="", help="answers to be weighed, commas between")
  parser.add_argument("--constrained", action="store_true", help="the answer is one of the choices")
  parser.add_argument("--support", type=pathlib.Path, help="a manifest of examples to be shown")
  parser.add_argument(
    "--example",
    action="append",
    nargs=3,
    default=[],
    metavar=("IMAGE", "QUESTION", "ANSWER"),
    help="shown before the question, after those of --support; may be repeated",
  )
  parser.add_argument("--decoding", default="", help="such as type=beam,num_beams=3")
  try:
    flags, overrides = parser.parse(argv)
    support = examples(flags.support) if flags.support else []
    support += [api.Example(q, answer, images=[image]) for image, q, answer in flags.example]
    model = api.load(
      flags.model,
      checkpoint=flags.checkpoint,
      step=flags.step,
      overrides=dict(overrides),
    )
    answer = model.ask(
      flags.question,
      images=flags.image,
      volumes=flags.volume,
      support=support,
      choices=[choice.strip() for choice in flags.choices.split(",") if choice.strip()],
      decoding=_decoding(flags.decoding),
      constrained=flags.constrained,
    )
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(_told(answer))
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
