"""The peer of benchmarks/data_loading.py: torch's DataLoader over the same files and transforms.

Needs torch, Pillow and NumPy, not medflax. Prints one line of JSON.
"""

import argparse
import json
import pathlib
import time

import numpy as np
import PIL.Image
import torch


class Images(torch.utils.data.Dataset):
  """Pictures scaled to fit a square, centred on black: uint8 (3, H, W)."""

  def __init__(self, paths, size, repeats):
    self.paths, self.size, self.repeats = paths, size, repeats

  def __len__(self):
    return len(self.paths) * self.repeats

  def __getitem__(self, index):
    with PIL.Image.open(self.paths[index % len(self.paths)]) as image:
      image = image.convert("RGB")
    scale = self.size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
    square = PIL.Image.new("RGB", (self.size, self.size))
    square.paste(image, ((self.size - width) // 2, (self.size - height) // 2))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


class Volumes(torch.utils.data.Dataset):
  """NIfTI volumes of int16, shown between their percentiles: uint8 (1, D, H, W)."""

  def __init__(self, paths, size, repeats):
    self.paths, self.size, self.repeats = paths, size, repeats

  def __len__(self):
    return len(self.paths) * self.repeats

  def __getitem__(self, index):
    path = self.paths[index % len(self.paths)]
    volume = np.fromfile(path, "<i2", offset=352).reshape(self.size).astype(np.float32)
    step = max(1, volume.size // 1_000_000)
    low, high = np.percentile(volume.reshape(-1)[::step], (1.0, 99.0))
    shown = np.clip((volume - low) / (high - low), 0.0, 1.0)
    return torch.from_numpy(np.rint(shown * 255).astype(np.uint8))[None]


def main():
  """Times windows of batches after one of warm-up."""
  parser = argparse.ArgumentParser()
  parser.add_argument("kind", choices=("image", "volume"))
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--size", type=int, nargs="+")
  parser.add_argument("--batch", type=int)
  parser.add_argument("--batches", type=int)
  parser.add_argument("--windows", type=int)
  parser.add_argument("--workers", type=int)
  flags = parser.parse_args()
  torch.set_num_threads(1)
  paths = sorted(path for path in flags.folder.iterdir() if path.suffix in (".jpg", ".nii"))
  count = flags.batch * flags.batches * (flags.windows + 2)
  repeats = -(-count // len(paths))
  data = {
    "image": lambda: Images(paths, flags.size[0], repeats),
    "volume": lambda: Volumes(paths, tuple(flags.size), repeats),
  }[flags.kind]()
  loader = torch.utils.data.DataLoader(
    data, batch_size=flags.batch, shuffle=True, num_workers=flags.workers
  )
  batches, seconds = iter(loader), []
  for _ in range(flags.windows + 1):
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(flags.batches):
      next(batches)
    seconds.append(((time.perf_counter() - start), time.process_time() - cpu))
  wall, cpu = zip(*seconds[1:], strict=True)
  print(json.dumps({"version": torch.__version__, "wall": wall, "cpu": cpu}))


if __name__ == "__main__":
  main()
