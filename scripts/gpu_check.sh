#!/usr/bin/env bash
# Runs what needs a GPU: `pytest -m gpu`, and the benchmarks of a training step and of decoding at the shapes of a 3B model.
#   bash scripts/gpu_check.sh [OUT]     OUT: folder for gpu_check_DATE.json and .md (benchmarks/results)
# At most 12 minutes on one GPU. Where a package or the GPU is missing, what needs it is left out, and the page says so.
set -euo pipefail
out=${1:+$(realpath -m -- "$1")}
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_active_environment
export HF_HUB_OFFLINE=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec python scripts/gpu_check.py "${out:-benchmarks/results}"
