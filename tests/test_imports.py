"""Holds the shape of the code: imports point down, files stay short, dependencies are declared."""

import ast
import pathlib
import re
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAX_LINES = 400

# What each part of medflax may import of medflax, besides itself. A module that is not listed
# belongs to the part named by the longest prefix. docs/design.md draws the same picture.
LAYERS = {
  "utils": (),
  "interrupt": (),
  "config": ("selection", "utils"),
  "selection": ("utils",),
  "defaults": (),
  "metrics": ("utils",),
  "metrics.bertscore": ("models", "pretrained", "utils"),
  "metric_writer": ("utils",),
  "report": ("metrics", "utils"),
  "parallel": ("utils",),
  "checkpoint": ("utils",),
  "workdir": ("config", "defaults", "utils"),
  "optim": ("utils",),
  "peft": ("models", "utils"),
  "quantize": ("models", "optim", "pretrained"),
  "data": ("utils",),
  "data.pipeline": ("data", "utils"),
  "tasks": ("data", "utils"),
  "models": ("parallel", "utils"),
  "pretrained": ("models", "utils"),
  "inference": ("models", "utils"),
  "evals": (
    *("data", "data.pipeline", "inference", "leakage.check", "leakage.pictures", "metrics"),
    *("models", "parallel", "utils"),
  ),
  "leakage.pictures": ("data",),
  "leakage.search": (),
  "leakage.sides": ("data", "leakage.pictures", "utils"),
  "leakage.check": ("data", "leakage.pictures", "leakage.search", "leakage.sides", "utils"),
  "leakage": (
    *("data", "evals", "leakage.check", "leakage.pictures", "leakage.search", "leakage.sides"),
    *("models", "pretrained", "report", "utils"),
  ),
  "train_step": ("models", "peft", "utils"),
  "summary": ("parallel", "train_step"),
  "analysis": ("models", "parallel", "utils"),
  "analysis.programs": ("analysis", "build", "inference", "models", "parallel", "utils"),
  "speed": ("analysis",),
  "weights": ("checkpoint", "pretrained", "selection", "utils", "workdir"),
  "build": (
    *("data", "data.pipeline", "models", "optim", "parallel", "peft", "quantize", "train_step"),
    *("utils", "weights"),
  ),
  "loading": (
    *("build", "checkpoint", "config", "parallel", "train_step", "utils", "weights", "workdir"),
  ),
  "experts.templates": (),
  "experts": (
    *("api", "data", "experts.templates", "leakage", "loading", "metrics", "models"),
    *("pretrained", "utils"),
  ),
  "api": ("data", "evals", "inference", "loading", "parallel", "utils"),
  "trainer": (
    *("build", "checkpoint", "config", "data", "data.pipeline", "evals", "inference"),
    *("interrupt", "metric_writer", "optim", "parallel", "report", "selection", "speed", "summary"),
    *("train_step", "utils", "workdir"),
  ),
  "flags": ("utils",),
  "main": ("config", "flags", "parallel", "trainer", "utils"),
}
# What may be imported inside a function alone, when the cheap checks are done.
DEFERRED = {
  "config": ("data", "evals", "models", "optim", "peft"),
  "metrics": ("metrics.bertscore",),
}
# A package that only one module may import, and packages that a part may not import.
ONLY = {"orbax": "medflax.checkpoint"}
NEVER = {
  "data": {"jax", "jaxlib", "flax", "optax"},  # grain's workers import these modules again
  "config": {"jax", "jaxlib", "flax"},  # a mistyped flag is told at once
}
# Extras, which are imported inside the function that needs them.
OPTIONAL = {"gguf", "libtpu", "nltk", "pyarrow", "rouge_score", "sacrebleu"}
# Where an import is named otherwise than its distribution.
DISTRIBUTIONS = {
  "PIL": "pillow",
  "absl": "absl-py",
  "ml_collections": "ml-collections",
  "orbax": "orbax-checkpoint",
}


def imports(source: str, module: str) -> Iterator[tuple[str, ast.stmt]]:
  """Every module that `source` imports, with the statement; `from a import b` gives a and a.b."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from ((alias.name, node) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        base = ".".join([*module.split(".")[: -node.level], base]).rstrip(".")
      yield base, node
      yield from ((f"{base}.{alias.name}", node) for alias in node.names)


def part_of(module: str) -> str | None:
  """The part of `LAYERS` that a module belongs to; None: not a part of medflax."""
  name = module.removeprefix("medflax.")
  prefixes = [name.rsplit(".", cut)[0] for cut in range(name.count(".") + 1)]
  return next((prefix for prefix in prefixes if prefix in LAYERS), None)


def violations(source: str, module: str) -> list[str]:
  """What is wrong with the imports of `module`."""
  part = part_of(module)
  wrong = []
  for target, node in imports(source, module):
    package, place = target.split(".")[0], f"{module}:{node.lineno}"
    if package in ("configs", "experiments", "examples", "tests", "benchmarks"):
      wrong.append(f"{place} imports {target}: the core knows no configs or experiments")
    if package in ONLY and module != ONLY[package]:
      wrong.append(f"{place} imports {target}: only {ONLY[package]} may")
    if part and package in NEVER.get(part, ()):
      wrong.append(f"{place} imports {target}: {part} may not")
    if part and package == "medflax":
      below = part_of(target)
      deferred = DEFERRED.get(part, ()) if node.col_offset else ()
      if below and below not in (part, *LAYERS[part], *deferred):
        wrong.append(f"{place} imports {target}: {part} does not stand above {below}")
  return wrong


def modules() -> dict[str, pathlib.Path]:
  """Every module of the package by name."""
  paths = (ROOT / "medflax").rglob("*.py")
  parts = {path: path.relative_to(ROOT).with_suffix("").parts for path in paths}
  return {".".join(p for p in name if p != "__init__"): path for path, name in parts.items()}


def sources(*folders: str) -> list[pathlib.Path]:
  return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def test_imports_point_down():
  found = modules()
  assert len(found) > 20
  wrong = [w for name, path in found.items() for w in violations(path.read_text(), name)]
  assert not wrong, "\n".join(wrong)


def test_every_module_has_a_layer():
  free = {"medflax"}  # the empty package itself; tools may import anything
  homeless = [
    name
    for name in modules()
    if name not in free and not name.startswith("medflax.tools") and not part_of(name)
  ]
  assert not homeless, f"add to LAYERS and docs/design.md: {homeless}"


def test_layers_have_no_cycle():
  seen: set[str] = set()

  def visit(part: str, above: tuple[str, ...]):
    assert part not in above, " → ".join([*above, part])
    if part not in seen:
      for below in LAYERS[part]:
        visit(below, (*above, part))
      seen.add(part)

  for part in LAYERS:
    visit(part, ())


@pytest.mark.parametrize(
  ("module", "source", "complaint"),
  [
    ("medflax.models.vlm", "from medflax.data import folder", "models does not stand above data"),
    ("medflax.models.vlm", "def f():\n  from medflax import trainer", "vlm:2 imports"),
    ("medflax.models.vision.vit", "from ...evals import base", "does not stand above evals"),
    ("medflax.data.packing", "import jax.numpy as jnp", "data may not"),
    ("medflax.config", "import configs.flamingo_med", "the core knows no configs"),
    ("medflax.trainer", "import orbax.checkpoint as ocp", "only medflax.checkpoint may"),
    ("medflax.config", "from medflax import models", "config does not stand above models"),
    ("medflax.utils", "import medflax.metrics.text", "utils does not stand above metrics"),
  ],
)
def test_the_check_finds(module, source, complaint):
  [wrong, *_] = violations(source, module)
  assert complaint in wrong


def test_the_check_lets_pass():
  assert not violations("def f():\n  from medflax import models", "medflax.config")
  assert not violations("import jax\nfrom medflax.data import encode", "medflax.data.pipeline")
  assert not violations("from medflax.models import vlm\nimport os", "medflax.models.layers")


def test_files_are_short():
  lengths = {
    path: len(path.read_text().splitlines())
    for path in sources("medflax", "configs", "experiments")
  }
  long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_LINES}
  assert not long, f"more than {MAX_LINES} lines; split: {long}"


def test_no_postponed_annotations():
  late = [
    path
    for path in sources("medflax", "configs", "experiments")
    if "from __future__ import annotations" in path.read_text()
  ]
  assert not late, f"jaxtyping cannot check postponed annotations: {late}"


def test_packages_are_packages():
  """A folder without __init__.py would be left out of a wheel."""
  folders = {path.parent for path in sources("medflax")}
  assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_dependencies_are_those_imported():
  setup = (ROOT / "setup.py").read_text()
  [requires] = re.findall(r"INSTALL_REQUIRES = \[(.*?)\n\]", setup, re.DOTALL)
  declared = set(re.findall(r'^  "([A-Za-z0-9_-]+)', requires, re.MULTILINE))
  top = {
    target.split(".")[0]
    for name, path in modules().items()
    for target, _ in imports(path.read_text(), name)
  }
  imported = top - set(sys.stdlib_module_names) - {"medflax", "__future__"} - OPTIONAL
  assert {DISTRIBUTIONS.get(name, name) for name in imported} == declared
