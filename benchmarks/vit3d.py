"""Times RadFM's 3D vision tower beside the same in torch; prints a Markdown table.

python benchmarks/vit3d.py --peer /path/to/a/python/with/vit-pytorch

A volume of 64 × 256 × 256 voxels, forward, float32, random weights. The peer is vit-pytorch's 3D
ViT, whose copy RadFM uses; `peers/open_flamingo_torch.py` says what it needs.
"""

import argparse
import pathlib
import sys

import flax.linen as nn
import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.side_by_side import COLUMNS, Peer, compare, print_table, timed
from configs import radfm
from medflax.models.vision.vit import ViT


def tower() -> ViT:
  """The published tower."""
  fields = radfm.get_config("variant=full").model.tower.to_dict()
  del fields["type"]
  return ViT(**fields)


def main() -> None:
  """Prints one row."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--peer", required=True, help="a Python with torch and vit-pytorch")
  parser.add_argument("--rounds", type=int, default=9)
  flags = parser.parse_args()
  model = tower()
  x = jax.random.uniform(jax.random.key(1), (1, 64, 256, 256, 3))
  params = nn.unbox(jax.jit(model.init, static_argnums=2)(jax.random.key(0), x, "volume"))
  forward = jax.jit(model.apply, static_argnums=2)
  peer = Peer(flags.peer, "vit3d")
  times = compare(
    lambda: timed(lambda: forward(params, x, "volume")), lambda: peer.time("forward"), flags.rounds
  )
  peer.close()
  tables = sum(
    leaf.size
    for path, leaf in jax.tree.leaves_with_path(params)
    if "position" in jax.tree_util.keystr(path)
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(params)) - tables
  if count != peer.facts["parameters"]:
    raise SystemExit(f"{count} parameters, but the peer has {peer.facts['parameters']}")
  title = f"{peer.facts['versions']}, {count:,} parameters without those of positions"
  print_table(title, [("forward", *times.row())], ("", *COLUMNS))


if __name__ == "__main__":
  main()
