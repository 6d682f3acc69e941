#!/usr/bin/env bash
# Qwen3-4B with DAPO (arXiv:2503.14476) on DAPO-Math-17k, AIME 2024 held out, on one host with eight
# GPUs that sampling and training share. The recipe is ALGORITHM_ARGS; the rest is where it runs.
#
#   bash scripts/run-dapo-qwen3-4B.sh [flags that win over those below]
#
# Everything lies under TANDEM_DATA, or where the variable of its own says:
#   HF_CHECKPOINT  a download of Qwen/Qwen3-4B
#   SAVE           checkpoints and the run's log; an interrupted run goes on from there
#   PROMPT_DATA    questions, JSON lines with "prompt" and "label"
#   EVAL_DATA      held-out questions in the same form

set -euo pipefail

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
TANDEM_DATA="${TANDEM_DATA:-$HOME/tandem}"
HF_CHECKPOINT="${HF_CHECKPOINT:-$TANDEM_DATA/Qwen3-4B}"
SAVE="${SAVE:-$TANDEM_DATA/Qwen3-4B_dapo}"
PROMPT_DATA="${PROMPT_DATA:-$TANDEM_DATA/dapo-math-17k/dapo-math-17k.jsonl}"
EVAL_DATA="${EVAL_DATA:-$TANDEM_DATA/aime-2024/aime-2024.jsonl}"

# MODEL_ARGS: the shape of the model, checked against HF_CHECKPOINT
source "$REPOSITORY/scripts/models/qwen3-4B.sh"

# The paper's five parts:
#   clip-higher           --eps-clip-high above --eps-clip: unlikely tokens may grow
#   dynamic sampling      groups whose rewards are all equal are dropped and others sampled instead,
#                         with more prompts in flight than needed
#   token-level loss      every token of a step weighs the same, long answers are not diluted
#   soft over-long        the reward falls by up to 1 over the last 4096 tokens before the limit
#   no KL                 no reference model is loaded
# The paper makes 16 steps a rollout of 512 x 16; here 4 of 128 x 16. Rewards are +1 and -1.
ALGORITHM_ARGS=(
   --advantage-estimator grpo
   --eps-clip 0.2
   --eps-clip-high 0.28
   --calculate-per-token-loss
   --dynamic-sampling-filter-path slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std
   --over-sampling-batch-size 192
   --overlong-buffer-len 4096
   --overlong-penalty-factor 1.0
   --entropy-coef 0.0
   --rm-type dapo
   --reward-key score
   --num-steps-per-rollout 4
)

ROLLOUT_ARGS=(
   --prompt-data "$PROMPT_DATA"
   --input-key prompt
   --label-key label
   --apply-chat-template
   --rollout-shuffle
   --num-rollout 1000
   --rollout-batch-size 128
   --n-samples-per-prompt 16
   --rollout-max-response-len 20480
   --rollout-temperature 1.0
   --balance-data
)

CKPT_ARGS=(
   --hf-checkpoint "$HF_CHECKPOINT"
   --load "$SAVE"
   --save "$SAVE"
   --save-interval 20
)

EVAL_ARGS=(
   --eval-interval 5
   --eval-prompt-data aime "$EVAL_DATA"
   --n-samples-per-eval-prompt 16
   --eval-top-p 0.7
)

PERF_ARGS=(
   --tensor-model-parallel-size 2
   --sequence-parallel
   --recompute-granularity full
   --recompute-method uniform
   --recompute-num-layers 1
   --use-dynamic-batch-size
   --max-tokens-per-gpu 21504
)

OPTIMIZER_ARGS=(
   --optimizer adam
   --lr 1e-6
   --lr-decay-style constant
   --lr-warmup-iters 20
   --weight-decay 0.1
   --clip-grad 1.0
)

MISC_ARGS=(
   --rollout-num-gpus-per-engine 2
   --sglang-mem-fraction-static 0.7
   --actor-num-nodes 1
   --actor-num-gpus-per-node 8
   --colocate
)

cd "$REPOSITORY"
exec python3 train.py \
   "${MODEL_ARGS[@]}" \
   "${ALGORITHM_ARGS[@]}" \
   "${ROLLOUT_ARGS[@]}" \
   "${CKPT_ARGS[@]}" \
   "${EVAL_ARGS[@]}" \
   "${PERF_ARGS[@]}" \
   "${OPTIMIZER_ARGS[@]}" \
   "${MISC_ARGS[@]}" \
   "$@"
