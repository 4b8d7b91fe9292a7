#!/usr/bin/env bash
# Real pretrained weights, end to end: SmolLM2-135M-Instruct gets eyes, is aligned, trained as an AR baseline and
# translated on the same records with the same budget; then come the paper's comparisons (tables 5, 6, 7) and text alone.
#   bash scripts/reproduce_smollm2.sh [--budget cpu|gpu] [--seed N] [--out DIR]
# cpu: under 90 minutes on two cores. gpu: more steps, on one GPU. A step that is done is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
budget=cpu seed=0 out=outputs/smollm2
while [ $# -gt 0 ]; do
  case "$1" in
    --budget) budget=${2:-}; shift 2 ;;
    --seed) seed=${2:-}; shift 2 ;;
    --out) out=${2:-}; shift 2 ;;
    *) echo "reproduce_smollm2.sh: error: unknown argument '$1'; give --budget, --seed or --out" >&2; exit 2 ;;
  esac
done
