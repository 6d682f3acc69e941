"""What a model says of the tokens of a packed row."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from tandem.contracts import Attend
from tandem.kernels.attention import packed_attention
from tandem.kernels.head import token_logprobs
from tandem.models.decoder import Decoder, Recompute
from tandem.models.experts import NO_ROUTING, Routing
from tandem.parallel import Axis
from tandem.parallel.collectives import all_rows
from tandem.train.context import Chunk, attention_over, chunks_of, in_row_order, own_tokens
from tandem.types import Batch

KEPT_BYTES = 3 << 30
"""What the head keeps for the backward pass, where memory is plenty."""
_ELSEWHERE = 8 << 30  # what the backward pass takes beside it, and blocks that fit nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """How log-probs are computed."""

    temperature: float = 1.0  # logits are divided by it, as the sampler's were
    chunk: int = -1  # rows of logits at once; -1: chosen by size
    wants_entropy: bool = False
    entropy_has_gradient: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A packed row as one process works on it, on its device.

    Processes of the context axis have some tokens each; the loss is of the whole row on all.
    """

    batch: Batch  # whole
    tokens_T: Tensor  # from here on its own
    positions_T: Tensor
    targets_T: Tensor
    trained: Tensor  # places of the trained targets
    attend: Attend
    context: Axis
    chunks: tuple[Chunk, Chunk] | None = None  # of its own; None: it has the whole row

    def own(self, column_T: Tensor) -> Tensor:
        """This process's entries of a column of the whole row."""
        return column_T if self.chunks is None else own_tokens(column_T, self.chunks)

    def spread(self, scores: Tensor) -> Tensor:
        """The whole row's scores, fp32 `[T]`, of those of this process's trained targets."""
        own_T = scores.new_zeros(len(self.tokens_T)).index_copy(0, self.trained, scores)
        return self.whole(own_T)

    def whole(self, own_T: Tensor) -> Tensor:
        """The whole row's entries, of each process's own."""
        if self.context.size == 1:
            return own_T
        return in_row_order(all_rows(own_T, self.context), self.context)


def row_for(decoder: Decoder, batch: Batch) -> Row:
    """The row for this process. `batch` is on the CPU: counting what is trained waits for nothing.

    On CUDA the copies are queued, not waited for.
    """
    context = decoder.part.mesh.context
    moved = to_device(batch, decoder.device)
    mask_T, own = batch.mask_T, [moved.tokens_T, moved.positions_T, moved.targets_T]
    attend: Attend
    chunks = None
    if context.size == 1:

        def attend(layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, /) -> Tensor:
            return packed_attention(q_TNH, k_TKH, v_TKH, moved.bounds_S, moved.longest)

    else:
        chunks = chunks_of(batch.bounds_S, context)
        mask_T, *own = (own_tokens(column_T, chunks) for column_T in (mask_T, *own))
        attend = attention_over(chunks, moved.tokens_T.device, context)
    trained = mask_T.nonzero()[:, 0]
    return Row(
        batch=moved,
        tokens_T=own[0],
        positions_T=own[1],
        targets_T=own[2],
        trained=trained.to(moved.tokens_T.device, non_blocking=True),
        attend=attend,
        context=context,
        chunks=chunks,
    )


def hidden_of(
    decoder: Decoder,
    row: Row,
    recompute: Recompute | None = None,
    stream: Tensor | None = None,
    routing: Routing = NO_ROUTING,
) -> Tensor:
    """What the decoder, or one stage of it, makes of the row's own tokens.

    The hidden states `[T, D]` that predict the targets, of a stage without the head the stream.
    `stream` is that of the stage before.
    """
    return decoder(row.tokens_T, row.positions_T, row.attend, recompute, stream, routing)


def scores_of(
    decoder: Decoder, row: Row, hidden_TD: Tensor, how: Scoring
) -> tuple[Tensor, Tensor | None]:
    """Log-probs and entropy of the row's targets, fp32 `[T]`.

    Both are 0 where the mask is 0: the head runs on trained positions only.
    """
    logprobs, entropy = token_logprobs(
        hidden_TD.index_select(0, row.trained),
        decoder.head_weight,
        row.targets_T.index_select(0, row.trained),
        temperature=how.temperature,
        chunk=how.chunk,
        want_entropy=how.wants_entropy,
        entropy_needs_grad=how.entropy_has_gradient,
        keep_bytes=_room_to_keep(hidden_TD) if torch.is_grad_enabled() else 0,
        axis=decoder.part.mesh.tensor,
        vocab_start=decoder.vocab_start,
    )
    return row.spread(logprobs), None if entropy is None else row.spread(entropy)


def _room_to_keep(hidden_TD: Tensor) -> int:
    """Bytes of log-probs that the head may keep for the backward pass: `KEPT_BYTES` where twice as
    much is free. 0.27 s of W1 on an H200."""
    if not hidden_TD.is_cuda or torch.are_deterministic_algorithms_enabled():
        return 0  # what is kept is rounded, so its amount is seen in the gradients
    device = hidden_TD.device
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return KEPT_BYTES if free + held > 2 * KEPT_BYTES + _ELSEWHERE else 0


def token_values(
    body: Decoder, head: nn.Linear, batch: Batch, recompute: Recompute | None = None
) -> tuple[Batch, Tensor]:
    """The batch on the model's device, with the value before each target, fp32 `[T]`."""
    row = row_for(body, batch)
    hidden_TD = hidden_of(body, row, recompute)
    return row.batch, row.whole(head(hidden_TD.float())[:, 0])


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
