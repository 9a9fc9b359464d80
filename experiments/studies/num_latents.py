"""How many tokens an image or volume is given by the resampler; RadFM has 32."""

from experiments.study import vary, zipped

CONFIG = "configs/radfm.py"
BASELINE = "num_latents=4,media_tokens=4"
METRICS = tuple(f"{task}/0shot/exact_match" for task in ("finding", "modality", "modality_3d"))
SEEDS = (0, 1, 2)


def runs():
  counts = (1, 2, 4, 8, 16)
  return zipped(
    vary("config.model.connector.num_latents", counts), vary("config.data.media_tokens", counts)
  )
