r"""Evaluates a checkpoint: with the evaluators of its config, or on the tasks of benchmarks.

python -m medflax.tools.evaluate WORKDIR --step 600 --eval binding
python -m medflax.tools.evaluate WORKDIR --tasks=slake_en/official,path_vqa/official \
  --data slake_en=prepared/slake_en --data path_vqa=prepared/path_vqa --set num_episodes=64
python -m medflax.tools.evaluate --config=configs/open_flamingo.py:variant=full,data=folder \
  --config.init=DIR/weights.safetensors --tasks=vqa_rad/med_flamingo \
  --data vqa_rad_disjoint=prepared/vqa_rad --to evaluations/med_flamingo

Writes evals/<name>/<step>/ into the workdir, or into --to: the same files, with the same numbers,
as an evaluation within training. Run again after a kill, it goes on where it was. What has been
evaluated is not evaluated again, and nothing is replaced.
"""

import argparse
import dataclasses
import json
import logging
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from medflax import config as config_lib
from medflax import workdir as workdir_lib
from medflax.data.builders.store import DATASET
from medflax.data.documents import Prompt
from medflax.data.pipeline import with_media_slots
from medflax.evals import EVALUATORS, EvalContext, Evaluator
from medflax.evals.base import own_data
from medflax.evals.fewshot_vqa import Settings
from medflax.flags import Parser, add_model
from medflax.inference.features import FeatureStore
from medflax.loading import Loaded, load_model
from medflax.metric_writer import log_to_console
from medflax.report.evaluation import write_evaluation
from medflax.tasks import evaluations
from medflax.utils import UserError, pick, write_atomic

REQUEST = "request.json"  # beside the results of a task: what was asked for, and of which weights
Section = Mapping[str, Any]

log = logging.getLogger(__name__)


def evaluate(
  loaded: Loaded, to: pathlib.Path, asked: Mapping[str, Section] | None = None
) -> list[pathlib.Path]:
  """Runs evaluators on the weights of `loaded`; returns the files of their results.

  Args:
    loaded: the model.
    to: the folder that gets `evals/`.
    asked: sections as of `config.evals`, by name, which are checked against what `to` holds from
      before; None: all of the config's.

  Raises:
    UserError: if a section is wrong, its data are not there, or `to` has results of others.
  """
  own = asked is None
  names = loaded.config.evals.to_dict() if asked is None else asked
  paths = {name: workdir_lib.results_path(to, name, loaded.step) for name in names}
  if not own:
    for name, path in paths.items():
      _claim(path, name, _request(loaded, names[name]))
  waiting = {}
  for name, path in paths.items():
    if path.exists():
      log.info("%s: was evaluated before", path.parent)
    else:
      waiting[name] = make_evaluator(loaded, name, names[name], to)
  if waiting:
    with loaded.running():
      params, store = loaded.params(), FeatureStore()
      for evaluator in waiting.values():
        evaluator.run(params, loaded.step, store)
  return [*paths.values()]


def make_evaluator(loaded: Loaded, name: str, section: Section, to: pathlib.Path) -> Evaluator:
  """The evaluator of a section, with the data set that it names or else the config's."""
  config, parts = loaded.config.copy_and_resolve_references(), loaded.parts
  with config.unlocked():
    config.data, dataset = own_data(name, config.data, section.get("data", {}), config.seed)
  context = EvalContext(
    model=parts.model,
    tokenizer=parts.tokenizer,
    dataset=dataset,
    prompt=Prompt(**config.prompt.to_dict()),
    data_config=with_media_slots(config, dataset.media_per_sample).data,
    seed=config.seed,
    workdir=to,
    mesh=parts.mesh,
    put=parts.put,
  )
  rest = {key: value for key, value in section.items() if key != "data"}
  return pick(EVALUATORS, section["type"], f"config.evals.{name}.type")(name, rest, context)


def _request(loaded: Loaded, section: Section) -> dict[str, Any]:
  """Whatever the results depend on, as JSON has it."""
  config = config_lib.to_dict(loaded.config)
  kept = ("name", "variant", "seed", "tokenizer", "prompt", "data", "model", "init", "peft")
  weights = str(loaded.checkpoints.absolute()) if loaded.checkpoints else ""
  made_of = {
    "evaluation": section,
    "checkpoint": weights,
    "step": loaded.step,
    "config": {name: config[name] for name in kept},
  }
  return json.loads(json.dumps(made_of))


def _claim(results: pathlib.Path, name: str, request: Mapping[str, Any]) -> None:
  """Says in the folder of an evaluation what it is of.

  Raises:
    UserError: if it is of something else.
  """
  path = results.parent / REQUEST
  if not path.exists():
    if results.exists():
      raise UserError(f"{results} is there already; choose another --to")
    write_atomic(path, json.dumps(request, indent=2, ensure_ascii=False) + "\n")
  elif changes := config_lib.diff(json.loads(path.read_text()), request):
    raise UserError(
      f"{path.parent} is another evaluation of {name} ({'; '.join(changes)}); choose another --to"
    )


def chosen(loaded: Loaded, flags: argparse.Namespace) -> dict[str, dict[str, Any]] | None:
  """The sections that the command line asks for; None: the config's own as they are.

  Raises:
    UserError: for a task, an evaluator or a field that there is not.
  """
  if flags.tasks:
    roots = _pairs(flags.data, "--data")
    for name, root in roots.items():
      _check_name(name, pathlib.Path(root) / DATASET)
    return evaluations(flags.tasks.split(","), roots, _settings(flags.set))
  own = loaded.config.evals.to_dict()
  if flags.data:
    raise UserError(f"--data {flags.data[0]} is for --tasks; the config names its own data")
  if not own:
    raise UserError(f"{loaded.config.name} has no evaluators of its own; give --tasks")
  if flags.set:
    raise UserError(f"--set {flags.set[0]} is for --tasks; change config.evals for the run's own")
  return {name: pick(own, name, "evaluator") for name in flags.eval} if flags.eval else None


def _check_name(name: str, path: pathlib.Path) -> None:
  if path.exists() and (found := json.loads(path.read_text()).get("name")) != name:
    raise UserError(f"--data {name}={path.parent}: that folder is of {found}")


def _pairs(texts: Sequence[str], flag: str) -> dict[str, str]:
  split = [text.partition("=") for text in texts]
  pairs = {name: value for name, _, value in split}
  for name, value in pairs.items():
    if not value:
      raise UserError(f"{flag} {name} needs a value: {flag} {name}=VALUE")
  return pairs


def _settings(texts: Sequence[str]) -> dict[str, Any]:
  """`--set a=1` as fields of `Settings`; `--set a.b=1` sets a field of a section."""
  known = {field.name: field for field in dataclasses.fields(Settings)}
  changes: dict[str, Any] = {}
  for name, text in _pairs(texts, "--set").items():
    field, inner, _ = name.partition(".")
    like = pick(known, field, "field of an evaluation").default
    if inner:
      changes[name] = _literal(text)
    elif isinstance(like, tuple):
      parts = text.strip("()[] ").split(",")
      changes[name] = tuple(_literal(part.strip()) for part in parts if part.strip())
    elif isinstance(like, bool | int | float | str):
      changes[name] = config_lib.parse_value(text, like, f"--set {name}")
    else:
      raise UserError(f"--set {name} is a section: set one of its fields, --set {name}.FIELD=VALUE")
  return changes


def _literal(text: str) -> Any:
  """A number or a truth value where the text is one."""
  try:
    return json.loads(text.lower() if text in ("True", "False") else text)
  except json.JSONDecodeError:
    return text


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  parser = Parser("medflax.tools.evaluate", __doc__)
  parser.add_argument("workdir", nargs="?", type=pathlib.Path, help="of a run")
  parser.add_argument("--config", default="", help="FILE.py[:ARG=VALUE,…] in place of a workdir")
  add_model(parser, workdir=False)
  parser.add_argument(
    "--eval", action="append", default=[], help="of the config; default: all; may be repeated"
  )
  parser.add_argument("--tasks", default="", help="names of medflax.tasks.TASKS, commas between")
  parser.add_argument(
    "--data", action="append", default=[], metavar="NAME=DIR", help="a prepared folder of a task's"
  )
  parser.add_argument(
    "--set", action="append", default=[], metavar="FIELD=VALUE", help="of the evaluations of tasks"
  )
  parser.add_argument("--to", type=pathlib.Path, help="default: the workdir")
  log_to_console(quiet=jax.process_index() != 0)
  try:
    flags, overrides = parser.parse(argv)
    if (flags.workdir is None) == (not flags.config):
      raise UserError("give either a workdir or --config=FILE.py")
    if flags.to is None and flags.workdir is None:
      raise UserError("--config has no workdir; say where the results go: --to DIR")
    if flags.checkpoint and flags.workdir:
      raise UserError(f"{flags.workdir} has its own checkpoints; leave --checkpoint out")
    loaded = load_model(
      flags.config or flags.workdir,
      checkpoint=flags.checkpoint,
      step=flags.step,
      overrides=overrides,
    )
    results = evaluate(loaded, flags.to or flags.workdir, chosen(loaded, flags))
    _tell(results)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def _tell(results: Sequence[pathlib.Path]) -> None:
  """The table of what was measured, and a page for each evaluation that has answers."""
  for path in results:
    for name, found in json.loads(path.read_text())["metrics"].items():
      low, high = found["ci95"]
      print(f"{name:60} {found['value']:.3f} [{low:.3f}, {high:.3f}] n={found['n']}")
  if jax.process_index() == 0:
    for path in results:
      print(f"report {write_evaluation(path.parent)}")


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
