"""What README.md and docs/ tell people to type: it parses, names what exists, and is run somewhere.

Commands are not run here: each is read by its own parser, and its config is checked. `RUN` says
where every command is run, or why it is not.
"""

import argparse
import ast
import importlib
import pathlib
import re
import runpy
import shlex
import sys
from typing import NamedTuple

import pytest

from medflax import config as config_lib
from medflax.data.builders import BUILDERS
from medflax.flags import OVERRIDE, split_overrides
from medflax.pretrained.sources import SOURCES
from medflax.tasks import TASKS, Task
from medflax.utils import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL, BARE, PYTHON = ("sh", "bash"), "", "python"
ELLIPSIS = "…"  # stands for what the reader fills in

# A command's module, script or program → the tests that run it, or why none does.
RUN = {
  "medflax.main": "tests/test_main.py, .ci/run",
  "medflax.data.phantoms": "tests/data/test_phantoms.py",
  "medflax.tools.aot": "tests/tools/test_aot.py",
  "medflax.tools.ask": "tests/tools/test_ask.py",
  "medflax.tools.check_leakage": "tests/tools/test_check_leakage.py",
  "medflax.tools.compare": "tests/tools/test_compare.py",
  "medflax.tools.evaluate": "tests/tools/test_evaluate.py",
  "medflax.tools.explore": "tests/tools/test_explore.py",
  "medflax.tools.export_weights": "tests/tools/test_export_weights.py",
  "medflax.tools.import_weights": "tests/tools/test_import_weights.py",
  "medflax.tools.lengths": "tests/tools/test_lengths.py",
  "medflax.tools.predict": "tests/tools/test_predict.py",
  "medflax.tools.prepare_data": "tests/tools/test_prepare_data.py",
  "medflax.tools.pretrain_tower": "tests/tools/test_pretrain_tower.py",
  "medflax.tools.ratings": "tests/tools/test_ratings.py",
  "medflax.tools.train_classifier": "tests/experts/test_classifier.py",
  "experiments/collect.py": "tests/experiments/test_collect.py, tests/experiments/test_tiny.py",
  "experiments/launch.py": "tests/experiments/test_launch.py, tests/experiments/test_tiny.py",
  "examples/hippocampus_manifest.py": "tests/examples/test_examples.py",
  "examples/medpix_manifest.py": "tests/examples/test_examples.py",
  "colab/run.py": "tests/colab/test_notebooks.py",
  "tests/parity.py": "tests/test_parity.py",
  "pip": ".ci/run; extras are checked here",
  "pytest": ".ci/run",
  "pre-commit": "changes the developer's checkout",
  "ruff": ".ci/run",
  "pyright": ".ci/run",
  "mkdocs": ".ci/run",
  "bash": ".ci/run is what CI runs",
  "chromium": "draws pictures of pages, by hand",
}
BENCHMARKS = "benchmarks/"  # minutes each, or another library to compare with: by hand

# The first line of a block of Python that is not executed → why.
NOT_EXECUTED = {
  "import medflax.api as medflax": "asks a run of one's own; tests/test_api.py does",
  "from medflax.experts.classifier import Classifier": "asks one's own runs; tests/experts/ does",
  "from medflax.data.readers import read_scan": "reads a series of one's own; tests/data/ does",
}
NAMES = {"config": None, "Task": Task}  # what other blocks take for granted


class Block(NamedTuple):
  page: str
  language: str
  text: str


class Command(NamedTuple):
  page: str
  words: tuple[str, ...]

  @property
  def program(self):
    """The module of `python -m`, the script of `python`, or the program."""
    first, *rest = self.words
    return first if first != "python" else rest[1] if rest[0] == "-m" else rest[0]

  @property
  def arguments(self):
    programs = {"python": 2 + ("-m" in self.words[:2])}
    return self.words[programs.get(self.words[0], 1) :]

  def __str__(self):
    return f"{self.page}: {shlex.join(self.words)}"


def blocks():
  for page in PAGES:
    fence = r"^( *)```(\w*)\n(.*?)^ *```$"
    for _, language, text in re.findall(fence, page.read_text(), re.DOTALL | re.MULTILINE):
      yield Block(str(page.relative_to(ROOT)), language, text)


def lines(block):
  """Whole command lines of a block; of one without a language those that are commands."""
  joined = re.sub(r"\\\n\s*", "", block.text)
  for line in filter(None, (line.strip() for line in joined.splitlines())):
    if block.language in SHELL or (block.language == BARE and line.startswith("python ")):
      yield line


def commands():
  found = [(block.page, line) for block in blocks() for line in lines(block)]
  for page in PAGES:  # in running text, where a command is told in passing
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    spans = re.findall(r"`(python [^`]+)`", text)
    found += [(str(page.relative_to(ROOT)), " ".join(span.split())) for span in spans]
  for page, line in found:
    for part in line.split("&&"):
      words = shlex.split(part, comments=True)
      while words and re.match(r"[A-Z_]+=", words[0]):  # the environment
        words.pop(0)
      if words:
        yield Command(page, tuple(words))


COMMANDS = [*commands()]
OF_PYTHON = [c for c in COMMANDS if c.words[0] == "python"]


class ParsedError(BaseException):
  """Ends a program as soon as it has read its flags."""


def source(command):
  """The file that a command of Python runs."""
  path = ROOT / command.program
  if not command.program.endswith(".py"):
    spec = importlib.util.find_spec(command.program)
    assert spec, f"there is no module {command.program}"
    path = pathlib.Path(spec.origin)
    path = path.with_name("__main__.py") if path.name == "__init__.py" else path
  assert path.is_file(), f"there is no {path}"
  return path


def parsed(command, monkeypatch):
  """The flags that the command's own parser reads, once it knows all of them."""
  path, real = source(command), argparse.ArgumentParser.parse_known_args

  def stop(parser, *args, **kwargs):
    flags, rest = real(parser, *args, **kwargs)
    if all(word.startswith(OVERRIDE) for word in rest):
      raise ParsedError(flags)
    return flags, rest

  monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
  monkeypatch.setattr(sys, "argv", [str(path), *command.arguments])
  monkeypatch.setattr(sys, "path", [*sys.path])
  with pytest.raises(ParsedError) as caught:
    runpy.run_path(str(path), run_name="__main__")
  return caught.value.args[0]


def test_every_command_is_run_somewhere():
  programs = {command.program for command in COMMANDS}
  assert {p for p in programs - RUN.keys() if not p.startswith(BENCHMARKS)} == set()
  assert RUN.keys() - programs == set()
  for told in RUN.values():
    for path in re.findall(r"(?:tests/|\.ci/)[\w./]+", told):
      assert (ROOT / path).exists(), path


@pytest.mark.parametrize("command", dict.fromkeys(OF_PYTHON), ids=str)
def test_flags_are_known_and_configs_valid(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  if ELLIPSIS in command.words:  # part of a command
    assert source(command)
    return
  if "--launcher=slurm" in command.arguments:
    pytest.importorskip("submitit", reason="an extra")
  flags = parsed(command, monkeypatch)
  pairs = split_overrides([word for word in command.arguments if word.startswith(OVERRIDE)])
  spec = getattr(flags, "config", None) or getattr(flags, "model", "") or ""
  if ".py" in str(spec):
    config = config_lib.load_config(spec, [p for p in pairs if ELLIPSIS not in p[1]])
    config_lib.validate(config)
  for task in filter(None, str(getattr(flags, "tasks", None) or "").split(",")):
    assert task in TASKS
  for name, known in (("prepare_data", BUILDERS), ("import_weights", SOURCES)):
    if command.program.endswith(name) and command.arguments:
      assert command.arguments[0] in known


def test_extras_exist():
  extras = re.search(r"EXTRAS_REQUIRE = \{(.*?)\n\}", (ROOT / "setup.py").read_text(), re.DOTALL)
  known = set(re.findall(r'^  "(\w+)":', extras[1], re.MULTILINE))
  text = "\n".join(page.read_text() for page in PAGES)
  asked = set(",".join(re.findall(r"(?:medflax|\.)\[([\w,]+)\]'", text)).split(","))
  assert asked <= known


@pytest.mark.parametrize(
  "block", [b for b in blocks() if b.language == PYTHON], ids=lambda b: b.page
)
def test_python(block, capsys):
  tree = ast.parse(block.text)
  if block.text.splitlines()[0] in NOT_EXECUTED:
    for node in ast.walk(tree):
      for alias in getattr(node, "names", ()) if isinstance(node, ast.ImportFrom) else ():
        assert hasattr(importlib.import_module(node.module), alias.name)
    return
  config = config_lib.load_config(str(ROOT / "configs/flamingo_med.py"))
  exec(compile(tree, block.page, "exec"), NAMES | {"config": config})
  config_lib.validate(config)


def test_files_are_there():
  """Paths of the checkout that are named in running text, a module's dots included."""
  folders = "medflax|configs|docs|tests|benchmarks|examples|experiments|colab|launch"
  missing = []
  for page in PAGES:
    for span in re.findall(r"`([\w./]+)`", page.read_text()):
      if re.fullmatch(rf"({folders})/[\w./]+", span):
        missing += [] if (ROOT / span).exists() else [f"{page.name}: {span}"]
      elif re.fullmatch(r"medflax(\.\w+)+", span):
        missing += [] if _importable(span) else [f"{page.name}: {span}"]
  assert missing == []


def _importable(name):
  """Whether it is a module, or something in one."""
  module, _, attribute = name.rpartition(".")
  try:
    if importlib.util.find_spec(name):
      return True
  except ModuleNotFoundError:  # what is before the last dot is no package
    pass
  return hasattr(importlib.import_module(module), attribute)


def test_the_site_has_every_page():
  nav = set(re.findall(r"^ .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
  pages = {path for path in PAGES if path.is_relative_to(ROOT / "docs")}
  assert nav == {str(path.relative_to(ROOT / "docs")) for path in pages}


def test_a_mistake_would_be_noticed(monkeypatch, capsys):
  for line in ("medflax.tools.explore x --too y", "medflax.tools.explre x", "examples/none.py"):
    words = ("python", "-m", *line.split()) if line.startswith("medflax") else ("python", line)
    wrong = pytest.raises((AssertionError, UserError, SystemExit))
    with wrong, pytest.MonkeyPatch.context() as patch:
      parsed(Command("", tuple(words)), patch)
