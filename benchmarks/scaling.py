"""What training at full size would cost on TPU slices of 8 to 1,024 chips; prints Markdown tables.

python benchmarks/scaling.py --reports DIR [--compile v5e:4x4,v5p:4x4x4,v6e:16x16] [--picture FILE]

The arithmetic of each model is counted, the rest estimated (`medflax.analysis.scaling`); what
`--compile` names is compiled by `medflax.tools.aot`, which needs libtpu, and its reports are kept
in DIR: what is there already is not compiled again. The picture needs matplotlib.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys

import jax.numpy as jnp

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from medflax import config as config_lib
from medflax.analysis.hardware import CHIPS, GIB
from medflax.analysis.programs import train
from medflax.analysis.scaling import Work, estimate, suggest_mesh, work_of
from medflax.build import build

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Rows on each chip: some 4,000 tokens of text. Flamingo's rows are those of `data=folder`, 512
# tokens and five images: prompts of four examples.
FLAMINGO = "configs/flamingo_med.py:data=folder,variant="
MODELS = {
  "3b": (f"{FLAMINGO}3b", 8),
  "9b": (f"{FLAMINGO}9b", 8),
  "RadFM-14B": ("configs/radfm.py:variant=full", 2),
  "MedVInT-TD": ("configs/medvint.py:head=td,variant=full", 8),
}
# Slices by chips: (topology, how many of them).
SLICES = {
  "v5e": {8: ("2x4", 1), 16: ("4x4", 1), 64: ("8x8", 1), 256: ("16x16", 1), 1024: ("16x16", 4)},
  "v5p": {8: ("2x2x2", 1), 64: ("4x4x4", 1), 256: ("4x8x8", 1), 1024: ("8x8x16", 1)},
  "v6e": {8: ("2x4", 1), 16: ("4x4", 1), 64: ("8x8", 1), 256: ("16x16", 1), 1024: ("16x16", 4)},
}
ONE_DEVICE = [("mesh.data", "1"), ("mesh.fsdp", "1"), ("optimizer.accumulate", "1")]


def work(config: str) -> Work:
  """Counts a step of one row; nothing is compiled."""
  overrides = [*ONE_DEVICE, ("train.batch_size", "1")]
  parts = build(config_lib.load_config(config, overrides))
  program = train(parts)
  itemsize = jnp.dtype(parts.config.model.dtype).itemsize
  return work_of(parts.state, program.counts, program.executed, 1, itemsize)


def compiled(reports: pathlib.Path, name: str, topology: str, slices: int, wanted: bool) -> dict:
  """The report of a step that was, or is now to be, compiled; {} for none."""
  path = reports / f"{name}_{topology.replace(':', '_')}_{slices}.json"
  config, rows = MODELS[name]
  chips = slices * math.prod(map(int, topology.partition(":")[2].split("x")))
  if wanted and not path.exists():
    command = [sys.executable, "-m", "medflax.tools.aot", f"--config={config}", "--programs=train"]
    command += [f"--topology={topology}", f"--slices={slices}", f"--json={path}"]
    command += [f"--config.train.batch_size={rows * chips}", "--config.optimizer.accumulate=1"]
    command += [f"--config.mesh.replica={slices}"] * (slices > 1)
    subprocess.run(command, cwd=ROOT, check=False)
  return json.loads(path.read_text()) if path.exists() else {}


def row(name: str, one: Work, generation: str, chips: int, report: dict) -> str:
  """A line of the table: what was compiled where it was, what is estimated elsewhere."""
  chip, (topology, slices) = CHIPS[generation], SLICES[generation][chips]
  rows = MODELS[name][1]
  guess = estimate(one, chip, list(map(int, topology.split("x"))), slices, rows)
  place = f"{generation}:{topology}{f' × {slices}' * (slices > 1)}"
  if not report:
    fits = f"{guess.held / GIB:.1f} + activations"
    if guess.held > chip.hbm:
      return f"| {name} | {place} | {chips} | {fits} of {chip.hbm / GIB:.1f} | does not fit | | |"
    step, bound, mfu = guess.roofline, guess.roofline.bound, guess.mfu
    times = f"{step.seconds * 1e3:.0f} – {step.without_overlap * 1e3:.0f}"
    return (
      f"| {name} | {place} | {chips} | {fits} | {times} | {bound} | {mfu[1]:.0%} – {mfu[0]:.0%} |"
    )
  (step,) = report["programs"]
  peak = f"**{step['memory']['peak'] / GIB:.1f}** of {step['memory']['capacity'] / GIB:.1f}"
  if not step["fits"]:
    return f"| {name} | {place} | {chips} | {peak} | does not fit | | |"
  roofs = step["roofline"]
  times = f"{roofs['seconds'] * 1e3:.0f} – {roofs['seconds_without_overlap'] * 1e3:.0f}"
  mfu = f"{roofs['mfu_without_overlap']:.0%} – {roofs['mfu']:.0%}"
  return f"| {name} | {place} | {chips} | {peak} | {times} | {roofs['bound']} | {mfu} |"


def picture(path: str, works: dict[str, Work], reports: pathlib.Path) -> None:
  """Weak scaling: rows a second of each chip over their number; what was compiled as crosses."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(1, len(works), figsize=(3.2 * len(works), 3.2), layout="constrained")
  for panel, (name, one) in zip(axes, works.items(), strict=True):
    rows = MODELS[name][1]
    for generation, slices in SLICES.items():
      chip = CHIPS[generation]
      guesses = [
        estimate(one, chip, list(map(int, shape.split("x"))), count, rows)
        for shape, count in slices.values()
      ]
      fitting = [g for g in guesses if g.held < chip.hbm]
      chips = [g.chips for g in fitting]
      best = [rows / g.roofline.seconds for g in fitting]
      worst = [rows / g.roofline.without_overlap for g in fitting]
      (line,) = panel.plot(chips, best, marker="o", markersize=3, label=generation)
      panel.fill_between(chips, worst, best, alpha=0.25, color=line.get_color(), linewidth=0)
      for count, (shape, number) in slices.items():
        report = compiled(reports, name, f"{generation}:{shape}", number, wanted=False)
        if report and report["programs"][0]["fits"]:
          roofs = report["programs"][0]["roofline"]
          times = [roofs["seconds"], roofs["seconds_without_overlap"]]
          speeds = [report["programs"][0]["rows"] / count / seconds for seconds in times]
          panel.plot([count] * 2, speeds, marker="x", color=line.get_color(), linewidth=0.8)
    panel.set(xscale="log", ylim=(0, None), title=f"{name}, {rows} rows a chip", xlabel="chips")
    panel.set_xticks([8, 16, 64, 256, 1024], ["8", "16", "64", "256", "1,024"])
    panel.minorticks_off()
    panel.grid(alpha=0.3)
  axes[0].set_ylabel("rows per second and chip, at most")
  handles, names = axes[0].get_legend_handles_labels()
  figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
  figure.savefig(path, dpi=110)


def main() -> None:
  """Prints the table of models and that of slices."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("--reports", type=pathlib.Path, required=True)
  parser.add_argument("--compile", default="", help="topologies, commas between")
  parser.add_argument("--models", default=",".join(MODELS))
  parser.add_argument("--picture", default="")
  flags = parser.parse_args()
  flags.reports.mkdir(parents=True, exist_ok=True)
  wanted = flags.compile.split(",")
  works = {name: work(MODELS[name][0]) for name in flags.models.split(",")}
  print("| model | weights | trainable | model FLOP a row | executed | state |")
  print("|---|---|---|---|---|---|")
  for name, one in works.items():
    numbers = f"{one.weights / 1e9:.2f} G | {one.trainable / 1e9:.2f} G"
    print(
      f"| {name} | {numbers} | {one.model / 1e12:.2f} T | {one.executed / 1e12:.2f} T "
      f"| {one.state / GIB:.1f} GiB |"
    )
  print("\n| model | slice | chips | GiB a chip | step, ms | bound | MFU |")
  print("|---|---|---|---|---|---|---|")
  for name, one in works.items():
    for generation, slices in SLICES.items():
      for chips, (shape, count) in slices.items():
        topology = f"{generation}:{shape}"
        report = compiled(flags.reports, name, topology, count, topology in wanted)
        print(row(name, one, generation, chips, report), flush=True)
  print("\n| model | chips of a slice | v5e | v5p | v6e |")
  print("|---|---|---|---|---|")
  for name, one in works.items():
    for chips in (16, 64, 256):
      meshes = (suggest_mesh(one, CHIPS[g], chips) for g in SLICES)
      cells = " | ".join(f"data {m['data']} · fsdp {m['fsdp']}" for m in meshes)
      print(f"| {name} | {chips} | {cells} |")
  if flags.picture:
    picture(flags.picture, works, flags.reports)


if __name__ == "__main__":
  main()
