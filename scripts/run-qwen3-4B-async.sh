#!/usr/bin/env bash
# run-qwen3-4B-disaggregated.sh, sampling the next rollout while the trainer learns from this one.
#
#   bash scripts/run-qwen3-4B-async.sh [flags that win over those below]
#
# What is learned from is one update old, which importance weights (TIS) correct.

set -euo pipefail

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export SAVE="${SAVE:-${TANDEM_DATA:-$HOME/tandem}/Qwen3-4B_async}"
export PROGRAM=train_async.py

exec bash "$REPOSITORY/scripts/run-qwen3-4B-disaggregated.sh" --use-tis "$@"
