#!/usr/bin/env bash
# Times the train step on a GPU; prints a Markdown table. About 5 minutes.
#
#   benchmarks/gpu.sh [WHEELS]
#
# WHEELS: a folder of wheels for packages that this machine's Python lacks and cannot download.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

if [[ $# -gt 0 ]]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$1"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

# What the driver's other users hold is not ours: grow as needed, so that the peak is this step's.
export JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_PREALLOCATE=false
# A process a variant: the peak of memory is counted from a process's start.
timeout 200 "$python" benchmarks/train_step.py --variant tiny --steps 200
timeout 240 "$python" benchmarks/train_step.py --variant small --steps 50
