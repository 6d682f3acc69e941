#!/usr/bin/env bash
# run-qwen3-4B.sh with SGLang servers that share the eight GPUs with training: two GPUs a server,
# whose memory is given back while the trainer learns.
#
#   bash scripts/run-qwen3-4B-sglang.sh [flags that win over those below]
#
# SGLang pins another torch: install it in an environment of its own and name its interpreter with
# --sglang-python, or in this one where the versions agree.

set -euo pipefail

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# Graphs are captured for the batch sizes named here: more of them cost start-up time and memory,
# and a batch larger than all of them runs without a graph, at half the speed or less.
SGLANG_ARGS=(
   --rollout-engine sglang
   --rollout-num-gpus-per-engine 2
   --sglang-mem-fraction-static 0.7
   --sglang-server-concurrency 256
   --sglang-cuda-graph-bs 1 2 4 8 $(seq 16 8 256)
)

exec bash "$REPOSITORY/scripts/run-qwen3-4B.sh" "${SGLANG_ARGS[@]}" "$@"
