#!/usr/bin/env bash
# Two rollouts on GSM8K and MATH questions, a save, two more from there, then AIME 2024: a launch in
# the form of the big ones, small enough for two CPU cores and a few minutes.
#
# The model is random and speaks no mathematics, so EVERY REWARD IS ZERO. What this shows is the way
# of real data through every stage: nothing can be learned, and nothing may break.
#
#   make setup
#   bash examples/math/run.sh [flags that win over those below]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PYTHON=${PYTHON:-.venv/bin/python}
RUN=${RUN:-runs/math-$(date +%Y%m%d-%H%M%S)}
DATA=examples/math/data
# One thread: as fast as two on a machine that does anything else, and the same bits everywhere.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

MODEL_ARGS=(
   --swiglu
   --num-layers 2
   --hidden-size 128
   --ffn-hidden-size 384
   --num-attention-heads 4
   --group-query-attention
   --num-query-groups 2
   --use-rotary-position-embeddings
   --disable-bias-linear
   --normalization "RMSNorm"
   --norm-epsilon 1e-6
   --rotary-base 10000
   --vocab-size 2048
   --kv-channels 32
   --qk-layernorm
)

CKPT_ARGS=(
   --hf-checkpoint "$RUN/model"
   --ref-load "$RUN/model_torch_dist"
   --load "$RUN/checkpoints"
   --save "$RUN/checkpoints"
   --save-interval 2
)

ROLLOUT_ARGS=(
   --prompt-data "$DATA/train.jsonl"
   --input-key prompt
   --label-key label
   --apply-chat-template
   --rollout-shuffle
   --rm-type deepscaler
   --rollout-batch-size 8
   --n-samples-per-prompt 4
   --rollout-max-prompt-len 512
   --rollout-max-response-len 128
   --rollout-temperature 0.8
   --num-steps-per-rollout 1
   --balance-data
)

EVAL_ARGS=(
   --eval-prompt-data aime "$DATA/aime-2024.jsonl"
   --n-samples-per-eval-prompt 2
   --eval-max-response-len 256
   --eval-top-p 0.7
)

PERF_ARGS=(
   --tensor-model-parallel-size 1
   --pipeline-model-parallel-size 1
   --context-parallel-size 1
   --expert-model-parallel-size 1
   --expert-tensor-parallel-size 1
   --recompute-granularity full
   --recompute-method uniform
   --recompute-num-layers 1
   --use-dynamic-batch-size
   --max-tokens-per-gpu 2048
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

MISC_ARGS=(
   --attention-dropout 0.0
   --hidden-dropout 0.0
   --accumulate-allreduce-grads-in-fp32
   --attention-softmax-in-fp32
   --attention-backend flash
   --actor-num-nodes 1
   --actor-num-gpus-per-node 1
   --colocate
)

ALL_ARGS=(
   "${MODEL_ARGS[@]}" "${CKPT_ARGS[@]}" "${ROLLOUT_ARGS[@]}" "${EVAL_ARGS[@]}" "${PERF_ARGS[@]}"
   "${GRPO_ARGS[@]}" "${OPTIMIZER_ARGS[@]}" "${MISC_ARGS[@]}" "$@"
)

echo "== a random model: every reward below is 0, as it must be"
"$PYTHON" examples/small_model.py --texts "$DATA/train.jsonl" --vocab-size 2048 --out "$RUN/model"
"$PYTHON" tools/convert_hf_to_torch_dist.py "${MODEL_ARGS[@]}" \
   --hf-checkpoint "$RUN/model" --save "$RUN/model_torch_dist"

echo "== rollouts 0 and 1, saved"
"$PYTHON" train.py "${ALL_ARGS[@]}" --num-rollout 2 --skip-eval-before-train

echo "== rollouts 2 and 3, from the checkpoint"
"$PYTHON" train.py "${ALL_ARGS[@]}" --num-rollout 4 --skip-eval-before-train

echo "== AIME 2024 with the last checkpoint"
"$(dirname "$PYTHON")/tandem" eval "${ALL_ARGS[@]}" --run-dir "$RUN/eval"

echo "== done: four rollouts, one resume, one evaluation; rewards are 0 because the model is random"
echo "   $RUN/checkpoints/report.md, $RUN/eval/report.md"
