#!/bin/sh
# Teaches a model from nothing to guess a digit by the replies of a game; some minutes on two cores.
#   examples/guess_number/run.sh [FOLDER] [ROLLOUTS]
set -eu
folder=${1:-guess} rollouts=${2:-60}
python=${PYTHON:-python3}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

"$python" examples/guess_number/prompts.py "$folder/prompts.jsonl"
"$python" examples/small_model.py --texts "$folder/prompts.jsonl" --out "$folder/model" \
    --hidden-size 64 --ffn-hidden-size 192 --vocab-size 300
"$python" train.py --hf-checkpoint "$folder/model" --init random --device cpu \
    --save "$folder/run" --save-interval "$rollouts" --num-rollout "$rollouts" \
    --prompt-data "$folder/prompts.jsonl" --input-key prompt --label-key label \
    --apply-chat-template --rollout-shuffle \
    --custom-generate-function-path examples.guess_number.game.play \
    --rollout-batch-size 10 --n-samples-per-prompt 32 --rollout-max-response-len 16 \
    --num-steps-per-rollout 2 --use-dynamic-batch-size --max-tokens-per-gpu 8192 \
    --advantage-estimator grpo --eps-clip-high 0.28 --log-multi-turn \
    --lr 2e-3 --lr-decay-style constant --lr-warmup-iters 4 --adam-beta2 0.98
