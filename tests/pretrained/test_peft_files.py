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
    ({"peft_type": "IA3"}, "unknown peft_type .*'IA3'; known: LORA"),
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


HEADS, HEAD_DIM, LENGTH = 2, 3, 4
KEYS = {
  f"groups/layer_{i}/attn/key/kernel": Tensor("h.{}.k_proj.weight", layers=(i, i + 2), axes=(1, 0))
  for i in range(2)
}


def prefix():
  rng = np.random.default_rng(0)
  return {
    path.replace("key/kernel", name): rng.normal(size=(2, LENGTH, HEADS, HEAD_DIM))
    for path in KEYS
    for name in ("prefix_key", "prefix_value")
  }


def test_a_prefix_is_laid_out_as_peft_reads_it(tmp_path):
  leaves = prefix()
  config, tensors = write(tmp_path, KEYS, leaves)
  assert config["peft_type"] == "PREFIX_TUNING"
  assert (config["num_virtual_tokens"], config["num_layers"]) == (LENGTH, 4)
  heads, token_dim = config["num_attention_heads"], config["token_dim"]
  assert (heads, token_dim) == (HEADS, HEADS * HEAD_DIM)
  # What the library makes of it, in a batch of one: for each layer keys and values.
  view = tensors["prompt_embeddings"].reshape(1, LENGTH, 8, heads, token_dim // heads)
  layers = view.transpose(2, 0, 3, 1, 4).reshape(4, 2, 1, heads, LENGTH, HEAD_DIM)
  key = leaves["groups/layer_1/attn/prefix_key"][0]  # layer 1
  np.testing.assert_array_equal(layers[1, 0, 0], key.swapaxes(0, 1))
  value = leaves["groups/layer_0/attn/prefix_value"][1]  # layer 2
  np.testing.assert_array_equal(layers[2, 1, 0], value.swapaxes(0, 1))
  again = peft_files.read_adapter(tmp_path, KEYS, dict.fromkeys(KEYS, KERNEL))
  assert again.keys() == leaves.keys()
  for path, leaf in leaves.items():
    np.testing.assert_array_equal(again[path], leaf, err_msg=path)
  assert peft_files.sections(again) == {
    "prefix_0": dict(
      type="prefix",
      target="groups/layer_0/attn/key/kernel|groups/layer_1/attn/key/kernel",
      length=LENGTH,
    )
  }


def test_a_prefix_of_another_model_is_named(tmp_path):
  write(tmp_path, KEYS, prefix())
  other = jax.ShapeDtypeStruct((2, WIDTH, 1, 3), np.float32)
  with pytest.raises(UserError, match="4 layers of 1 heads of 3"):
    peft_files.read_adapter(tmp_path, KEYS, dict.fromkeys(KEYS, other))
  with pytest.raises(UserError, match="needs a causal language model"):
    peft_files.read_adapter(tmp_path, LLAMA, {"blocks/query/kernel": KERNEL})
  first = {path: leaf for path, leaf in prefix().items() if "layer_0" in path}
  with pytest.raises(UserError, match="in every layer, but groups/layer_1/attn/ has none"):
    write(tmp_path / "new", KEYS, first)


def test_of_p_tuning_what_its_maps_make(tmp_path):
  eye = np.eye(6, dtype=np.float32)
  maps = {f"lm/prompt_kernel_{i}": (i + 1.0) * eye for i in range(3)}
  maps |= {f"lm/prompt_bias_{i}": np.full(6, -6.0 * i, np.float32) for i in range(3)}
  learned = np.repeat(np.array([[7.0], [2.0]], np.float32), 6, axis=1)
  _, tensors = write(tmp_path, {}, maps | {"lm/prompt": learned})
  # 7 → 14 - 6 = 8 → 24 - 12; 2 → 4 - 6, which ReLU makes 0
  np.testing.assert_array_equal(tensors["prompt_embeddings"][:, 0], [12.0, -12.0])


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING"])
def test_a_prompt(tmp_path, kind):
  table = {"lm/embedding": Tensor("wte.weight")}
  leaves = {"lm/prompt": np.arange(12, dtype=np.float32).reshape(2, 6)}
  config, tensors = write(tmp_path, table, leaves)
  assert (config["peft_type"], config["num_virtual_tokens"]) == ("PROMPT_TUNING", 2)
  np.testing.assert_array_equal(tensors["prompt_embeddings"], leaves["lm/prompt"])
  (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": kind}))
  embedding = {"lm/embedding": jax.ShapeDtypeStruct((9, 6), np.float32)}
  again = peft_files.read_adapter(tmp_path, table, embedding)
  np.testing.assert_array_equal(again["lm/prompt"], leaves["lm/prompt"])
  section = dict(type="prompt", target="lm/embedding", length=2)
  assert peft_files.sections(again) == {"prompt_0": section}
  narrow = {"lm/embedding": jax.ShapeDtypeStruct((9, 5), np.float32)}
  with pytest.raises(UserError, match=r"\(2, 6\) are not 5 wide"):
    peft_files.read_adapter(tmp_path, table, narrow)


def test_one_file_holds_one_kind(tmp_path):
  with pytest.raises(UserError, match="one kind of adapter; here are 2"):
    write(tmp_path, KEYS, prefix() | {"lm/prompt": np.ones((2, 6), np.float32)})


def test_the_sections_of_several_ranks():
  leaves = adapters(LLAMA)
  leaves |= {
    "blocks/key/lora_a": np.ones((2, WIDTH, 3), np.float32),
    "blocks/key/lora_scale": np.full(2, 4.0, np.float32),
    "blocks/key/lora_dropout": np.full(2, 0.1, np.float32),
  }
  assert peft_files.sections(leaves) == {
    "lora_0": dict(type="lora", target="blocks/query/kernel", rank=2, alpha=4.0, dropout=0.0),
    "lora_1": dict(type="lora", target="blocks/key/kernel", rank=3, alpha=12.0, dropout=0.1),
  }


def test_parity_with_the_original(golden_folder):
  results = list(lora.lora(Case(golden_folder("lora"), "llama_lora")))
  assert len(results) == 5
  assert [result for result in results if not result.passed] == []
