r"""Trains and evaluates one configuration; run again with the same workdir to resume.

python -m medflax.main --config=configs/flamingo_med.py
python -m medflax.main --config=configs/flamingo_med.py:variant=small,data=folder \
  --config.data.root=DIR --config.optimizer.lr=3e-4 --workdir=runs/mine
"""

import argparse
import gc
import os
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence

from medflax import config as config_lib
from medflax.flags import OVERRIDE, Parser, split_overrides
from medflax.utils import UserError, nearest


def parse_flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
  """Splits the command line into flags and config overrides `("a.b", "text")`.

  Raises:
    UserError: for an unknown flag, a missing value, or no `--config`.
  """
  parser = Parser("medflax.main", __doc__)
  parser.add_argument("--config", required=True, metavar="FILE.py[:ARG=VALUE,...]")
  parser.add_argument("--workdir", help="default: runs/<config>-<time>")
  parser.add_argument("--dry_run", action="store_true", help="print sizes and stop")
  parser.epilog = "--config.FIELD.FIELD=VALUE overrides one field of the config"
  flags, rest = parser.parse_known_args(argv)
  for argument in rest:
    if not argument.startswith(OVERRIDE):
      known = ("--config", "--workdir", "--dry_run", "--help")
      hint = nearest(argument.partition("=")[0], known)
      raise UserError(f"unknown argument {argument}{hint}")
  return flags, split_overrides(rest)


def main(argv: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr about the user's mistake."""
  try:
    flags, overrides = parse_flags(argv)
    config = config_lib.load_config(flags.config, overrides)
    config_lib.validate(config)

    # After the checks: a mistyped flag should not wait for jax.
    from absl import flags as absl_flags

    from medflax import trainer
    from medflax.parallel import processes

    gc.freeze()  # what is imported stays: looking through it takes a quarter of a model's tracing
    absl_flags.FLAGS.mark_as_parsed()  # grain's worker processes read flags of their own
    processes.join(os.environ)
    if flags.dry_run:
      trainer.dry_run(config)
      return 0
    default = f"runs/{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    workdir = pathlib.Path(flags.workdir or default)
    words = [a for a in argv if a.partition("=")[0] != "--workdir" and a != flags.workdir]
    command = shlex.join(["python", "-m", "medflax.main", *words, f"--workdir={workdir}"])
    trainer.train(config, workdir, command=command)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("aborted; the last checkpoint stays", file=sys.stderr)
    return 130
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
