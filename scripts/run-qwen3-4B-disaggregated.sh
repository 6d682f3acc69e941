#!/usr/bin/env bash
# Qwen3-4B with GRPO on one host with eight GPUs: two train, six sample with SGLang. New weights are
# broadcast to the servers over NCCL.
#
#   bash scripts/run-qwen3-4B-disaggregated.sh [flags that win over those below]
#
# SGLang pins another torch: install it in an environment of its own and name its interpreter with
# --sglang-python, or in this one where the versions agree.
#
# Everything lies under TANDEM_DATA, or where the variable of its own says:
#   HF_CHECKPOINT  a download of Qwen/Qwen3-4B
#   REF_LOAD       the same as torch_dist: python3 tools/convert_hf_to_torch_dist.py
#   SAVE           checkpoints and the run's log; an interrupted run goes on from there
#   PROMPT_DATA    questions, JSON lines with "prompt" and "label"
#   EVAL_DATA      held-out questions in the same form
#   PROGRAM        train.py, or train_async.py to sample one rollout ahead

set -euo pipefail

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
TANDEM_DATA="${TANDEM_DATA:-$HOME/tandem}"
HF_CHECKPOINT="${HF_CHECKPOINT:-$TANDEM_DATA/Qwen3-4B}"
REF_LOAD="${REF_LOAD:-$TANDEM_DATA/Qwen3-4B_torch_dist}"
SAVE="${SAVE:-$TANDEM_DATA/Qwen3-4B_disaggregated}"
PROMPT_DATA="${PROMPT_DATA:-$TANDEM_DATA/dapo-math-17k/dapo-math-17k.jsonl}"
EVAL_DATA="${EVAL_DATA:-$TANDEM_DATA/aime-2024/aime-2024.jsonl}"
PROGRAM="${PROGRAM:-train.py}"

# MODEL_ARGS: the shape of the model, checked against HF_CHECKPOINT
source "$REPOSITORY/scripts/models/qwen3-4B.sh"

CKPT_ARGS=(
   --hf-checkpoint "$HF_CHECKPOINT"
   --ref-load "$REF_LOAD"
   --load "$SAVE"
   --save "$SAVE"
   --save-interval 20
)

ROLLOUT_ARGS=(
   --prompt-data "$PROMPT_DATA"
   --input-key prompt
   --label-key label
   --apply-chat-template
   --rollout-shuffle
   --rm-type deepscaler
   --num-rollout 3000
   --rollout-batch-size 32
   --n-samples-per-prompt 8
   --rollout-max-response-len 8192
   --rollout-temperature 0.8
   --num-steps-per-rollout 1
   --balance-data
)

EVAL_ARGS=(
   --eval-interval 5
   --eval-prompt-data aime "$EVAL_DATA"
   --n-samples-per-eval-prompt 16
   --eval-max-response-len 16384
   --eval-top-p 0.7
)

PERF_ARGS=(
   --tensor-model-parallel-size 2
   --sequence-parallel
   --recompute-granularity full
   --recompute-method uniform
   --recompute-num-layers 1
   --use-dynamic-batch-size
   --max-tokens-per-gpu 9216
)

GRPO_ARGS=(
   --advantage-estimator grpo
   --use-kl-loss
   --kl-loss-coef 0.00
   --kl-loss-type low_var_kl
   --entropy-coef 0.00
   --eps-clip 0.2
   --eps-clip-high 0.28
)

OPTIMIZER_ARGS=(
   --optimizer adam
   --lr 1e-6
   --lr-decay-style constant
   --weight-decay 0.1
   --adam-beta1 0.9
   --adam-beta2 0.98
)

# With six GPUs for sampling alone a server may take nearly all of one. Graphs are captured for the
# batch sizes named here, and no more requests are sent at once than the largest: a larger batch
# would run without a graph.
SGLANG_ARGS=(
   --rollout-engine sglang
   --rollout-num-gpus-per-engine 1
   --sglang-mem-fraction-static 0.85
   --sglang-server-concurrency 256
   --sglang-cuda-graph-bs 1 2 4 8 $(seq 16 8 256)
)

MISC_ARGS=(
   --actor-num-nodes 1
   --actor-num-gpus-per-node 2
   --rollout-num-gpus 6
   --num-gpus-per-node 8
)

cd "$REPOSITORY"
exec python3 "$PROGRAM" \
   "${MODEL_ARGS[@]}" \
   "${CKPT_ARGS[@]}" \
   "${ROLLOUT_ARGS[@]}" \
   "${EVAL_ARGS[@]}" \
   "${PERF_ARGS[@]}" \
   "${GRPO_ARGS[@]}" \
   "${OPTIMIZER_ARGS[@]}" \
   "${SGLANG_ARGS[@]}" \
   "${MISC_ARGS[@]}" \
   "$@"
