#!/bin/sh
# Teaches a small model to do sums with a calculator; some minutes on two cores.
#   examples/calculator/run.sh [FOLDER] [WARM-UP STEPS] [ROLLOUTS]
set -eu
folder=${1:-calculator} warm=${2:-110} rollouts=${3:-40}
python=${PYTHON:-python3}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
model="$folder/model"
shared="--hf-checkpoint $model --device cpu --use-dynamic-batch-size --max-tokens-per-gpu 8192
    --lr-decay-style constant --lr-warmup-iters 10 --adam-beta2 0.98 --rollout-shuffle"

"$python" examples/calculator/problems.py "$folder/data"
"$python" examples/small_model.py --texts "$folder/data/warmup.jsonl" --out "$model" \
    --hidden-size 128 --vocab-size 300

# too few steps to be good at it: the rest is for the rewards to teach
# shellcheck disable=SC2086 # the flags are words
"$python" train.py $shared --init random \
    --load "$folder/warm" --save "$folder/warm" --save-interval "$warm" --num-rollout "$warm" \
    --prompt-data "$folder/data/warmup.jsonl" --input-key messages \
    --rollout-function-path slime.rollout.sft_rollout.generate_rollout \
    --loss-type sft_loss --loss-mask-type qwen --calculate-per-token-loss \
    --rollout-batch-size 128 --global-batch-size 128 --lr 2e-3

# shellcheck disable=SC2086
"$python" train.py $shared --ref-load "$folder/warm" \
    --load "$folder/run" --save "$folder/run" --save-interval "$rollouts" \
    --num-rollout "$rollouts" --prompt-data "$folder/data/train.jsonl" \
    --input-key prompt --label-key label --apply-chat-template \
    --custom-generate-function-path examples.calculator.tool.solve \
    --rollout-batch-size 32 --n-samples-per-prompt 8 --rollout-max-response-len 24 \
    --num-steps-per-rollout 1 --lr 2e-4 \
    --eval-prompt-data heldout "$folder/data/heldout.jsonl" --eval-interval "$rollouts"
