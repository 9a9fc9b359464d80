"""BERT and RoBERTa."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from medflax.models.language.encoder import Encoder
from medflax.pretrained import hf_encoders
from tests.golden_cases.base import (
  Case,
  Check,
  Result,
  abstract_leaves,
  compare,
  import_weights,
)


def encoder(case: Case) -> Iterator[Result]:
  section = hf_encoders.config_from_hf(case.hf)
  model = Encoder(**{name: value for name, value in section.items() if name != "type"})
  tokens = jnp.asarray(case.arrays["in.input_ids"], jnp.int32)
  seen = jnp.asarray(case.arrays["in.attention_mask"]) > 0
  types = case.arrays.get("in.token_type_ids")
  inputs = (
    tokens,
    hf_encoders.positions(seen, section["position_offset"]),
    seen[:, None],
    None if types is None else jnp.asarray(types, jnp.int32),
  )
  table, ignore = hf_encoders.mapping(section), hf_encoders.IGNORE
  params = import_weights(table, abstract_leaves(model, *inputs), case.weights, ignore)
  out = jax.jit(model.apply)(params, *inputs)
  states = {f"hidden_{i}": state for i, state in enumerate(out["hidden"])}
  ours = states | {"last_hidden_state": out["hidden"][-1], "pooled": out.get("pooled")}
  ours["logits"] = out.get("logits")
  for name, theirs in case.arrays.items():
    if name.startswith("out."):
      yield compare(name.removeprefix("out."), ours[name.removeprefix("out.")], theirs)


CHECKS: dict[str, Check] = {"bert": encoder}
