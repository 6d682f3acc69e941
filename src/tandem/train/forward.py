"""What a model says of the tokens of a packed row."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from tandem.kernels.attention import packed_attention
from tandem.kernels.head import token_logprobs
from tandem.models.decoder import Decoder, Recompute
from tandem.types import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """How log-probs are computed."""

    temperature: float = 1.0  # logits are divided by it, as the sampler's were
    chunk: int = -1  # rows of logits at once; -1: chosen by size
    recompute: Recompute | None = None
    wants_entropy: bool = False
    entropy_has_gradient: bool = False


def token_scores(
    decoder: Decoder, batch: Batch, how: Scoring
) -> tuple[Batch, Tensor, Tensor | None]:
    """The batch on the model's device, with log-probs and entropy of its targets, fp32 `[T]`.

    Both are 0 where the mask is 0: the head runs on trained positions only. `batch` is on the CPU,
    so that counting those makes nothing wait.
    """
    kept = batch.mask_T.nonzero()[:, 0]
    batch, hidden_TD = token_hidden(decoder, batch, how.recompute)
    kept = kept.to(hidden_TD.device, non_blocking=True)
    logprobs, entropy = token_logprobs(
        hidden_TD.index_select(0, kept),
        decoder.head_weight,
        batch.targets_T.index_select(0, kept),
        temperature=how.temperature,
        chunk=how.chunk,
        want_entropy=how.wants_entropy,
        entropy_needs_grad=how.entropy_has_gradient,
    )

    def spread(scores: Tensor) -> Tensor:
        return scores.new_zeros(len(batch.mask_T)).index_copy(0, kept, scores)

    return batch, spread(logprobs), None if entropy is None else spread(entropy)


def token_hidden(
    decoder: Decoder, batch: Batch, recompute: Recompute | None
) -> tuple[Batch, Tensor]:
    """The batch on the model's device, with the hidden states `[T, D]` that predict its targets."""
    batch = to_device(batch, decoder.head_weight.device)

    def attend(layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        return packed_attention(q_TNH, k_TKH, v_TKH, batch.bounds_S, batch.longest)

    return batch, decoder(batch.tokens_T, batch.positions_T, attend, recompute)


def token_values(
    body: Decoder, head: nn.Linear, batch: Batch, recompute: Recompute | None = None
) -> tuple[Batch, Tensor]:
    """The batch on the model's device, with the value before each target, fp32 `[T]`."""
    batch, hidden_TD = token_hidden(body, batch, recompute)
    return batch, head(hidden_TD.float())[:, 0]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; on CUDA the copies are queued, not waited for."""
    if device.type == "cpu":
        return batch
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    moved: dict[str, Any] = {
        name: value.pin_memory().to(device, non_blocking=True)
        for name, value in tensors.items()
        if isinstance(value, Tensor)
    }
    return replace(batch, **moved)
