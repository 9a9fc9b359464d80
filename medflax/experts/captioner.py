"""Med-GIT: GIT puts a radiology image into words (Wang et al. 2022)."""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from medflax.experts.imported import greedy, in_batches, open_import
from medflax.models.captioner import build_captioner

MAX_NEW_TOKENS = 64


class GitExpert:
  """An imported GIT, such as a fine-tuned `microsoft/git-base`.

  Raises:
    UserError: if the folder is no import of one.
  """

  def __init__(self, folder: str | pathlib.Path, max_new_tokens: int = MAX_NEW_TOKENS):
    """Opens it.

    Args:
      folder: one that `medflax.tools.import_weights` wrote.
      max_new_tokens: of a caption, which also ends where the model has no more positions.
    """
    self._git = open_import(folder, "captioner")
    section = self._git.section
    height, width = section["tower"]["inputs"]["image"]["size"]
    self._size, self._model = (int(height), int(width)), build_captioner(section)
    self._length = min(max_new_tokens, section["text"]["max_positions"] - 1)
    self._tokens = jax.jit(self._caption)

  def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[str]:
    """A caption for each image."""
    frames = max(self._git.section["frames"], 1)
    inputs = [centred(image, self._size)[None].repeat(frames, 0) for image in images]
    read = lambda batch: self._tokens(self._git.params, batch)
    return in_batches(read, inputs, self._git.tokenizer)

  def _caption(self, params, media: Float[Array, "b f h w 3"]) -> Int[Array, "b n"]:
    begin = jnp.full((len(media), 1), self._git.token("bos", 101))
    variables, room = {"params": params}, self._length + 1
    logits, cache = self._model.apply(variables, media, begin, cache_size=room)
    step = lambda token, cache: self._model.apply(variables, token, cache, method="decode_step")
    end = self._git.token("eos", 102)
    return greedy(step, logits[:, -1:], cache, end=end, length=self._length)


def centred(image: UInt8[np.ndarray, "_ _ 3"], size: tuple[int, int]) -> Float[np.ndarray, "H W 3"]:
  """GIT's preparation: the shorter side to `size`, bicubic, and its centre; in [0, 1]."""
  height, width = image.shape[:2]
  scale = max(size[0] / height, size[1] / width)
  new = max(round(height * scale), size[0]), max(round(width * scale), size[1])
  scaled = Image.fromarray(image).resize(new[::-1], Image.Resampling.BICUBIC)
  top, left = ((n - s) // 2 for n, s in zip(new, size, strict=True))
  return np.asarray(scaled, np.float32)[top : top + size[0], left : left + size[1]] / 255
