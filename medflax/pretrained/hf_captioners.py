"""GIT of Hugging Face (Med-GIT's model) ⇄ `medflax.models.captioner`."""

from collections.abc import Mapping as AnyMapping
from typing import Any

from medflax.pretrained import hf_encoders, hf_vision
from medflax.pretrained.mapping import Mapping, Tensor
from medflax.utils import UserError, pick

IGNORE = r".*position_ids"


def config_from_hf(hf: AnyMapping[str, Any]) -> dict[str, Any]:
  """The fields of a `Captioner`, `tower` and `text` as sections, from a `config.json`.

  Raises:
    UserError: for another model type or activation.
  """
  if hf["model_type"] != "git":
    raise UserError(f"config.json: model_type {hf['model_type']!r} is no captioner; known: git")
  vision = {**hf["vision_config"], "model_type": "clip_vision_model"}  # a CLIP ViT in all but name
  return dict(
    tower=hf_vision.config_from_hf(vision) | dict(output="tokens"),
    text=dict(
      vocab_size=hf["vocab_size"],
      width=hf["hidden_size"],
      depth=hf["num_hidden_layers"],
      heads=hf["num_attention_heads"],
      mlp_width=hf["intermediate_size"],
      max_positions=hf["max_position_embeddings"],
      activation=pick(hf_vision.ACTIVATIONS, hf["hidden_act"], "hidden_act"),
      norm_eps=hf["layer_norm_eps"],
    ),
    frames=hf.get("num_image_with_embedding") or 0,
    norm_eps=vision["layer_norm_eps"],
  )


def mapping(section: AnyMapping[str, Any]) -> Mapping:
  """Where each leaf of a `Captioner` with these fields stands in the checkpoint."""
  tower = hf_vision.mapping(section["tower"], "git.image_encoder.vision_model.")
  project = "git.visual_projection.visual_projection."
  out = {f"tower/{name}": tensor for name, tensor in tower.items()}
  out |= hf_vision.linear("project", f"{project}0") | hf_vision.norm("project_norm", f"{project}1")
  out |= {
    "text/embedding": Tensor("git.embeddings.word_embeddings.weight"),
    "text/positions": Tensor("git.embeddings.position_embeddings.weight"),
    **hf_vision.norm("text/embedding_norm", "git.embeddings.LayerNorm"),
    **hf_vision.linear("text/head", "output"),
    **hf_encoders.layers("text/layers/", "git.encoder.layer.{}.", section["text"]),
  }
  if section["frames"]:
    # [1, 1, width] each: their rows are stacked as layers are
    frames = tuple(range(section["frames"]))
    out["frame_embedding"] = Tensor(
      "git.img_temporal_embedding.{}", layers=frames, shape=(1, 1, -1)
    )
  return out
