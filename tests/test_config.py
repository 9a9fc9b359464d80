import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medflax import config as config_lib
from medflax.models import build_model
from medflax.utils import UserError
from tests import nano

FLAMINGO = str(nano.CONFIG)


def test_arguments_take_the_type_of_their_defaults():
  arg = config_lib.parse_arg("variant=9b,shots=4,quiet,rate=1e-3", **DEFAULTS)
  assert arg.to_dict() == {"variant": "9b", "shots": 4, "quiet": True, "rate": 1e-3}
  assert config_lib.parse_arg(None, **DEFAULTS).to_dict() == DEFAULTS


DEFAULTS = {"variant": "tiny", "shots": 0, "quiet": False, "rate": 0.1}


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("varant=9b", "unknown config argument 'varant'; did you mean 'variant'?"),
    ("shots=many", "config argument shots must be int, got 'many'"),
    ("quiet=maybe", "config argument quiet must be bool, got 'maybe'"),
  ],
)
def test_bad_arguments(text, message):
  with pytest.raises(UserError) as error:
    config_lib.parse_arg(text, **DEFAULTS)
  assert str(error.value) == message


@given(st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()))
def test_a_value_survives_being_written_and_read(value):
  assert config_lib.parse_value(str(value), value, "x") == value


@given(
  st.lists(st.integers()), st.dictionaries(st.from_regex(r"[a-z]+", fullmatch=True), st.text())
)
def test_tuples_and_sections_survive_as_well(items, section):
  assert config_lib.parse_value(repr(items), (), "x") == tuple(items)
  assert config_lib.parse_value(repr(section), {}, "x").to_dict() == section


@pytest.mark.parametrize("variant", ["tiny", "small", "3b", "9b"])
@pytest.mark.parametrize("data", ["phantom", "folder"])
def test_every_variant_is_valid(variant, data):
  config_lib.validate(config_lib.load_config(f"{FLAMINGO}:variant={variant},data={data}"))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_json_is_read_as_well_with_tuples_for_its_lists(value):
  written = {"a": {"b": value, "c": [(value,)]}}
  found = config_lib.parse_value(json.dumps(written), {}, "x").to_dict()
  assert isinstance(hash((found["a"]["b"], found["a"]["c"])), int)
  assert json.dumps(found) == json.dumps(written)


def test_a_section_pasted_as_json_is_the_same_model():
  """Compiled functions hash the model, by its fields."""
  spec = str(nano.CONFIG.with_name("radfm.py")) + ":variant=tiny"
  config = config_lib.load_config(spec)
  tower = json.dumps(config.model.tower.to_dict())
  pasted = config_lib.load_config(spec, [("model.tower", tower)])
  config_lib.validate(pasted)
  assert '"patch": [4, 8, 8]' in tower and "true" in tower
  assert not config_lib.diff(config, pasted)
  model, again = (build_model(c.model.to_dict() | {"attention": "xla"}) for c in (config, pasted))
  assert hash(model) == hash(again) and model == again


def test_overrides():
  pairs = [("optimizer.lr", "3e-4"), ("data.image_size", "(8, 16)"), ("evals", "{}")]
  config = config_lib.load_config(FLAMINGO, pairs)
  assert config.optimizer.lr == 3e-4
  assert config.evals.to_dict() == {}
  assert config.model.tower.inputs.image.size == (8, 16)  # follows data.image_size
  with pytest.raises(AttributeError):
    config.optimizer.learning_rate = 1.0


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("optimizer.lrr", "1", "unknown field of config.optimizer 'lrr'; did you mean 'lr'?"),
    ("optimiser.lr", "1", "unknown section of config 'optimiser'; did you mean 'optimizer'?"),
    ("sed", "1", "unknown field of config 'sed'; did you mean 'seed'?"),
    ("train.num_steps", "abc", "config.train.num_steps must be int, got 'abc'"),
    ("train.num_steps", "1.5", "config.train.num_steps must be int, got '1.5'"),
    ("data.image_size", "8", "config.data.image_size must be tuple, got '8'"),
    ("evals", "[]", "config.evals must be dict, got '[]'"),
    ("seed.x", "1", "config.seed is not a section"),
  ],
)
def test_bad_overrides(name, text, message):
  with pytest.raises(UserError) as error:
    config_lib.load_config(FLAMINGO, [(name, text)])
  assert str(error.value) == message


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("model.tower.type", "vitt", "unknown config.model.tower.type 'vitt'; did you mean 'vit'?"),
    (
      "model.fusion.type",
      "x",
      "unknown config.model.fusion.type 'x'; known: fused_head, gated_xattn, inline",
    ),
    ("data.source", "foldr", "unknown config.data.source 'foldr'; did you mean 'folder'?"),
    ("optimizer.type", "adam", "unknown config.optimizer.type 'adam'; did you mean 'adamw'?"),
    (
      "optimizer.schedule",
      "cos",
      "unknown config.optimizer.schedule 'cos'; did you mean 'cosine'?",
    ),
    ("best.mode", "maximum", "unknown config.best.mode 'maximum'; did you mean 'max'?"),
    ("best.patience", 2, "config.best.patience = 2 needs config.best.metric"),
    (
      "best.metric",
      "perplexty/nll",
      "unknown evaluator of config.best.metric 'perplexty'; did you mean 'perplexity'?",
    ),
    (
      "best.metric",
      "finding/0shot/exact_match",
      "config.best.metric is of config.evals.finding, which needs every > 0",
    ),
    (
      "data.train.binding.targets",
      "repeat",
      "unknown config.data.train.binding.targets 'repeat'; did you mean 'repeated'?",
    ),
    ("train.num_steps", 0, "config.train.num_steps must be at least 1, got 0"),
    ("optimizer.lr", float("inf"), "config.optimizer.lr must not be negative or infinite, got inf"),
    ("evals.binding.type", "x", "unknown config.evals.binding.type 'x'; known: "),
  ],
)
def test_invalid_values(name, value, message):
  config = config_lib.load_config(FLAMINGO)
  with config.unlocked():
    config.update_from_flattened_dict({name: value})
  with pytest.raises(UserError) as error:
    config_lib.validate(config)
  assert str(error.value).startswith(message)


@pytest.mark.parametrize(
  ("section", "field", "message"),
  [
    ("model.tower", "widht", "unknown field of config.model.tower 'widht'; did you mean 'width'?"),
    ("model.lm", "detph", "unknown field of config.model.lm 'detph'; did you mean 'depth'?"),
    ("train", "num_step", "unknown field of config.train 'num_step'; did you mean 'num_steps'?"),
    ("data.train.binding", "shots", "unknown field of config.data.train.binding 'shots'"),
  ],
)
def test_unknown_fields_of_a_config_file(section, field, message):
  config = config_lib.load_config(FLAMINGO)
  with config.unlocked():
    config.update_from_flattened_dict({f"{section}.{field}": 1})
  with pytest.raises(UserError) as error:
    config_lib.validate(config)
  assert str(error.value).startswith(message)


@pytest.mark.parametrize("path", ["train.ema", "model.tower.width", "evals.binding.every", "mesh"])
def test_missing_fields(path):
  config = config_lib.load_config(FLAMINGO)
  *sections, field = path.split(".")
  node = config
  for section in sections:
    node = node[section]
  with config.unlocked():
    del node[field]
  with pytest.raises(UserError, match=field):
    config_lib.validate(config)


def test_a_failing_config_file_is_told_in_one_line(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text("def get_config(arg):\n  return undefined\n")
  with pytest.raises(UserError, match=r"mine\.py:2: NameError: name 'undefined'"):
    config_lib.load_config(str(path))
  with pytest.raises(UserError, match=r"no config file .*did you mean .*mine\.py"):
    config_lib.load_config(str(tmp_path / "mein.py"))


def test_diff_and_flatten():
  old = {"a": {"b": 1, "c": [1, 2]}, "e": {}}
  new = {"a": {"b": 2, "c": [1, 2], "d": "x"}, "e": {}}
  assert config_lib.diff(old, new) == ["a.b: 1 -> 2", "a.d: '(absent)' -> 'x'"]
  assert config_lib.diff(new, new) == []
