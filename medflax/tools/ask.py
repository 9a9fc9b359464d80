r"""Asks Visual Med-Alpaca: experts put images into words, a language model reads them and answers.

python -m medflax.tools.ask runs/alpaca --experts radiology=run:runs/med_git \
  --experts plot=run:runs/deplot --image a.png --question "Which finding does this image show?"
python -m medflax.tools.ask configs/visual_med_alpaca.py:variant=full \
  --config.init=DIR/weights.safetensors --config.tokenizer.path=DIR/tokenizer \
  --experts radiology=git:GIT_DIR --experts plot=deplot:DEPLOT_DIR --from asked.jsonl --to out.jsonl

An expert is TYPE:WHERE: `git` and `deplot` are folders of `medflax.tools.import_weights`, `run` a
run or a config file with weights, `call` a function, `package.module:name`. The classifier says
which one an image is for; --expert KIND says it instead. What an expert cannot do is told on
stderr, and the answer goes on without it. Lines of --from are
{"question": …, "image": FILE, "expert": KIND}; "images" may be a list, files are relative to the
list, and all but the question may be absent.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

from medflax.experts.classifier import SHIPPED, Classifier
from medflax.experts.registry import Expert
from medflax.experts.registry import expert as open_expert
from medflax.experts.system import LanguageModel, Question, Reply, System
from medflax.flags import Parser, add_model
from medflax.utils import UserError, pick, write_atomic

FIELDS = dict.fromkeys(("question", "image", "images", "expert"))


def experts(specs: Sequence[str]) -> dict[str, Expert]:
  """The experts of `KIND=TYPE:WHERE`.

  Raises:
    UserError: for one that is written otherwise, or a kind with two.
  """
  found: dict[str, Expert] = {}
  for spec in specs:
    kind, given, which = spec.partition("=")
    if not given or kind in found:
      reason = "the kind has an expert already" if given else "write KIND=TYPE:WHERE"
      raise UserError(f"--experts {spec}: {reason}")
    found[kind] = open_expert(which)
  return found


def read_questions(path: pathlib.Path) -> list[Question]:
  """The questions of a JSONL file.

  Raises:
    UserError: if it cannot be read, or for its first bad line.
  """
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"--from {path} cannot be read: {error}") from None
  numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
  return [_question(f"{path} line {number}", line, path.parent) for number, line in numbered]


def _question(where: str, line: str, folder: pathlib.Path) -> Question:
  try:
    row = json.loads(line)
  except ValueError as error:
    raise UserError(f"{where}: is no JSON: {error}") from None
  if not isinstance(row, dict):
    raise UserError(f"{where}: is no JSON object")
  for field in row:
    pick(FIELDS, field, f"field of {where}:")
  text, image, expert = (row.get(name, "") for name in ("question", "image", "expert"))
  images = row.get("images", [])
  listed = isinstance(images, list) and all(
    isinstance(x, str) for x in (text, image, expert, *images)
  )
  if not listed or not text:
    raise UserError(f"{where}: needs a question, and texts for image, images and expert")
  named = [*filter(None, [image]), *images]
  return Question(text, [folder / name for name in named], expert)


def as_row(question: Question, reply: Reply) -> str:
  """A line of the output: the question, the answer and what it rests on."""
  told = dict(question=question.text, answer=reply.text, stop=reply.stop, prompt=reply.prompt)
  parts = [dataclasses.asdict(part) for part in reply.parts]
  return json.dumps(told | {"parts": parts}, ensure_ascii=False) + "\n"


def told_parts(reply: Reply) -> str:
  """What was made of the images, and the prompt, for a reader."""
  lines = []
  for part in reply.parts:
    taken = f"{part.kind}, {part.probability:.3f}" if part.kind else "not read"
    lines.append(f"image   {part.image}: {taken}")
    lines += [f"expert  {line}" for line in part.text.splitlines()]
    if part.shown != part.text:
      lines.append(f"cut to  {len(part.shown)} of {len(part.text)} characters")
  return "\n".join([*lines, *(f"prompt  {line}" for line in reply.prompt.splitlines())])


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = Parser("medflax.tools.ask", __doc__)
  add_model(parser)
  parser.add_argument("--question")
  parser.add_argument("--image", action="append", default=[], help="may be repeated")
  parser.add_argument("--experts", action="append", default=[], metavar="KIND=TYPE:WHERE")
  parser.add_argument("--expert", default="", help="the kind of the images; default: as classified")
  parser.add_argument("--classifier", default=SHIPPED, help="of tools.train_classifier")
  parser.add_argument("--from", dest="source", type=pathlib.Path, help="a JSONL of questions")
  parser.add_argument("--to", type=pathlib.Path, help="the JSONL of the answers to --from")
  parser.add_argument(
    "--max-new-tokens", type=int, help="of an answer; default: an eighth of a row"
  )
  parser.add_argument("--show-parts", action="store_true", help="tell what the experts said")
  try:
    flags, overrides = parser.parse(argv)
    questions = _asked(flags)
    system = System(
      LanguageModel(
        flags.model,
        checkpoint=flags.checkpoint,
        step=flags.step,
        overrides=overrides,
        max_new_tokens=flags.max_new_tokens,
      ),
      experts(flags.experts),
      Classifier(flags.classifier),
    )
    for question in questions:
      if question.expert:
        pick(system.experts, question.expert, "expert")
    replies = system.ask_all(questions)
    if flags.to:
      rows = map(as_row, questions, replies)
      write_atomic(flags.to, "".join(rows))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  for part in (part for reply in replies for part in reply.parts):
    if problem := part.problem or ("" if part.kind in system.experts else _missing(part.kind)):
      print(f"{part.image}: {problem}", file=sys.stderr)
  if flags.to:
    print(f"{flags.to}: {len(replies)} answers")
    return 0
  for reply in replies:
    if flags.show_parts:
      print(told_parts(reply))
    print(f"answer  {reply.text}")
  return 0


def _missing(kind: str) -> str:
  return (
    f"is taken for {kind}, and there is no expert for it; --experts {kind}=TYPE:WHERE gives one"
  )


def _asked(flags) -> list[Question]:
  """The questions of the flags, or of their file."""
  if bool(flags.source) == bool(flags.question):
    raise UserError("give either --question or --from FILE")
  if flags.to and flags.to.exists():
    raise UserError(f"--to {flags.to} exists; remove it or choose another file")
  if not flags.source:
    return [Question(flags.question, flags.image, flags.expert)]
  if flags.image:
    raise UserError("--image is of --question; lines of --from name their own")
  asked = read_questions(flags.source)
  return [dataclasses.replace(q, expert=q.expert or flags.expert) for q in asked]


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
