#!/usr/bin/env bash
# The main jobs, end to end: translate an AR vision-language model and finetune it; train drafts for it, which leave it as it
# is; compare all on the same test questions.
#   bash scripts/quickstart.sh [--key value ...]     keys of configs/recipes/quickstart.yaml, such as --max_steps 100
# Writes outputs/quickstart/: data, model, drafts, report.html, results.json, film.gif. About 5 minutes on two idle CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_own_environment quickstart
base=assets/easy-vqa-base
out=outputs/quickstart
case " $* " in *" --output"[-_]"dir"*)
  echo "quickstart.sh: error: --output_dir is $out/model here; run the commands of docs/quickstart.md for another" >&2
  exit 2 ;;
esac

echo "== 1/5 records of easy-VQA's training split"
python -m studies.quickstart.easy_vqa --out "$out/data" --repeats 3 --turns 3 --longs 1 1 --draw
python -m studies.quickstart.easy_vqa --out "$out/prompts" --turns 0 --longs 1 1
echo "== 2/5 translate $base"
diffusionvl translate "$base" --out "$out/init" --block-size 16
echo "== 3/5 finetune by block diffusion"
diffusionvl train configs/recipes/quickstart.yaml "$@"
echo "== 4/5 train drafts for $base, which stays as it is"
diffusionvl draft "$base" --records "$out/prompts/conversations.jsonl" --out "$out/drafts" --limit 832 --held-out 32 \
  --steps 120 --learning-rate 5e-3 --max-new-tokens 96 --answer-batch-size 64
echo "== 5/5 compare base, translation and drafts"
python -m studies.quickstart.comparison "$base" "$out/model" --drafts "$out/drafts" --out "$out" --limit 512
