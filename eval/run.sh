#!/usr/bin/env bash
# Runs a suite of benchmarks with one model, block diffusion or AR, on one or many GPUs or on a CPU.
#   bash eval/run.sh SUITE MODEL [--nproc N] [--limit N] [--out DIR] ...     all flags: --help; suites: eval/suites/
# A task that is finished is not run again. Exit code 0, or 1 if a run failed, or 2 for an input that cannot be used.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/scripts/environment.sh"
use_active_environment
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec python -m eval.run "$@"
