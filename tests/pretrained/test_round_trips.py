"""Import, export and import again lose no bit, whatever the sizes of a family's model."""

import json
import pathlib
import tempfile

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings

from medflax.pretrained import hugging_face, open_clip
from medflax.pretrained.checkpoint import Options, under
from medflax.pretrained.files import open_checkpoint
from medflax.pretrained.leaves import abstract_leaves
from medflax.pretrained.mapping import to_theirs
from medflax.tools import export_weights, import_weights

DTYPES = (np.float32, np.float16, jnp.bfloat16)


def llama(draw, **fields):
  heads, head_dim = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([2, 4]))
  return (
    dict(
      vocab_size=draw(st.integers(3, 9)),
      hidden_size=draw(st.sampled_from([heads * head_dim, 8 * heads])),
      num_hidden_layers=draw(st.integers(1, 4)),
      num_attention_heads=heads,
      num_key_value_heads=draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
      head_dim=head_dim,
      intermediate_size=draw(st.integers(1, 9)),
      tie_word_embeddings=draw(st.booleans()),
      rms_norm_eps=1e-6,
      layer_norm_eps=1e-6,
      hidden_act="silu",
      max_position_embeddings=6,
    )
    | fields
  )


def classic(draw, **fields):
  """As many heads of keys as of queries, and no width of their own."""
  hf = llama(draw)
  heads = hf["num_attention_heads"]
  return hf | dict(hidden_size=4 * heads, num_key_value_heads=heads, head_dim=None) | fields


def gpt2(draw, **fields):
  hf = classic(draw)
  return (
    dict(
      vocab_size=hf["vocab_size"],
      n_embd=hf["hidden_size"],
      n_head=hf["num_attention_heads"],
      n_layer=hf["num_hidden_layers"],
      n_inner=draw(st.sampled_from([None, 5])),
      n_positions=7,
      layer_norm_epsilon=1e-5,
      tie_word_embeddings=hf["tie_word_embeddings"],
    )
    | fields
  )


def mpt(draw, **fields):
  hf = classic(draw)
  return (
    dict(
      vocab_size=hf["vocab_size"],
      d_model=hf["hidden_size"],
      n_heads=hf["num_attention_heads"],
      n_layers=hf["num_hidden_layers"],
      no_bias=True,
      tie_word_embeddings=hf["tie_word_embeddings"],
    )
    | fields
  )


def bert(draw, **fields):
  kinds = [["BertModel"], ["BertForMaskedLM"], ["BertForPreTraining"]]
  return (
    classic(draw, hidden_act="gelu", type_vocab_size=2)
    | dict(architectures=draw(st.sampled_from(kinds)))
    | fields
  )


def t5(draw, **fields):
  hf = classic(draw)
  return (
    dict(
      vocab_size=hf["vocab_size"],
      d_model=draw(st.integers(2, 9)),
      d_kv=draw(st.integers(1, 4)),
      d_ff=draw(st.integers(1, 9)),
      num_heads=hf["num_attention_heads"],
      num_layers=hf["num_hidden_layers"],
      num_decoder_layers=draw(st.integers(1, 3)),
      relative_attention_num_buckets=4,
      relative_attention_max_distance=8,
      feed_forward_proj=draw(st.sampled_from(["relu", "gated-gelu"])),
      tie_word_embeddings=hf["tie_word_embeddings"],
    )
    | fields
  )


def pix2struct(draw):
  side = lambda: dict(hidden_size=8, d_ff=draw(st.integers(1, 9)), d_kv=3, dense_act_fn="gelu_new")
  layers = lambda: draw(st.integers(1, 3))
  vision = side() | dict(num_attention_heads=2, num_hidden_layers=layers(), seq_len=5)
  text = side() | dict(num_heads=2, num_layers=layers(), vocab_size=draw(st.integers(3, 9)))
  text |= dict(relative_attention_num_buckets=4, relative_attention_max_distance=8)
  vision["patch_embed_hidden_size"] = draw(st.integers(1, 12))
  return dict(vision_config=vision | dict(model_type="pix2struct_vision_model"), text_config=text)


def vit(draw, **fields):
  patch = draw(st.sampled_from([2, 3]))
  vision = dict(patch_size=patch, image_size=patch * draw(st.integers(1, 3)), num_channels=3)
  return classic(draw, hidden_act="gelu", mlp_ratio=2) | vision | fields


def swin(draw):
  depths = draw(st.sampled_from([[2], [1, 2]]))
  return dict(
    image_size=8,
    patch_size=2,
    embed_dim=4,
    depths=depths,
    num_heads=[1, 2][: len(depths)],
    window_size=2,
    mlp_ratio=draw(st.sampled_from([1.0, 2.0])),
    hidden_act="gelu",
    layer_norm_eps=1e-5,
  )


def git(draw):
  frames = draw(st.sampled_from([None, 2]))
  return classic(draw, hidden_act="gelu") | dict(
    vision_config=vit(draw) | dict(model_type="git_vision_model"), num_image_with_embedding=frames
  )


FAMILIES = {
  "llama": lambda draw: llama(draw, attention_bias=draw(st.booleans())),
  "mistral": lambda draw: llama(draw, sliding_window=3),
  "qwen2": llama,
  "qwen3": llama,
  "gemma": llama,
  "gemma2": llama,
  "gemma3_text": llama,
  "phi": classic,
  "gpt_neox": lambda draw: classic(draw, hidden_act="gelu"),
  "biogpt": lambda draw: classic(draw, hidden_act="gelu"),
  "opt": lambda draw: classic(
    draw, ffn_dim=5, word_embed_proj_dim=draw(st.sampled_from([None, 3]))
  ),
  "gpt2": gpt2,
  "gptj": lambda draw: gpt2(draw, rotary_dim=2),
  "mpt": lambda draw: mpt(draw, attn_config=dict(qk_ln=draw(st.booleans()))),
  "mosaic_gpt": lambda draw: mpt(draw, alibi=True),
  "bert": bert,
  "roberta": bert,
  "t5": t5,
  "mt5": t5,
  "pix2struct": pix2struct,
  "clip_vision_model": vit,
  "siglip_vision_model": vit,
  "vit": vit,
  "dinov2": vit,
  "swin": swin,
  "git": git,
}


def test_every_family_is_here():
  assert FAMILIES.keys() == hugging_face.FAMILIES.keys()


def random_tensors(mapping, leaves, dtype):
  """A checkpoint of random numbers by a table."""
  rng = np.random.default_rng(0)
  ours = {path: rng.standard_normal(leaf.shape).astype(dtype) for path, leaf in leaves.items()}
  return {key: np.ascontiguousarray(x) for key, x in to_theirs(mapping, ours).items()}


def bits(x):
  return np.ascontiguousarray(x).view(np.uint8)


def assert_round_trip(source, path, theirs, folder, *flags):
  def run(tool, *args):
    assert tool.main([str(arg) for arg in args]) == 0

  run(import_weights, source, path, "--to", folder / "ours", *flags)
  run(export_weights, folder / "ours", "--to", folder / "back")
  back = open_checkpoint(folder / "back")
  assert back.keys() == theirs.keys()
  for key, x in theirs.items():
    assert back[key].dtype == x.dtype
    np.testing.assert_array_equal(bits(back[key]), bits(x), err_msg=key)
  again = folder / "back" if path.is_dir() else folder / "back" / "model.safetensors"
  run(import_weights, source, again, "--to", folder / "again", *flags)
  for name in (import_weights.WEIGHTS, import_weights.CONFIG):
    assert (folder / "again" / name).read_bytes() == (folder / "ours" / name).read_bytes()


QUICK = ("gemma2", "gpt2", "gpt_neox", "bert", "t5", "vit")
SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family not in QUICK]


@pytest.fixture(autouse=True, scope="module")
def in_no_hurry_to_the_disk():
  """What is written here need not outlive a power cut; a busy disk takes long to tell."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("os.fsync", lambda _: None)
    yield


@pytest.mark.parametrize("family", [*QUICK, *SLOW])
@settings(max_examples=2)
@given(data=st.data())
def test_hugging_face(family, data):
  hf = {"model_type": family, **FAMILIES[family](data.draw)}
  every, dtype = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(DTYPES))
  fit = hugging_face.FAMILIES[family](hf, Options(xattn_every=every))
  leaves = abstract_leaves({fit.part: fit.section}, **fit.beside)
  theirs = random_tensors(under(fit.part, fit.mapping), leaves, dtype)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    path = folder / "theirs"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(hf))
    safetensors.numpy.save_file(theirs, path / "model.safetensors")
    assert_round_trip("hugging_face", path, theirs, folder, "--xattn-every", every)


VIT = dict(width=64, layers=1, patch_size=2, image_size=4, mlp_ratio=2.0)


@pytest.mark.parametrize(
  ("source", "section", "mapping"),
  [
    ("open_clip", open_clip.config_from_open_clip(dict(vision_cfg=VIT)), open_clip.mapping),
    ("pmc_clip", open_clip.resnet_config((1, 2), width=4), open_clip.resnet_mapping),
    ("open_clip", open_clip.resnet_config((2, 1, 1), width=2), open_clip.resnet_mapping),
  ],
)
def test_clip(tmp_path, source, section, mapping):
  table = under("tower", mapping(section))
  theirs = random_tensors(table, abstract_leaves({"tower": section}), np.float16)
  safetensors.numpy.save_file(theirs, tmp_path / "clip.safetensors")
  assert_round_trip(source, tmp_path / "clip.safetensors", theirs, tmp_path)
