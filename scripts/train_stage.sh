#!/usr/bin/env bash
# Trains one stage of a model on all GPUs of this machine, or on this one of several machines (docs/clusters.md).
#   bash scripts/train_stage.sh {ar|align|translate} RECIPE [--key value ...]     keys of the recipe
# NPROC: processes here, one a GPU (as many as there are GPUs, or one)
# NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT: number of machines, index of this one, address of the first (29500)
# With --dry_run one process prints what the run would be on all of them, and trains nothing.
set -euo pipefail
fail() {
  echo "train_stage.sh: error: $1" >&2
  exit 2
}
case ${1:-} in
  ar | align | translate) ;;
  *) fail "'${1:-}' is not a stage; give ar, align or translate, then a recipe" ;;
esac
[ -f "${2:-}" ] || fail "there is no recipe '${2:-}'; give a file such as configs/recipes/quickstart.yaml"
stage=$1 recipe=$2
shift 2
source "$(dirname "$0")/environment.sh"
use_active_environment

nnodes=${NNODES:-1}
nproc=${NPROC:-$(python -c 'import torch; print(max(torch.cuda.device_count(), 1))')}
[[ $nnodes =~ ^[1-9][0-9]*$ ]] || fail "NNODES must be a number of machines, got '$nnodes'"
[[ $nproc =~ ^[1-9][0-9]*$ ]] || fail "NPROC must be a number of processes, got '$nproc'"
command=(-m diffusionvl.train "$recipe" --stage "$stage" "$@")
for key in "$@"; do
  case $key in
    --dry_run | --dry-run) exec python "${command[@]}" --dry_run_processes $((nnodes * nproc)) ;;
  esac
done
if [ "$nnodes" = 1 ]; then
  [ "$nproc" = 1 ] && exec python "${command[@]}"
  machines=(--standalone)
else
  [ -n "${MASTER_ADDR:-}" ] || fail "NNODES is $nnodes, but MASTER_ADDR is not set; give the first machine's address"
  [[ ${NODE_RANK:-} =~ ^[0-9]+$ ]] || fail "NNODES is $nnodes, but NODE_RANK is '${NODE_RANK:-}'; give 0 to $((nnodes - 1))"
  machines=(--nnodes "$nnodes" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
fi
# On SIGTERM torchrun passes it on, and kills what has not ended by then: a large checkpoint takes its time.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}
exec torchrun "${machines[@]}" --nproc_per_node "$nproc" "${command[@]}"
