"""Studies: runs of one config that differ in a few fields, and how far each of them is.

A study is a file that `launch.py` and `collect.py` read:

  CONFIG = "configs/flamingo_med.py"  # which may have an argument
  BASELINE = "media_rule=prev_image"  # the tag that the others are compared with
  METRICS = ("binding/4shot/exact_match", "perplexity/nll")  # as results.json names them
  SEEDS = (0, 1, 2)

  def runs():
    return vary("config.data.media_rule", ("prev_image", "next_image", "all_prev"))

`runs()` yields pairs of a tag and what is set: a name that begins with "config." is a field, as in
`--config.data.media_rule=next_image`, any other an argument of the config file, as in
`configs/prefix_vqa.py:peft=lora`. Every tag is run with every seed.
"""

import dataclasses
import hashlib
import itertools
import pathlib
import re
import runpy
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from medflax import config as config_lib
from medflax import trainer
from medflax import workdir as workdir_lib
from medflax.flags import split_overrides
from medflax.utils import UserError, failing_in, nearest

MAIN = (sys.executable, "-m", "medflax.main")
MISSING, UNFINISHED, RUNNING, FINISHED = "missing", "unfinished", "running", "finished"
_LONGEST = 150  # of a folder's name, which file systems limit to 255
_FIELD = "config."
_REQUIRED = {"CONFIG": str, "BASELINE": str, "METRICS": (tuple, list)}

Pair = tuple[str, dict[str, str]]


def vary(name: str, values: Iterable[Any] | Mapping[str, Any]) -> list[Pair]:
  """One pair for each value; its tag is the last part of the name and the value, or its key."""
  named = values.items() if isinstance(values, Mapping) else [(str(v), v) for v in values]
  short = name.rpartition(".")[2]
  return [(f"{short}={key}", {name: str(value)}) for key, value in named]


def product(*axes: Iterable[Pair]) -> list[Pair]:
  """Every combination, the last axis fastest."""
  return [_joined(pairs) for pairs in itertools.product(*axes)]


def zipped(*axes: Iterable[Pair]) -> list[Pair]:
  """The first of every axis together, the second, and so on.

  Raises:
    UserError: if they are not equally long.
  """
  lists = [list(axis) for axis in axes]
  if len({len(axis) for axis in lists}) > 1:
    raise UserError(f"zipped: axes of {' and '.join(str(len(axis)) for axis in lists)} values")
  return [_joined(pairs) for pairs in zip(*lists, strict=True)]


def chain(*axes: Iterable[Pair]) -> list[Pair]:
  """One axis after the other."""
  return [pair for axis in axes for pair in axis]


def _joined(pairs: Sequence[Pair]) -> Pair:
  overrides: dict[str, str] = {}
  for tag, more in pairs:
    if twice := sorted(overrides.keys() & more):
      raise UserError(f"{tag}: {twice[0]} is set by two axes")
    overrides |= more
  return ",".join(tag for tag, _ in pairs if tag), overrides


def folder_name(tag: str) -> str:
  """A file name for a tag; others for other tags, also where case does not count."""
  name = re.sub(r"^\.|[^a-z0-9_.,=+-]", lambda m: f"%{m[0].encode().hex()}%", tag)
  if len(name) <= _LONGEST:
    return name
  return f"{name[:_LONGEST]}%%{hashlib.sha256(tag.encode()).hexdigest()[:16]}"


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a study.

  Attributes:
    arguments: of medflax.main, but for the workdir.
    config: what they amount to, validated.
  """

  tag: str
  seed: int
  arguments: tuple[str, ...]
  config: ml_collections.ConfigDict
  workdir: pathlib.Path

  @property
  def name(self) -> str:
    """As it is told to the user, and the name of its folder."""
    return self.workdir.name

  @property
  def command(self) -> list[str]:
    """The command line; the config file is looked for where the launcher was started."""
    return [*MAIN, *self.arguments, f"--workdir={self.workdir}"]

  def state(self) -> str:
    """How far it is, by its workdir alone.

    Raises:
      UserError: if that holds something else, or a run of another config.
    """
    changes = workdir_lib.check(self.workdir, self.config)
    if workdir_lib.is_locked(self.workdir):
      return RUNNING
    if not changes and trainer.is_finished(self.config, self.workdir):
      return FINISHED
    return UNFINISHED if (self.workdir / workdir_lib.CONFIG).exists() else MISSING


@dataclasses.dataclass(frozen=True)
class Study:
  """A study's runs, seed by seed, and what is told of them.

  Attributes:
    about: the first line of the file's docstring.
    folder: that of the runs' workdirs.
    tags: in the order of the file.
  """

  name: str
  about: str
  baseline: str
  metrics: tuple[str, ...]
  folder: pathlib.Path
  tags: tuple[str, ...]
  runs: tuple[Run, ...]


def load(
  spec: str, folder: pathlib.Path | None = None, overrides: Sequence[tuple[str, str]] = ()
) -> Study:
  """Reads a study and validates the config of every run; creates nothing.

  Args:
    spec: `path/to/study.py`, or `path/to/study.py:ARG=VALUE,…` with arguments of its config file.
    folder: of the workdirs; None: `runs/<name of the study>`.
    overrides: `("a.b", "text")` that all runs get, where they do not set it themselves.

  Raises:
    UserError: for a missing or failing file, and whatever is wrong with a run.
  """
  path_text, _, arg = spec.partition(":")
  path = pathlib.Path(path_text)
  found = _read(path)
  pairs, seeds = found["runs"], tuple(found.get("SEEDS", (0,)))
  folder = (folder or pathlib.Path("runs") / path.stem).absolute()
  common = {_FIELD + name: text for name, text in overrides}
  for word in filter(None, arg.split(",")):
    name, _, text = word.partition("=")
    common[name] = text
  runs = []
  for seed, (tag, given) in itertools.product(seeds, pairs):
    chosen = {f"{_FIELD}seed": str(seed)} | common | given
    arguments = _arguments(found["CONFIG"], chosen)
    try:
      config = _resolve(arguments)
    except UserError as error:
      raise UserError(f"{path}: run {tag}: {error}") from None
    name = folder_name(f"{tag},seed={seed}")
    runs.append(Run(tag, seed, arguments, config, folder / name))
  _check(path, found["BASELINE"], seeds, [tag for tag, _ in pairs], runs)
  about = (found.get("__doc__") or path.stem).strip().splitlines()[0]
  return Study(
    name=path.stem,
    about=about,
    baseline=found["BASELINE"],
    metrics=tuple(found["METRICS"]),
    folder=folder,
    tags=tuple(tag for tag, _ in pairs),
    runs=tuple(runs),
  )


def _read(path: pathlib.Path) -> dict[str, Any]:
  """The names of the file, `runs` being what the function yields."""
  if not path.is_file():
    known = [str(p) for p in pathlib.Path(__file__).with_name("studies").glob("*.py")]
    raise UserError(f"no study {path}{nearest(str(path), known)}")
  with failing_in(path):
    found = runpy.run_path(str(path))
    for name, kind in _REQUIRED.items():
      if not isinstance(found.get(name), kind):
        raise UserError(f"{path}: {name} is missing or of another type; see experiments/study.py")
    if not callable(found.get("runs")):
      raise UserError(f"{path}: there is no function runs()")
    found["runs"] = [(str(tag), dict(given)) for tag, given in found["runs"]()]
  return found


def _arguments(config: str, chosen: Mapping[str, str]) -> tuple[str, ...]:
  """What medflax.main is given."""
  words = [f"{name}={text}" for name, text in chosen.items() if not name.startswith(_FIELD)]
  fields = [f"--{name}={text}" for name, text in chosen.items() if name.startswith(_FIELD)]
  path, _, arg = config.partition(":")
  arg = ",".join([*filter(None, [arg]), *words])
  return (f"--config={path}{':' * bool(arg)}{arg}", *fields)


def _resolve(arguments: Sequence[str]) -> ml_collections.ConfigDict:
  """The config, as medflax.main sees it."""
  spec, *fields = arguments
  config = config_lib.load_config(spec.removeprefix("--config="), split_overrides(fields))
  config_lib.validate(config)
  return config


def _check(
  path: pathlib.Path, baseline: str, seeds: Sequence[int], tags: Sequence[str], runs: Sequence[Run]
) -> None:
  if not runs:
    raise UserError(f"{path}: there are no runs")
  for what, values in (("runs are called", tags), ("seeds are", seeds)):
    if twice := [value for value in values if values.count(value) > 1]:
      raise UserError(f"{path}: two {what} {twice[0]}")
  same: dict[str, str] = {}
  for run in runs:
    if (other := same.setdefault(str(config_lib.to_dict(run.config)), run.tag)) != run.tag:
      raise UserError(f"{path}: {other} and {run.tag} are the same run; leave one out")
    if run.config.seed != run.seed:
      raise UserError(f"{path}: config.seed is set; seeds are given as SEEDS")
  if baseline not in tags:
    raise UserError(f"{path}: the baseline {baseline!r} is none of the runs: {', '.join(tags)}")


def told(command: Sequence[str]) -> str:
  """A command as it is typed, `python` being the one that runs this."""
  return shlex.join(["python" if word == sys.executable else word for word in command])
