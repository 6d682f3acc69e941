#!/usr/bin/env bash
# Two short rollouts of a launch script with random weights and made-up questions: does everything
# start and fit here, before a long run and without a download?
#
#   bash scripts/try.sh FOLDER scripts/run-qwen3-4B-disaggregated.sh [flags that win]
#
# For two GPUs, half of four and a quarter of eight, after either script with SGLang on GPUs of its
# own: --actor-num-gpus-per-node 1 --tensor-model-parallel-size 1 --rollout-num-gpus 1
#
# FOLDER takes the questions, the model's config and tokenizer, and the run. The model has Qwen3-4B's
# shape; MODEL_SIZE changes it (flags of examples/small_model.py), and then the script's model flags
# want the same values after its name. PYTHON chooses the interpreter that writes the files.

set -euo pipefail

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
FOLDER="$(mkdir -p "$1" && cd "$1" && pwd)"
LAUNCH="$2"
shift 2
PYTHON="${PYTHON:-python3}"
QWEN3_4B="--hidden-size 2560 --ffn-hidden-size 9728 --num-layers 36 --num-heads 32
   --num-key-heads 8 --head-size 128 --padded-vocab-size 151936 --rope-theta 1000000"

"$PYTHON" "$REPOSITORY/examples/quickstart/problems.py" --out "$FOLDER/data"
# MODEL_SIZE is a list of words
"$PYTHON" "$REPOSITORY/examples/small_model.py" --texts "$FOLDER/data/warmup.jsonl" \
   --out "$FOLDER/model" --no-weights --max-positions 40960 ${MODEL_SIZE:-$QWEN3_4B}
head -8 "$FOLDER/data/heldout.jsonl" > "$FOLDER/data/few.jsonl"

export HF_CHECKPOINT="$FOLDER/model" REF_LOAD="$FOLDER/model" SAVE="$FOLDER/run"
export PROMPT_DATA="$FOLDER/data/train.jsonl" EVAL_DATA="$FOLDER/data/few.jsonl"

# random weights end no answer, and every answer is wrong: lengths are bounded, rewards are drawn
exec bash "$LAUNCH" \
   --init random --no-use-kl-loss --no-save-optim --rm-type random \
   --num-rollout 2 --rollout-max-response-len 1024 \
   --n-samples-per-eval-prompt 1 --eval-max-response-len 256 \
   "$@"
