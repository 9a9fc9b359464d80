"""What command lines have in common: one-line errors and overrides of a config file's fields."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from medflax.utils import UserError

OVERRIDE = "--config."


class Parser(argparse.ArgumentParser):
  """A parser whose complaints are `UserError`s, so that they take one line."""

  def __init__(self, tool: str, description: str | None):
    """`tool` is the module's name, `description` its docstring."""
    super().__init__(
      prog=f"python -m {tool}",
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )

  def error(self, message: str) -> NoReturn:
    raise UserError(message)

  def parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The flags, and `--config.a.b=text` as ("a.b", "text").

    Raises:
      UserError: for an unknown flag or a missing value.
    """
    given = [argument for argument in argv if argument.startswith(OVERRIDE)]
    flags = self.parse_args([argument for argument in argv if argument not in given])
    return flags, split_overrides(given)


def split_overrides(arguments: Sequence[str]) -> list[tuple[str, str]]:
  """`--config.a.b=text` as ("a.b", "text").

  Raises:
    UserError: for a missing value.
  """
  pairs = [argument.removeprefix(OVERRIDE).partition("=") for argument in arguments]
  for name, equals, _ in pairs:
    if not equals:
      raise UserError(f"{OVERRIDE}{name} needs a value: {OVERRIDE}{name}=VALUE")
  return [(name, text) for name, _, text in pairs]


def add_model(parser: Parser, *, workdir: bool = True) -> None:
  """Flags by which a model is chosen; see `loading.load_model`.

  `workdir`: whether a run and a config file are one positional argument.
  """
  if workdir:
    parser.add_argument("model", help="a workdir, or FILE.py[:ARG=VALUE,…]")
  parser.add_argument("--checkpoint", default="", help="the run whose weights a config file gets")
  add_step(parser)


def add_step(parser: argparse.ArgumentParser) -> None:
  """`--step`, as `weights.find_step` takes it."""
  parser.add_argument(
    "--step",
    type=lambda text: text if text in ("newest", "best") else int(text),
    help="of the checkpoint: N, newest or best; default: the best where the run chooses one",
  )
