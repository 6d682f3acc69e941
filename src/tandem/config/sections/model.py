"""Which model, from where, and in which precision."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Model"""

    hf_checkpoint: str | None = None
    """Hugging Face folder: shapes, tokenizer, chat template and first weights. Required."""
    model_name: str | None = None
    """The dialect's name of the family; the checkpoint's `model_type` decides here."""
    init: Literal["checkpoint", "random"] = "checkpoint"
    """First weights: the checkpoint's, or random ones by `--seed` (for benchmarks)."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of compute; master weights are fp32. `auto`: bf16 on cuda, fp32 on the CPU."""
    attention_backend: Literal["auto", "flash"] = "auto"
    """Attention kernels; both take the fastest that runs here."""
