#!/usr/bin/env bash
# Trains the agent of agent.py, which knows the official `openai` client and nothing of training, to
# find a number by listening to hints. A small model from nothing, on two CPU cores.
#
#   make setup
#   bash examples/openai_agent/run.sh [flags that win over those of the last step]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PYTHON=${PYTHON:-.venv/bin/python}
RUN=${RUN:-runs/openai-agent-$(date +%Y%m%d-%H%M%S)}
NUM_ROLLOUT=${NUM_ROLLOUT:-20}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

MODEL_ARGS=(
   --swiglu --num-layers 2 --hidden-size 128 --ffn-hidden-size 384 --num-attention-heads 4
   --group-query-attention --num-query-groups 2 --kv-channels 32 --qk-layernorm
   --use-rotary-position-embeddings --rotary-base 10000 --disable-bias-linear
   --normalization RMSNorm --norm-epsilon 1e-6
)
SHARED_ARGS=(
   --use-dynamic-batch-size --max-tokens-per-gpu 4096 --balance-data
   --optimizer adam --adam-beta1 0.9 --adam-beta2 0.98 --weight-decay 0.1
   --actor-num-nodes 1 --actor-num-gpus-per-node 1 --colocate --rollout-seed 1
)
WARMUP_ARGS=(
   --prompt-data "$RUN/data/warmup.jsonl" --input-key messages
   --rollout-function-path slime.rollout.sft_rollout.generate_rollout
   --loss-type sft_loss --loss-mask-type qwen --calculate-per-token-loss
   --disable-compute-advantages-and-returns
   --num-rollout 120 --rollout-batch-size 128 --global-batch-size 128 --rollout-shuffle
   --lr 2e-3 --lr-decay-style constant --lr-warmup-iters 10
)
AGENT_ARGS=(
   --custom-generate-function-path examples.openai_agent.trained.generate
   --prompt-data "$RUN/data/train.jsonl" --input-key prompt --label-key label
   --apply-chat-template --rollout-shuffle --rollout-max-response-len 64
   --num-rollout "$NUM_ROLLOUT" --rollout-batch-size 10 --n-samples-per-prompt 16
   --num-steps-per-rollout 1 --rollout-temperature 1.0
   --eval-prompt-data secrets "$RUN/data/secrets.jsonl" --eval-interval 10
   --n-samples-per-eval-prompt 32
)
GRPO_ARGS=(
   --advantage-estimator grpo --eps-clip 0.2 --eps-clip-high 0.28 --entropy-coef 0.00
   --lr 1.5e-3 --lr-decay-style constant --lr-warmup-iters 10
)

echo "== games, and a model from nothing"
"$PYTHON" examples/openai_agent/games.py --out "$RUN/data"
"$PYTHON" examples/small_model.py --texts "$RUN/data/warmup.jsonl" --out "$RUN/base"

echo "== warm-up: careless games, so that the model knows how one is written"
"$PYTHON" train.py "${MODEL_ARGS[@]}" "${SHARED_ARGS[@]}" "${WARMUP_ARGS[@]}" \
   --hf-checkpoint "$RUN/base" --save "$RUN/warmup" --save-interval 120
"$PYTHON" tools/convert_torch_dist_to_hf.py --input-dir "$RUN/warmup/iter_0000119" \
   --output-dir "$RUN/warmup_hf" --origin-hf-dir "$RUN/base"

echo "== the agent plays, and the model behind its endpoint learns"
"$PYTHON" train.py "${MODEL_ARGS[@]}" "${SHARED_ARGS[@]}" "${AGENT_ARGS[@]}" "${GRPO_ARGS[@]}" \
   --hf-checkpoint "$RUN/warmup_hf" --save "$RUN/grpo" --save-interval "$NUM_ROLLOUT" "$@"

echo "== the last games: .venv/bin/tandem samples $RUN/grpo --last 3"
