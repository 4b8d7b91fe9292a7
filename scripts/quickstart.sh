#!/usr/bin/env bash
# The main job, end to end: translate an AR vision-language model, finetune it, compare both on the same test questions.
#   bash scripts/quickstart.sh [--key value ...]     keys of configs/recipes/quickstart.yaml, such as --max_steps 100
# Writes outputs/quickstart/: data, model, report.html, results.json, film.gif. At most 5 minutes on two idle CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
use_own_environment quickstart
base=assets/easy-vqa-base
out=outputs/quickstart
case " $* " in *" --output"[-_]"dir"*)
  echo "quickstart.sh: error: --output_dir is $out/model here; run the four commands of docs/quickstart.md for another" >&2
  exit 2 ;;
esac

echo "== 1/4 records of easy-VQA's training split"
python -m studies.quickstart.easy_vqa --out "$out/data" --repeats 3 --turns 3 --longs 1 1 --draw
echo "== 2/4 translate $base"
# A translation appears when all of it is written, so that a second run can keep it.
[ -e "$out/init/config.json" ] || diffusionvl translate "$base" --out "$out/init" --block-size 8
echo "== 3/4 finetune by block diffusion"
diffusionvl train configs/recipes/quickstart.yaml "$@"
echo "== 4/4 compare base and translation"
python -m studies.quickstart.comparison "$base" "$out/model" --out "$out" --limit 1024
