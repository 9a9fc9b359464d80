import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from medflax import peft
from medflax.pretrained import peft_files
from medflax.pretrained.mapping import Tensor
from medflax.utils import UserError
from tests.golden_cases import lora
from tests.golden_cases.base import Case

WIDTH, RANK = 6, 2
QUERY = Tensor("h.{}.q_proj.weight", layers=(0, 1), axes=(1, 0), shape=(-1, WIDTH))
LLAMA = {"blocks/query/kernel": QUERY}
GPT2 = {  # [in, out], queries, keys and values one after the other
  f"blocks/{name}/kernel": Tensor(
    "h.{}.c_attn.weight", layers=(0, 1), rows=(6 * i, 6 * i + 6), axis=1, shape=(WIDTH, -1)
  )
  for i, name in enumerate(("query", "key", "value"))
}
KERNEL = jax.ShapeDtypeStruct((2, WIDTH, 2, 3), np.float32)


def adapters(table, scale=2.0, same_a=True):
  rng, out = np.random.default_rng(0), {}
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  a = normal(2, WIDTH, RANK)
  for path in table:
    module = path.removesuffix("kernel")
    out[f"{module}lora_a"] = a if same_a else normal(2, WIDTH, RANK)
    out[f"{module}lora_b"] = normal(2, RANK, 2, 3)
    out[f"{module}lora_scale"] = np.full(2, scale, np.float32)
  return out


def write(tmp_path, table, leaves):
  peft_files.write_adapter(tmp_path, leaves, table, base_model="some/model")
  config = json.loads((tmp_path / "adapter_config.json").read_text())
  return config, safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(("table", "target"), [(LLAMA, "q_proj"), (GPT2, "c_attn")])
def test_what_is_written_is_read_again(tmp_path, table, target):
  leaves = adapters(table)
  config, tensors = write(tmp_path, table, leaves)
  assert config["target_modules"] == [target]
  assert (config["r"], config["lora_alpha"], config["peft_type"]) == (RANK, 4.0, "LORA")
  assert config["fan_in_fan_out"] == (table is GPT2)
  name = f"base_model.model.h.1.{target}.lora_"
  assert tensors[f"{name}A.weight"].shape == (RANK, WIDTH)
  assert tensors[f"{name}B.weight"].shape == (6 * len(table), RANK)
  again = peft_files.read_adapter(tmp_path, table, dict.fromkeys(table, KERNEL))
  assert again.keys() == leaves.keys()
  for path, leaf in leaves.items():
    np.testing.assert_array_equal(again[path], leaf, err_msg=path)


def test_the_tensors_are_the_update(tmp_path):
  """The peft library adds scale · B A to a torch weight [out, in]."""
  leaves = adapters(LLAMA)
  _, tensors = write(tmp_path, LLAMA, leaves)
  name = "base_model.model.h.1.q_proj.lora_"
  theirs = 2.0 * tensors[f"{name}B.weight"] @ tensors[f"{name}A.weight"]
  ours = peft.update(leaves, "blocks/query/")[1].reshape(WIDTH, -1).T
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_older_spellings_and_settings_are_read(tmp_path):
  leaves = adapters(LLAMA)
  config, tensors = write(tmp_path, LLAMA, leaves)
  older = {k.replace(".weight", ".default.weight"): x for k, x in tensors.items()}
  (tmp_path / "adapter_model.safetensors").write_bytes(safetensors.numpy.save(older))
  config |= {"use_rslora": True, "lora_dropout": 0.1}
  (tmp_path / "adapter_config.json").write_text(json.dumps(config))
  again = peft_files.read_adapter(tmp_path, LLAMA, {"blocks/query/kernel": KERNEL})
  np.testing.assert_allclose(again["blocks/query/lora_scale"], 4.0 / np.sqrt(RANK))
  np.testing.assert_allclose(again["blocks/query/lora_dropout"], 0.1)


def test_some_layers_are_named_in_full(tmp_path):
  table = LLAMA | {"tail/query/kernel": Tensor("h.2.q_proj.weight", axes=(1, 0), shape=(-1, WIDTH))}
  config, _ = write(tmp_path, table, adapters(LLAMA))
  assert config["target_modules"] == ["h.0.q_proj", "h.1.q_proj"]


def test_factors_that_were_trained_apart_are_not_fused(tmp_path):
  with pytest.raises(UserError, match="share one tensor in peft's file but differ here"):
    write(tmp_path, GPT2, adapters(GPT2, same_a=False))
  assert not list(tmp_path.iterdir())


def test_several_scales_are_named(tmp_path):
  leaves = adapters(GPT2)
  leaves["blocks/key/lora_scale"] = np.full(2, 3.0, np.float32)
  with pytest.raises(UserError, match=r"one rank, scale and dropout; .* \[2\.0, 3\.0\]"):
    write(tmp_path, GPT2, leaves)


@pytest.mark.parametrize(
  ("change", "complaint"),
  [
    ({"use_dora": True}, "use_dora = True is not supported"),
    ({"peft_type": "IA3"}, "peft_type = 'IA3' is not supported"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
  ],
)
def test_an_adapter_of_another_kind_is_named(tmp_path, change, complaint):
  config, _ = write(tmp_path, LLAMA, adapters(LLAMA))
  (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
  with pytest.raises(UserError, match=complaint):
    peft_files.read_adapter(tmp_path, LLAMA, {"blocks/query/kernel": KERNEL})


def test_an_adapter_of_another_model_is_named(tmp_path):
  write(tmp_path, GPT2, adapters(GPT2))
  with pytest.raises(UserError, match=r"unexpected: base_model\.model\.h\.0\.c_attn"):
    peft_files.read_adapter(tmp_path, LLAMA, {"blocks/query/kernel": KERNEL})
  wide = jax.ShapeDtypeStruct((2, 8, 2, 3), np.float32)
  with pytest.raises(UserError, match="6 inputs for blocks/query/kernel"):
    peft_files.read_adapter(tmp_path, GPT2, dict.fromkeys(GPT2, wide))


def test_parity_with_the_original(golden_folder):
  results = list(lora.lora(Case(golden_folder("lora"), "llama_lora")))
  assert len(results) == 5
  assert [result for result in results if not result.passed] == []
