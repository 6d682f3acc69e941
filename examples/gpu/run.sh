#!/usr/bin/env bash
# The quickstart's task scaled up for one GPU: 47 million weights, fourteen digits, in minutes.
#
#   bash examples/gpu/run.sh [FOLDER]
#
# PYTHON chooses the interpreter, WARMUP and ROLLOUTS how long it learns.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:-runs/gpu-sort}
python=${PYTHON:-python3}
warmup=${WARMUP:-100}
rollouts=${ROLLOUTS:-100}

"$python" examples/quickstart/problems.py --out "$out/data" --digits 14
"$python" examples/small_model.py --texts "$out/data/warmup.jsonl" --out "$out/base" \
  --hidden-size 512 --ffn-hidden-size 2048 --num-layers 12 --num-heads 8 --num-key-heads 4

SHARED_ARGS=(
  --hf-checkpoint "$out/base" --use-dynamic-batch-size --max-tokens-per-gpu 32768
  --adam-beta1 0.9 --adam-beta2 0.98 --weight-decay 0.1 --lr-decay-style constant
  --engine-max-running 512 --engine-cache-tokens 65536
)
"$python" train.py "${SHARED_ARGS[@]}" --load "$out/warmup" --save "$out/warmup" \
  --save-interval "$warmup" --prompt-data "$out/data/warmup.jsonl" --input-key messages \
  --loss-type sft_loss --loss-mask-type qwen --calculate-per-token-loss \
  --num-rollout "$warmup" --rollout-batch-size 256 --global-batch-size 256 --rollout-shuffle \
  --lr 6e-4 --lr-warmup-iters 20

"$python" train.py "${SHARED_ARGS[@]}" --ref-load "$out/warmup" --load "$out/grpo" \
  --save "$out/grpo" --save-interval "$rollouts" \
  --prompt-data "$out/data/train.jsonl" --input-key prompt --label-key label \
  --apply-chat-template --rollout-shuffle --rm-type math --num-rollout "$rollouts" \
  --rollout-batch-size 64 --n-samples-per-prompt 16 --rollout-max-response-len 24 \
  --num-steps-per-rollout 2 --advantage-estimator grpo --eps-clip 0.2 --eps-clip-high 0.28 \
  --lr 2e-5 --lr-warmup-iters 10 \
  --eval-prompt-data heldout "$out/data/heldout.jsonl" --eval-interval 10 --eval-temperature 0
echo "see $out/grpo/report.md and $out/grpo/reward.png"
