#!/usr/bin/env bash
# Proves every decoder-only model type of transformers, or says why it is refused, and writes the table of docs/models.md.
# Resumes: results are kept in the file that is given (sweep.jsonl).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_active_environment
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH="$PWD:$PWD/tests:${PYTHONPATH:-}"
python -W ignore tests/families/sweep.py --out "${1:-sweep.jsonl}" --page docs/models.md
