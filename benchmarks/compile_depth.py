r"""Time to compile a train step over the depth of its language model.

python benchmarks/compile_depth.py --depths 4 32
python benchmarks/compile_depth.py --depths 4 32 --topology v5e:2x2

Without a topology for the devices that are here, with one for TPUs that are not (the extra `aot`).
Nothing runs: a step is lowered from shapes and compiled, each depth in a process of its own.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import jax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from medflax import config as config_lib
from medflax.analysis.programs import train
from medflax.build import build
from medflax.tools.aot import topology_devices

ROOT = pathlib.Path(__file__).resolve().parent.parent
MANY = [("mesh.data", "1"), ("mesh.fsdp", "-1"), ("optimizer.accumulate", "1")]


def one(flags: argparse.Namespace, depth: int) -> dict[str, float]:
  """Seconds of the clock and of the CPU to lower and compile a step."""
  devices = None
  if flags.topology:
    jax.config.update("jax_platforms", "cpu")
    _, devices = topology_devices(flags.topology)
  overrides = [*MANY, ("model.lm.depth", str(depth)), ("train.batch_size", str(flags.rows))]
  parts = build(config_lib.load_config(flags.config, overrides), devices=devices)
  program = train(parts)
  clock, cpu = time.monotonic(), time.process_time()
  program.compile(parts)
  return {"seconds": time.monotonic() - clock, "cpu_seconds": time.process_time() - cpu}


def main() -> int:
  """Prints a row for each depth, times beside those of the first."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("--config", default="configs/flamingo_med.py:variant=tiny")
  parser.add_argument("--topology", default="", help="such as v5e:2x2")
  parser.add_argument("--rows", type=int, default=16)
  parser.add_argument("--depths", type=int, nargs="+", default=[4, 32])
  flags = parser.parse_args()
  if len(flags.depths) == 1:
    print(json.dumps(one(flags, flags.depths[0])))
    return 0
  print(f"{'layers':<8}{'clock, s':>10}{'CPU, s':>10}{'of first':>10}")
  found: dict[int, dict[str, float]] = {}
  for depth in flags.depths:
    command = [sys.executable, __file__, "--config", flags.config, "--topology", flags.topology]
    command += ["--rows", str(flags.rows), "--depths", str(depth)]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found[depth] = json.loads(out.splitlines()[-1])
    share = found[depth]["cpu_seconds"] / found[flags.depths[0]]["cpu_seconds"]
    seconds, cpu = found[depth]["seconds"], found[depth]["cpu_seconds"]
    print(f"{depth:<8}{seconds:>10.1f}{cpu:>10.1f}{share:>10.2f}", flush=True)
  print(json.dumps({"config": flags.config, "topology": flags.topology, "depths": found}))
  return 0


if __name__ == "__main__":
  sys.exit(main())
