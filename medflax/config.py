"""Configs: a Python file with `get_config(arg)`, overrides by flag, checks before building.

`load_config` needs neither jax nor the model code, so that a mistyped flag is told at once;
`validate` looks into the parts' own fields and therefore imports them.
"""

import ast
import dataclasses
import json
import pathlib
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from medflax.selection import SIGNS, evaluator
from medflax.utils import UserError, failing_in, nearest, pick

Section = Mapping[str, Any] | ml_collections.ConfigDict
SECTIONS = (Mapping, ml_collections.ConfigDict)  # the same for isinstance

# What every config holds, and the type of each value. `Mapping` marks free-form sections: the
# parts of the model are checked against the parts' fields, evaluators and adapters against theirs.
SCHEMA = {
  "name": str,
  "variant": str,
  "seed": int,
  "tokenizer": {"path": str, "add": tuple, "pad": str},
  "prompt": {
    "instruction": str,
    "question": str,
    "answer": str,
    "end": str,
    "media": str,
    "bos": bool,
  },
  "data": {
    "source": str,
    "root": str,
    "cache": str,
    "on_bad_sample": str,
    "exclude": str,
    "image_size": tuple,
    "volume_size": tuple,
    "sources": Mapping,
    "transforms": Mapping,
    "train": Mapping,
    "temperature": float,
    "max_tokens": int,
    "max_media": Mapping,
    "media_mark": str,
    "media_tokens": int,
    "answer_tokens": int,
    "loss_words": tuple,
    "media_rule": str,
    "num_workers": int,
    "packing_bins": int,
    "shards": int,
  },
  "model": {
    "objective": Mapping,
    "tower": Mapping,
    "connector": Mapping,
    "fusion": Mapping,
    "lm": Mapping,
    "dtype": str,
    "remat": str,
    "attention": str,
  },
  "init": str,
  "trainable": str,
  "peft": Mapping,
  "train": {
    "num_steps": int,
    "batch_size": int,
    "log_every": int,
    "z_loss": float,
    "max_bad_steps": int,
    "ema": float,
    "frozen_dtype": str,
    "loss_chunk": int,
    "hang_seconds": float,
  },
  "optimizer": {
    "type": str,
    "lr": float,
    "schedule": str,
    "warmup_steps": int,
    "final_lr_fraction": float,
    "weight_decay": float,
    "decay": str,
    "b1": float,
    "b2": float,
    "eps": float,
    "clip_norm": float,
    "accumulate": int,
    "lr_multipliers": tuple,
  },
  "profile": {"steps": tuple},
  "checkpoint": {"every": int, "keep": int, "allow_config_change": bool},
  "best": {"metric": str, "mode": str, "patience": int},
  "mesh": {"replica": int, "data": int, "fsdp": int, "sequence": int, "tensor": int},
  "evals": Mapping,
}
DTYPES = dict.fromkeys(("float32", "bfloat16", "float16"))
OPTIONAL_PARTS = ("tower", "connector", "fusion")  # {}: the model has none
SOURCE_FIELDS = {"source": str, "root": str, "on_bad_sample": str, "exclude": str}  # of a mixture
TASK_FIELDS = {"task": str, "num_shots": (int, tuple), "weight": float, "targets": str}
POSITIVE = (
  *(
    "data.max_tokens",
    "data.packing_bins",
    "train.num_steps",
    "train.batch_size",
    "train.log_every",
  ),
  *("train.max_bad_steps", "train.hang_seconds", "optimizer.accumulate", "checkpoint.keep"),
)
NOT_NEGATIVE = (
  *("seed", "data.num_workers", "data.media_tokens", "data.answer_tokens"),
  *("train.z_loss", "train.ema", "optimizer.lr", "optimizer.warmup_steps"),
  *("optimizer.weight_decay", "optimizer.clip_norm", "checkpoint.every", "best.patience"),
)


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
  """Parses a config file's argument, `"variant=9b,data=folder"`.

  Args:
    arg: `name=value` pairs with commas between; a bare `name` means `name=true`.
    **defaults: every known name; a value is read as its default's type.

  Raises:
    UserError: for an unknown name or a value of another type.
  """
  values = dict(defaults)
  for pair in filter(None, (arg or "").split(",")):
    name, given, text = pair.partition("=")
    default = pick(defaults, name, "config argument")
    values[name] = parse_value(text if given else "true", default, f"config argument {name}")
  return ml_collections.ConfigDict(values)


def parse_value(text: str, like: Any, what: str) -> Any:
  """Reads `text` as a value of the type of `like`; raises UserError naming `what`."""
  try:
    if isinstance(like, bool):
      return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if isinstance(like, int | float):
      return type(like)(text)
    if isinstance(like, str):
      return text
    value = with_tuples(_literal(text))
    if isinstance(like, tuple | list):
      return tuple(value)
    if isinstance(like, Mapping):
      return ml_collections.ConfigDict(dict(value.items()))
    return value
  except (ValueError, TypeError, KeyError, AttributeError, SyntaxError):
    kind = "dict" if isinstance(like, Mapping) else type(like).__name__
    raise UserError(f"{what} must be {kind}, got {text!r}") from None


def _literal(text: str) -> Any:
  """What Python or JSON writes: `True` or `true`, `None` or `null`."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return json.loads(text)


def with_tuples(value: Any) -> Any:
  """Lists, as JSON has them, as the tuples that a config has: parts are hashed by their fields."""
  if isinstance(value, dict):
    return {key: with_tuples(item) for key, item in value.items()}
  return tuple(map(with_tuples, value)) if isinstance(value, list | tuple) else value


def load_config(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> ml_collections.ConfigDict:
  """Runs a config file and applies overrides.

  Args:
    spec: `path/to/file.py` or `path/to/file.py:argument`.
    overrides: `("a.b", "text")` pairs; `text` is read as the type the field has.

  Returns:
    The config, locked: setting a field it does not have raises.

  Raises:
    UserError: for a missing or failing file, an unknown field, a value of another type.
  """
  path, _, arg = spec.partition(":")
  config = _run_config_file(pathlib.Path(path), arg)
  for name, text in overrides:
    *sections, field = name.split(".")
    node: Any = config
    for i, section in enumerate(sections):
      node = pick(dict(node), section, f"section of {_dotted('config', *sections[:i])}")
      if not isinstance(node, ml_collections.ConfigDict):
        raise UserError(f"{_dotted('config', *sections[: i + 1])} is not a section")
    known = pick(dict(node), field, f"field of {_dotted('config', *sections)}")
    with node.unlocked():
      node[field] = parse_value(text, _plain(known), f"config.{name}")
  return config.lock()


def _run_config_file(path: pathlib.Path, arg: str) -> ml_collections.ConfigDict:
  if not path.is_file():
    there = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    raise UserError(f"no config file {path}{nearest(str(path), there) if there else ''}")
  with failing_in(path):
    config = runpy.run_path(str(path))["get_config"](arg or None)
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f"{path}: get_config must return a ConfigDict, not {type(config).__name__}")
  return config


def _dotted(*names: str) -> str:
  return ".".join(names)


def _plain(value: Any) -> Any:
  return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks fields, types, part names and the fields of parts, without building any.

  Raises:
    UserError: for the first thing wrong, with the nearest valid name.
  """
  _check_section(config, SCHEMA, "config")
  flat = flatten(config)
  for name in POSITIVE:
    if flat[name] < 1:
      raise UserError(f"config.{name} must be at least 1, got {flat[name]}")
  for name in NOT_NEGATIVE:
    if not 0 <= flat[name] < float("inf"):
      raise UserError(f"config.{name} must not be negative or infinite, got {flat[name]}")
  steps = tuple(config.profile.steps)
  if steps and not (
    len(steps) == 2 and all(type(s) is int for s in steps) and 0 < steps[0] <= steps[1]
  ):
    raise UserError(f"config.profile.steps must be () or (first, last), got {steps}")
  if config.train.loss_chunk < -1:
    raise UserError(f"config.train.loss_chunk must be at least -1, got {config.train.loss_chunk}")
  for name, entry in config.data.train.items():
    _check_section(entry, TASK_FIELDS, f"config.data.train.{name}")
  if not 0 < config.data.temperature < float("inf"):
    raise UserError(f"config.data.temperature must be positive, got {config.data.temperature}")
  _check_parts(config)
  _check_best(config)


def _check_best(config: ml_collections.ConfigDict) -> None:
  best, evals = config.best, config.evals.to_dict()
  pick(SIGNS, best.mode, "config.best.mode")
  if best.patience and not best.metric:
    raise UserError(f"config.best.patience = {best.patience} needs config.best.metric")
  if best.metric:
    name = evaluator(best.metric)
    if not pick(evals, name, "evaluator of config.best.metric")["every"]:
      raise UserError(f"config.best.metric is of config.evals.{name}, which needs every > 0")


def _check_section(section: Any, schema: Mapping[str, Any], where: str) -> None:
  if not isinstance(section, SECTIONS):
    raise UserError(f"{where} must be a section, got {section!r}")
  for field in section:
    pick(schema, field, f"field of {where}")
  for field, kind in schema.items():
    if field not in section:
      raise UserError(f"{where} lacks the field {field!r}")
    if isinstance(kind, dict):
      _check_section(section[field], kind, f"{where}.{field}")
    else:
      _check_type(section[field], kind, f"{where}.{field}")


def _check_type(value: Any, kind: Any, where: str) -> None:
  kinds = kind if isinstance(kind, tuple) else (kind,)
  accepted = {float: (float, int), tuple: (tuple, list), Mapping: SECTIONS}
  fits = any(isinstance(value, accepted.get(k, k)) for k in kinds)
  if not fits or (isinstance(value, bool) and bool not in kinds):
    names = " or ".join("dict" if k is Mapping else k.__name__ for k in kinds)
    raise UserError(f"{where} must be {names}, got {value!r}")


def _check_parts(config: ml_collections.ConfigDict) -> None:
  # Imported here: these bring in jax, which a mistyped flag must not wait for.
  from medflax import data, evals, models, optim, peft
  from medflax.data import documents, media_chain
  from medflax.models import attention, layers

  parts = {
    "objective": models.OBJECTIVES,
    "tower": models.VISION_TOWERS,
    "connector": models.CONNECTORS,
    "fusion": models.FUSIONS,
    "lm": models.LANGUAGE_MODELS,
  }
  for name, options in parts.items():
    section = config.model[name]
    if not section and name in OPTIONAL_PARTS:
      continue
    part = pick(options, section.get("type", ""), f"config.model.{name}.type")
    # linen's own fields, and those that `build_model` fills from the rest of the config
    filled = {"parent", "name", "dtype", "remat", "fusion", "tower", "connector", "lm"}
    filled |= {"attention", "one_medium"}
    fields = {f.name: f for f in dataclasses.fields(part) if f.name not in filled}
    for field in section:
      pick(fields | {"type": None}, field, f"field of config.model.{name}")
    for field, spec in fields.items():
      if field not in section and spec.default is spec.default_factory is dataclasses.MISSING:
        raise UserError(f"config.model.{name} lacks the field {field!r}")
  for name, section in _plain(config)["peft"].items():
    peft.make(section, f"config.peft.{name}")
  pick(data.DATASETS, config.data.source, "config.data.source")
  if config.data.exclude and config.data.source == "phantom":
    raise UserError("config.data.exclude is for real data; generated samples have no lasting ids")
  for name, section in _plain(config.data.sources).items():
    for field, value in section.items():
      _check_type(value, pick(SOURCE_FIELDS, field, f"field of config.data.sources.{name}"), field)
    pick(data.DATASETS, section.get("source", ""), f"config.data.sources.{name}.source")
  media_chain.build_chains(_plain(config.data.transforms))
  for name, entry in config.data.train.items():
    pick(documents.TARGETS, entry.targets, f"config.data.train.{name}.targets")
  pick({"auto": None} | attention.ATTENTIONS, config.model.attention, "config.model.attention")
  pick(layers.REMAT_POLICIES, config.model.remat, "config.model.remat")
  pick(DTYPES | {"int8": None}, config.train.frozen_dtype, "config.train.frozen_dtype")
  pick(optim.OPTIMIZERS, config.optimizer.type, "config.optimizer.type")
  pick(optim.SCHEDULES, config.optimizer.schedule, "config.optimizer.schedule")
  for name, section in config.evals.items():
    pick(evals.EVALUATORS, section.get("type", ""), f"config.evals.{name}.type")
    _check_type(section.get("every"), int, f"config.evals.{name}.every")


def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as plain JSON types: what `config.json` holds."""
  return json.loads(json.dumps(config.to_dict()))


def flatten(config: Section) -> dict[str, Any]:
  """`{"a.b": value}` for every leaf; an empty section is a leaf."""
  out = {}
  for name, value in config.items():
    value = _plain(value)
    nested = isinstance(value, Mapping) and value
    out |= {f"{name}.{k}": v for k, v in flatten(value).items()} if nested else {name: value}
  return out


def diff(old: Section, new: Section) -> list[str]:
  """One line per field that differs: `optimizer.lr: 0.001 -> 0.0003`."""
  old, new, missing = flatten(old), flatten(new), "(absent)"
  return [
    f"{name}: {old.get(name, missing)!r} -> {new.get(name, missing)!r}"
    for name in sorted(old.keys() | new.keys())
    if old.get(name, missing) != new.get(name, missing)
  ]
