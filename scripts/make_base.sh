#!/usr/bin/env bash
# Trains the quickstart's AR base from nothing and puts it into assets/ (about 20 minutes on two CPU cores).
#   bash scripts/make_base.sh [OUT]     OUT: folder for the base (assets/easy-vqa-base)
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-assets/easy-vqa-base}
source scripts/environment.sh
use_own_environment

python -m studies.quickstart.easy_vqa --out outputs/base/data --attributes shape
python -m studies.quickstart.easy_vqa --out outputs/base/data --repeats 6
python -m studies.quickstart.base --out outputs/base/init
python -m diffusionvl.train configs/recipes/easy_vqa_base_shapes.yaml
python -m diffusionvl.train configs/recipes/easy_vqa_base.yaml
mkdir -p "$out"
cp outputs/base/final/*.json* outputs/base/final/*.jinja outputs/base/final/*.safetensors "$out"
rm "$out/trainer_state.json" "$out/training_args.json"
echo "wrote $out"
