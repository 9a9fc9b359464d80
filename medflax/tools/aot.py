r"""Compiles a config's programs for TPUs that are not there, and tells what they would cost.

python -m medflax.tools.aot --config=configs/flamingo_med.py:variant=9b --topology=v5e:4x4 \
  --config.train.batch_size=64 --config.optimizer.accumulate=1
python -m medflax.tools.aot --config=configs/radfm.py:variant=full --topology=v5p:4x4x4 \
  --programs=train --find-batch --json=radfm.json

Runs on any CPU with libtpu (the extra `aot`); no weight is ever made. Memory is what the compiler
laid out, bytes and communication are read from the compiled program, arithmetic is counted; the
seconds are a roofline: no run can be faster, and docs/scaling.md says what makes it slower.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from medflax import config as config_lib
from medflax.analysis import flops, hlo, programs, traffic
from medflax.analysis.collectives import collectives
from medflax.analysis.hardware import GIB, Chip, check_topology
from medflax.analysis.roofline import roofline, utilisation
from medflax.build import Parts, build
from medflax.flags import Parser
from medflax.parallel.mesh import make_mesh
from medflax.parallel.sharding import batch_sharding
from medflax.summary import describe_mesh, describe_parameters
from medflax.utils import UserError, pick, write_atomic

Report = dict[str, Any]

# libtpu asks the cloud what machine it is on, and holds a lock: compiling needs neither.
LIBTPU = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_MIN_LOG_LEVEL": "3",
}


def topology_devices(name: str, slices: int = 1) -> tuple[Chip, list[Any]]:
  """The chip of a slice such as `v5e:4x4`, and devices to compile for, of `slices` of them.

  Raises:
    UserError: for an unknown topology, or without libtpu.
  """
  chip = check_topology(name)
  for variable, value in LIBTPU.items():
    os.environ.setdefault(variable, value)
  try:  # jax would look for it, and tell at length that it is not there
    import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise UserError("compiling for TPUs needs libtpu: pip install 'medflax[aot]'") from None
  from jax.experimental import topologies

  options = {"num_slices": slices} if slices > 1 else {}
  try:
    topology = topologies.get_topology_desc(topology_name=name, platform="tpu", **options)
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f"libtpu knows no topology {name!r}: {str(error).splitlines()[0]}") from None
  return chip, list(topology.devices)


def analyse(name: str, parts: Parts, chip: Chip) -> Report:
  """Compiles one of `programs.PROGRAMS` for the parts' mesh; a JSON-like tree of its costs.

  Bytes and seconds are of one chip, operations of all.
  """
  program = programs.PROGRAMS[name](parts)
  began = time.monotonic(), time.process_time()
  whole = flops.total(program.counts)
  report: Report = {
    "program": name,
    "rows": program.rows,
    "tokens": program.tokens,
    "flops": {
      "forward": whole.forward,
      "activation_gradient": whole.activation_gradient,
      "weight_gradient": whole.weight_gradient,
      "model": whole.total,
      "executed": program.executed,
      "parts": {part: cost.total for part, cost in program.counts.items()},
    },
  }
  try:
    compiled = program.compile(parts)
  except programs.DoesNotFitError as error:
    return report | {"fits": False, "memory": {"peak": error.needed, "capacity": error.capacity}}
  memory = programs.memory_of(compiled)
  module = hlo.parse(compiled.as_text())
  sent = collectives(module, parts.mesh.shape)
  moved, chips = traffic.bytes_moved(module), parts.mesh.size
  roofs = roofline(chip, program.executed / chips, moved, sent, parts.mesh)
  return report | {
    "fits": memory["peak"] <= chip.hbm,
    "compile_seconds": time.monotonic() - began[0],
    "compile_cpu_seconds": time.process_time() - began[1],
    "memory": memory | {"capacity": chip.hbm},
    "bytes_moved": moved,
    "uncounted_loops": module.uncounted(),
    "collectives": [
      {"kind": c.kind, "axes": list(c.axes), "times": c.times, "bytes": c.bytes} for c in sent
    ],
    "roofline": {
      "compute": roofs.compute,
      "memory": roofs.memory,
      "communication": {"+".join(axes): s for axes, s in roofs.communication.items()},
      "bound": roofs.bound,
      "seconds": roofs.seconds,
      "seconds_without_overlap": roofs.without_overlap,
      "mfu": utilisation(chip, whole.total / chips, roofs.seconds),
      "mfu_without_overlap": utilisation(chip, whole.total / chips, roofs.without_overlap),
    },
  }


def find_batch(config: ml_collections.ConfigDict, devices: Sequence[Any], chip: Chip) -> int:
  """The largest batch whose training step fits, all micro-batches together; 0 if none does.

  It is a multiple of what the mesh splits rows into, and of `optimizer.accumulate`.
  """
  unit = _row_shards(config, devices) * config.optimizer.accumulate

  def memory(rows: int) -> int | float:
    report = analyse("train", build(_with_batch(config, rows * unit), devices=devices), chip)
    need = report["memory"]["peak"]
    print(f"  batch {rows * unit}: {need / GIB:.2f} GiB", file=sys.stderr, flush=True)
    return need

  return unit * programs.largest(memory, chip.hbm)


def _row_shards(config: ml_collections.ConfigDict, devices: Sequence[Any]) -> int:
  """Into how many parts the mesh splits the rows of a batch."""
  mesh = make_mesh(config.mesh, devices)
  (axes,) = batch_sharding(mesh).spec
  return math.prod(mesh.shape[axis] for axis in axes)


def _with_batch(config: ml_collections.ConfigDict, rows: int) -> ml_collections.ConfigDict:
  changed = ml_collections.ConfigDict(config)  # a copy
  with changed.unlocked():
    changed.train.batch_size = rows
  return changed


def told(report: Mapping[str, Any]) -> str:
  """One program's report in words."""
  memory, work = report["memory"], report["flops"]
  parts = " · ".join(f"{part} {cost / work['model']:.0%}" for part, cost in work["parts"].items())
  lines = [
    f"{report['program']}: {report['rows']:,} rows, {report['tokens']:,} tokens",
    f"  arithmetic   {_si(work['model'])}FLOP: forward {_si(work['forward'])}, gradients of "
    f"activations {_si(work['activation_gradient'])}, of weights {_si(work['weight_gradient'])}; "
    f"executed {_si(work['executed'])}",
    f"               {parts}",
  ]
  peak, capacity = memory["peak"] / GIB, memory["capacity"] / GIB
  if "roofline" not in report:
    return "\n".join([*lines, f"  memory       does not fit: {peak:.2f} of {capacity:.2f} GiB"])
  roofs = report["roofline"]
  sizes = (f"{name} {memory[name] / GIB:.2f}" for name in ("arguments", "temporaries", "outputs"))
  verdict = "" if report["fits"] else ", which does not fit"
  lines += [
    f"  memory       peak {peak:.2f} of {capacity:.2f} GiB a chip{verdict}: {', '.join(sizes)}",
    f"  bytes moved  {_si(report['bytes_moved'])}B a chip",
  ]
  if uncounted := report["uncounted_loops"]:
    lines.append(
      f"  loops        {len(uncounted)} do not say how often they run; what they move and send "
      f"counts once: {', '.join(uncounted)}"
    )
  for one in report["collectives"]:
    where = "+".join(one["axes"])
    lines.append(
      f"  {one['kind']:<18} along {where}: {one['times']:,.0f} times, {_si(one['bytes'])}B a chip"
    )
  sent = " · ".join(f"{axes} {_ms(s)}" for axes, s in roofs["communication"].items())
  lines += [
    f"  roofline     compute {_ms(roofs['compute'])} · memory {_ms(roofs['memory'])}"
    + (f" · {sent}" if sent else ""),
    f"  step         at least {_ms(roofs['seconds'])} ({roofs['bound']}; model FLOPs utilisation "
    f"{roofs['mfu']:.0%}), {_ms(roofs['seconds_without_overlap'])} without overlap "
    f"({roofs['mfu_without_overlap']:.0%})",
    f"  compiled in  {report['compile_seconds']:.0f} s "
    f"({report['compile_cpu_seconds']:.0f} s of CPU time)",
  ]
  return "\n".join(lines)


def _si(value: int | float) -> str:
  for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if value >= factor:
      return f"{value / factor:.3g} {unit}"
  return f"{value:.3g} "


def _ms(seconds: int | float) -> str:
  return f"{seconds * 1e3:,.3g} ms"


def _parser() -> Parser:
  parser = Parser("medflax.tools.aot", __doc__)
  parser.add_argument("--config", required=True, metavar="FILE.py[:ARG=VALUE,…]")
  parser.add_argument("--topology", required=True, help="such as v5e:4x4 or v5p:4x4x4")
  parser.add_argument("--slices", type=int, default=1, help="of the topology, over the network")
  parser.add_argument(
    "--programs", default=",".join(programs.PROGRAMS), help="default: %(default)s"
  )
  parser.add_argument("--find-batch", action="store_true", help="the largest that trains")
  parser.add_argument("--json", default="", metavar="FILE", help="writes all of it there too")
  return parser


def run(flags: Any, overrides: Sequence[tuple[str, str]]) -> Report:
  """What is asked, printed as it comes; the whole as a JSON-like tree."""
  for name in flags.programs.split(","):
    pick(programs.PROGRAMS, name, "program")
  config = config_lib.load_config(flags.config, overrides)
  config_lib.validate(config)
  chip, devices = topology_devices(flags.topology, flags.slices)
  if flags.find_batch:
    config = _with_batch(config, find_batch(config, devices, chip))
    if not config.train.batch_size:
      raise UserError(f"no batch fits {flags.topology}; take more chips, or split weights further")
  parts = build(config, devices=devices)
  print(f"{config.name} {config.variant}: {describe_parameters(parts.state)}")
  print(f"{flags.topology}{f' × {flags.slices}' * (flags.slices > 1)}: {describe_mesh(parts.mesh)}")
  report: Report = {
    "config": flags.config,
    "overrides": dict(overrides),
    "topology": flags.topology,
    "slices": flags.slices,
    "chips": parts.mesh.size,
    "mesh": dict(parts.mesh.shape),
    "programs": [],
  }
  for name in flags.programs.split(","):
    one = analyse(name, parts, chip)
    print(told(one), flush=True)
    report["programs"].append(one)
  if flags.json:
    write_atomic(flags.json, json.dumps(report, indent=1) + "\n")
  return report


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, 1 if a program does not fit, 2 for a mistake of the user's."""
  jax.config.update("jax_platforms", "cpu")  # an accelerator that is here plays no part
  try:
    report = run(*_parser().parse(argv))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0 if all(one["fits"] for one in report["programs"]) else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
