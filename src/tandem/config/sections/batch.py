"""How samples become micro-batches and optimizer steps."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Batches"""

    global_batch_size: int | None = None
    """Samples per optimizer step; those of a rollout / `num_steps_per_rollout` when unset."""
    num_steps_per_rollout: int | None = None
    """Optimizer steps per rollout; from `global_batch_size` when unset, else 1."""
    micro_batch_size: int = 1
    """Samples per packed row, when batches are not dynamic."""
    use_dynamic_batch_size: bool = False
    """Fill rows up to `--max-tokens-per-gpu` instead."""
    max_tokens_per_gpu: int | None = None
    """Tokens of a row; a longer sample gets a row of its own."""
    log_probs_max_tokens_per_gpu: int | None = None
    """The same for log-prob passes; `max_tokens_per_gpu` when unset."""
    log_probs_chunk_size: int = -1
    """Rows of logits held at once; -1: chosen by size."""
    balance_data: bool = False
    """Even out work over data-parallel ranks."""
    balance_by_flops: bool = False
    """Fill rows by work instead of tokens (may exceed the token budget)."""
    data_pad_size_multiplier: int = 128
    """Rows are padded to a multiple of this many tokens (per tensor-parallel rank)."""
