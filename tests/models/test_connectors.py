import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from medflax.models import CONNECTORS
from medflax.models.vision.vit import ViTBlock
from medflax.pretrained import connectors, hf_vision, open_clip, open_flamingo
from medflax.pretrained.mapping import to_ours, to_theirs
from tests.golden_cases import vision
from tests.golden_cases.base import Case, abstract_leaves, compare, import_weights
from tests.golden_cases.vision import AS_IS, COUNTERS, apply, connect, encode, random_params

ALL = {
  "perceiver": dict(num_latents=4, depth=1, heads=2, head_dim=4, out_width=6),
  "query_decoder": dict(num_latents=4, depth=2, heads=2, mlp_width=8, in_width=6, out_width=6),
  "mlp": dict(hidden=5, out_width=6),
  "pooled": dict(num_latents=4, out_width=6),
  "mlp_mapper": dict(num_latents=4, out_width=6, hidden=(12,)),
  "transformer_mapper": dict(num_latents=4, out_width=6, num_inputs=2, depth=2, heads=2),
}
ONE_VECTOR = ("mlp_mapper", "transformer_mapper")


def agrees(got, want):
  result = compare("", got, want)
  assert result.passed, result


def init(name, x, **fields):
  model = CONNECTORS[name](**ALL[name] | fields)
  return model, random_params(model, x)


def tokens(name, m=2):
  v = 1 if name in ONE_VECTOR else 16
  return jax.random.normal(jax.random.key(1), (2, m, 1, v, 8))


@pytest.mark.parametrize("name", CONNECTORS)
def test_media_are_connected_on_their_own_to_the_width_asked(name):
  x = tokens(name, m=3)
  model, params = init(name, x)
  y, other = apply(model, params, x), apply(model, params, x.at[:, 1].set(0))
  assert y.shape == (2, 3, 16 if name == "mlp" else 4, 6)
  assert jnp.isfinite(y).all()
  np.testing.assert_allclose(y[:, [0, 2]], other[:, [0, 2]], atol=1e-4)
  assert not jnp.allclose(y[:, 1], other[:, 1], atol=1e-3)


@pytest.mark.parametrize(
  ("name", "fields", "width", "count"),
  [
    ("query_decoder", dict(num_latents=32, depth=12, heads=8, mlp_width=1024), 1024, 126_060_544),
    ("mlp_mapper", dict(num_latents=8, out_width=1600, hidden=(6400,)), 512, 85_216_000),
    ("mlp_mapper", dict(num_latents=8, out_width=1600, hidden=(6400, 12_800)), 512, 249_068_800),
    ("transformer_mapper", dict(num_latents=8, out_width=1600, num_inputs=4), 512, 167_238_400),
    ("perceiver", dict(num_latents=32, depth=6, out_width=5120), 768, 41_739_776),
  ],
)
def test_the_published_sizes(name, fields, width, count):
  """MedVInT-TD's decoder with its 32 queries, the prefix mappers, RadFM's resampler."""
  x = jnp.zeros((1, 1, 1, 1, width))
  leaves = abstract_leaves(CONNECTORS[name](**fields), x)
  assert sum(leaf.size for leaf in leaves.values()) == count


TABLES = {
  "perceiver": open_flamingo.perceiver,
  "query_decoder": lambda section: connectors.query_decoder(section, 8, MEDVINT),
  "mlp": lambda section: connectors.mlp_projector(connectors.LLAVA),
  "pooled": lambda section: connectors.pooled_projection(),
  "mlp_mapper": connectors.mlp_mapper,
  "transformer_mapper": connectors.transformer_mapper,
}
MEDVINT = connectors.MEDVINT_TD | connectors.MEDVINT_TE  # with the maps of both


@pytest.mark.parametrize("name", CONNECTORS)
def test_every_leaf_goes_there_and_back(name):
  ours = traverse_util.flatten_dict(init(name, tokens(name))[1]["params"], sep="/")
  table = TABLES[name](ALL[name])
  back = to_ours(table, ours, to_theirs(table, ours))
  assert set(back) == set(ours)
  for path, x in back.items():
    np.testing.assert_array_equal(x, ours[path], err_msg=path)


@pytest.mark.parametrize("name", ONE_VECTOR)
def test_mappers_want_one_vector(name):
  x = jnp.zeros((1, 1, 1, 2, 8))
  with pytest.raises(ValueError, match="one vector a media item, not 1·2 tokens"):
    init(name, x)


@pytest.mark.parametrize(("v", "n"), [(15, 4), (16, 5), (9, 4)])
def test_grids_that_do_not_pool_are_named(v, n):
  with pytest.raises(ValueError, match=f"1·{v} visual tokens do not pool to {n}"):
    init("pooled", jnp.zeros((1, 1, 1, v, 8)), num_latents=n)


def test_cells_are_squares_of_the_grid():
  """With a norm that divides by the cell's own value, each cell shows its sign."""
  grid = -jnp.ones((4, 4)).at[:2, 2:].set(-2).at[2:, :2].set(-3)
  model = CONNECTORS["pooled"](num_latents=4, out_width=1)
  params = {"params": {"norm": {"scale": jnp.zeros(1)}, "out": {"kernel": jnp.ones((1, 1))}}}
  y = apply(model, params, grid.reshape(1, 1, 1, 16, 1)).ravel()
  np.testing.assert_allclose(y, [-1, 1, 1, -1], atol=1e-5)


def test_parity_with_radfms_resampler(golden_folder):
  results = list(vision.radfm_connector(Case(golden_folder("radfm"), "perceiver_fc")))
  assert len(results) == 2
  assert not [result for result in results if not result.passed]


@pytest.mark.parametrize("variant", ["plain", "frame_media_embs"])
def test_parity_with_openflamingos_resampler(golden, variant):
  theirs, arrays, config = golden("of_perceiver", variant)
  section = dict(
    type="perceiver",
    num_latents=config["num_latents"],
    depth=config["depth"],
    heads=config["heads"],
    head_dim=config["dim_head"],
    max_frames=config.get("max_num_frames", 0),
    max_media=config.get("max_num_media", 0),
  )
  table = open_flamingo.perceiver(section, prefix="")
  case = next(name.removeprefix("in.") for name in arrays if name.startswith("in."))
  x = jnp.asarray(arrays[f"in.{case}"])
  agrees(connect(section, table, theirs, "", x), arrays[f"out.y_{case}"])


def medvint_tower(theirs, config, x, *, mlp):
  """The tower's features of a MedVInT-TD golden file."""
  rest = rf"(fc_|decoder\.|query_embed|llamacasual).*|{COUNTERS}"
  if config["vision"] == "PMC-CLIP":
    section = open_clip.resnet_config((1, 2, 1), width=8, image_size=x.shape[1]) | AS_IS
    table = open_clip.resnet_mapping(section, "vision_model.", open_clip.SEQUENTIAL_NAMES)
  else:
    clip = dict(model_type="clip_vision_model", hidden_act="quick_gelu", layer_norm_eps=1e-5)
    output = dict(output="class" if mlp else "patches", final_norm=False)
    section = hf_vision.config_from_hf(clip | config["resnet"]) | AS_IS | output
    prefix = "vision_model.vision_model."
    table = hf_vision.mapping(section, prefix)
    rest += "|" + hf_vision.unused(section, prefix)
  return encode(section, table, theirs, rest, x)


@pytest.mark.parametrize("head", ["mlp", "transformer"])
@pytest.mark.parametrize("tower", ["clip", "pmcclip"])
def test_parity_with_medvint_td(golden, tower, head):
  theirs, arrays, config = golden("medvint", f"td_{tower}_{head}")
  x = jnp.asarray(arrays["in.images"]).transpose(0, 2, 3, 1)
  y = medvint_tower(theirs, config, x, mlp=head == "mlp")
  want = arrays["out.image_encoder"]
  agrees(y.mean(1, keepdims=True) if want.shape[1] == 1 else y, want)
  others = r"(vision_model|llamacasual)\..*"
  if head == "mlp":
    section = dict(hidden=y.shape[-1], out_width=config["hidden"], activation="relu", mean=True)
    section, n = section | dict(type="mlp"), 1
    table = connectors.mlp_projector(connectors.MEDVINT_MLP)
  else:
    n = config["queries"]
    section = dict(num_latents=n, depth=2, heads=4, mlp_width=96, out_width=config["hidden"])
    section["type"] = "query_decoder"
    table = connectors.query_decoder(section, y.shape[-1])
  got = connect(section, table, theirs, others, y[:, None, None])
  agrees(got[:, 0], arrays["out.inputs_embeds"][:, :n])


@pytest.mark.parametrize("tower", ["clip", "pmcclip"])
def test_parity_with_medvint_te(golden, tower):
  """By its last outputs: behind the decoder stand one fused block and the vocabulary."""
  theirs, arrays, config = golden("medvint", f"te_{tower}")
  x = arrays["out.image_encoder"]
  x = x[:, 1:] if tower == "clip" else x.reshape(*x.shape[:2], -1).swapaxes(1, 2)
  width = config["embed_dim"]
  section = dict(num_latents=config["queries"], depth=2, heads=4, mlp_width=width)
  section |= dict(type="query_decoder", in_width=width if tower == "pmcclip" else 0)
  table = connectors.query_decoder(section, width, connectors.MEDVINT_TE)
  others = r"(?!qformer_decoder\.|qformer_query|image_embed).*"
  x = jnp.asarray(x)[:, None, None]
  image = connect(section, table, theirs, others, x)[:, 0]
  text = arrays["out.text_encoder"] @ theirs["text_embed.0.weight"].T + theirs["text_embed.0.bias"]
  special = np.broadcast_to(theirs["img_special_token"], (len(text), 1, width))
  fused = jnp.concatenate([text, special, image], axis=1)
  prefix = "fusion_module.resblocks.0."
  block = {
    **hf_vision.norm("attn_norm", f"{prefix}ln_1"),
    **hf_vision.norm("mlp_norm", f"{prefix}ln_2"),
    **hf_vision.fused_attention("", f"{prefix}attn.", width, width),
    **hf_vision.linear("mlp/wi", f"{prefix}mlp.c_fc"),
    **hf_vision.linear("mlp/wo", f"{prefix}mlp.c_proj"),
  }
  model = ViTBlock(8, 4 * width, "gelu")
  leaves = abstract_leaves(model, fused, None)
  params = import_weights(block, leaves, theirs, r"(?!fusion_module).*")
  y = apply(model, params, fused, None)[0][:, : text.shape[1]] @ theirs["mlm_projection"]
  agrees(jax.nn.log_softmax(y), arrays["out.log_probs"])


@pytest.mark.parametrize("variant", ["mlp", "transformer"])
def test_parity_with_prefix_mappers(golden, variant):
  theirs, arrays, config = golden("prefix_vqa", variant)
  n, width = config["prefix_length"], config["gpt2"]["n_embd"]
  section = dict(type=f"{variant}_mapper", num_latents=n, out_width=width)
  if variant == "mlp":
    section |= dict(hidden=(n * width // 2, n * width))
    table = connectors.mlp_mapper(section)
  else:
    section |= dict(
      num_inputs=config["clip_length"], depth=config["num_layers"], heads=config["heads"]
    )
    table = connectors.transformer_mapper(section)
  x = jnp.asarray(arrays["in.prefix"])[:, None, None, None]
  got = connect(section, table, theirs, r"(?!clip_project).*", x)
  agrees(got[:, 0], arrays["out.prefix_projections"])


@pytest.mark.parametrize("variant", ["gemma3_vlm", "llava_mistral"])
def test_parity_of_whole_image_features(golden_folder, variant):
  """Tower and connector: Gemma 3 pools all of SigLIP's, LLaVA takes CLIP's last layer but one."""
  case = Case(golden_folder("beyond"), variant)
  hf, x = case.hf, vision.channels_last(case.arrays["in.pixel_values"])
  section = hf_vision.config_from_hf(hf) | AS_IS
  fields = dict(out_width=hf["text_config"]["hidden_size"])
  if variant == "gemma3_vlm":
    fields |= dict(type="pooled", num_latents=hf["mm_tokens_per_image"])
    table = connectors.pooled_projection()
  else:
    section |= dict(depth=section["depth"] - 1, final_norm=False)
    fields |= dict(type="mlp", hidden=fields["out_width"])
    table = connectors.mlp_projector()
  prefix = "model.vision_tower."
  rest = hf_vision.unused(section, prefix) + r"|model\.(language_model|multi_modal).*|lm_head.*"
  y = encode(section, hf_vision.mapping(section, prefix), case.weights, rest, x)
  got = connect(fields, table, case.weights, r"(?!.*projector).*", y[:, None, None])
  agrees(got[:, 0], case.arrays["out.image_features"])
