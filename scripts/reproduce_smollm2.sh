#!/usr/bin/env bash
# Real pretrained weights, end to end: SmolLM2-135M-Instruct gets eyes and is trained as an AR baseline and, with the same
# records and budget, as a translation. Then come the paper's comparisons (tables 5, 6 and 7), and text alone.
#   bash scripts/reproduce_smollm2.sh [--budget smoke|cpu|gpu] [--seed N] [--out DIR] [--until STEP]
# cpu: under 90 minutes on two cores. gpu: more steps, for one GPU. smoke: two steps of everything, to see that it runs.
# A step that is done is not done again; remove its folder in DIR to repeat it.
set -euo pipefail
cd "$(dirname "$0")/.."
budget=cpu seed=0 out= until=
while [ $# -gt 0 ]; do
  case "$1" in
    --budget | --seed | --out | --until)
      [ $# -gt 1 ] || { echo "reproduce_smollm2.sh: error: $1 needs a value" >&2; exit 2; }
      declare "${1#--}=$2"; shift 2 ;;
    *) echo "reproduce_smollm2.sh: error: unknown argument '$1'; give --budget, --seed, --out or --until" >&2; exit 2 ;;
  esac
done
case "$budget" in
  smoke) repeats=1 tower=2 align=2 train=2 ablate=2 text=2 prompts=8 questions=(--short 8 --long 4 --timed 1) ;;
  cpu) repeats=2 tower=1000 align=250 train=480 ablate=44 text=160 prompts=400
    questions=(--short 500 --long 200 --few 60 --timed 6) ;;
  gpu) repeats=10 tower=3000 align=1000 train=5000 ablate=1500 text=2500 prompts=1085 questions=() ;;
  *) echo "reproduce_smollm2.sh: error: --budget must be smoke, cpu or gpu, got '$budget'" >&2; exit 2 ;;
esac
out=${out:-outputs/smollm2_$budget}
source scripts/environment.sh
use_own_environment
# glibc gives large blocks back to the system after every use; keeping them makes a step 10 % faster on a CPU.
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=200000000

# once FOLDER COMMAND...: runs a command that fills a folder, unless it did before, and prints how long it took.
once() {
  local name=$1 begin=$SECONDS; shift
  if [ -e "$out/$name/.done" ]; then
    echo "== $name: done before"
  else
    echo "== $name"
    "$@"
    touch "$out/$name/.done"
    echo "== $name: $((SECONDS - begin)) s"
  fi
  [ "$name" != "$until" ] || exit 0
}
# finetune NAME RECIPE INIT STEPS [--key value ...]
finetune() {
  local name=$1 recipe=$2 init=$3 steps=$4; shift 4
  once "$name" python -m diffusionvl.train "configs/recipes/smollm2_$recipe.yaml" --model "$out/$init" \
    --output_dir "$out/$name" --max_steps "$steps" --seed "$seed" "$@"
}
# translate NAME BASE BLOCK_SIZE: as in the paper, whose clean stream is one of blocks
translate() { once "$1" diffusionvl translate "$out/$2" --out "$out/$1" --block-size "$3" --clean-attention block; }

pictures=(--train_records "$out/data/conversations.jsonl")
once smollm2 python -m studies.smollm2.unpack --out "$out/smollm2"
once tower python -m studies.smollm2.tower --out "$out/tower" --steps "$tower" --seed "$seed"
once attributes python -m studies.quickstart.easy_vqa --out "$out/attributes" --attributes both
once data python -m studies.quickstart.easy_vqa --out "$out/data" --repeats "$repeats" --turns 1 --longs 1 1 --draw
once assembled diffusionvl assemble --lm "$out/smollm2" --vision "$out/tower" --out "$out/assembled" --image-grid single
finetune aligned align assembled "$align" --train_records "$out/attributes/attributes.jsonl"
finetune ar ar aligned "$train" "${pictures[@]}"
translate translation_init aligned 8
finetune translation translate translation_init "$train" "${pictures[@]}"

# The paper's tables 5 and 6: translations of an AR vision-language model, here of the baseline.
for size in 1 4 8 16 64; do translate "init_$size" ar "$size"; done
paper=("${pictures[@]}" --ar_weight 0)
for size in 1 4 8 16; do finetune "block_$size" translate "init_$size" "$ablate" "${paper[@]}"; done
finetune full translate init_64 "$ablate" "${paper[@]}"
finetune sequence translate init_8 "$ablate" "${paper[@]}" --noise_order sequence

# Text alone: the translation learns from answers that its own base wrote.
once text_data python -m studies.smollm2.own_answers "$out/smollm2" --out "$out/text_data" --limit "$prompts"
translate text_init smollm2 8
finetune text text text_init "$text" --train_records "$out/text_data/train.jsonl"

python -m studies.smollm2.measure "$out" "${questions[@]}"
python -m studies.smollm2.figures "$out" --out "$out/charts"
