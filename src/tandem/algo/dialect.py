"""Rows and groups as the dialect's hooks see them: lists of per-sample tensors over responses.

A response is what follows the prompt, replies of the world included; entry t of it speaks of its
token t.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tandem.errors import HookError
from tandem.types import COLUMNS, Batch, Ending, Group

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Span:
    """Where one sample's response is predicted in a packed row, whose entries are shifted."""

    start: int
    stop: int
    total_length: int

    @property
    def response_length(self) -> int:
        return self.stop - self.start

    def of(self, x_T: "torch.Tensor") -> "torch.Tensor":
        """The response's entries of a row."""
        return x_T[self.start : self.stop]


def spans_of(batch: Batch) -> list[Span]:
    """The span of each sample of a row; padding has none.

    A row does not know its prompts, so a response begins at its first trained token.
    """
    bounds, mask = batch.bounds_S.tolist(), batch.mask_T.cpu().numpy()
    spans = []
    for begin, end in itertools.pairwise(bounds):
        places = np.flatnonzero(mask[begin:end])
        if len(places):
            # the last position of a sequence predicts nothing
            spans.append(Span(begin + int(places[0]), end - 1, end - begin))
    return spans


def joined(x_T: "torch.Tensor", spans: Sequence[Span]) -> "torch.Tensor":
    """The responses' entries one after the other."""
    import torch

    parts = [span.of(x_T) for span in spans]
    return torch.cat(parts) if parts else x_T[:0]


def packed(
    x: "torch.Tensor | Sequence[torch.Tensor]", spans: Sequence[Span], num_tokens: int
) -> "torch.Tensor":
    """A row from responses' entries, joined or listed; 0 outside of responses."""
    import torch

    flat = x if isinstance(x, torch.Tensor) else torch.cat([torch.as_tensor(one) for one in x])
    wanted = sum(span.response_length for span in spans)
    if flat.dim() != 1 or len(flat) != wanted:
        raise HookError(
            f"a hook gave a tensor of size {tuple(flat.shape)} where one number is wanted for each "
            f"of {wanted} response tokens"
        )
    places = torch.cat([torch.arange(span.start, span.stop) for span in spans] or [flat[:0].long()])
    flat = flat.float() if flat.dtype in (torch.bool, torch.int32, torch.int64) else flat
    return flat.new_zeros(num_tokens).index_put((places.to(flat.device),), flat)


def masks_of(batch: Batch, spans: Sequence[Span]) -> "list[torch.Tensor]":
    """The loss mask of each response."""
    return [span.of(batch.mask_T) for span in spans]


def batch_view(batch: Batch, spans: Sequence[Span]) -> dict[str, Any]:
    """The dialect's `batch`: `unconcat_tokens`, lengths, masks, and the columns that are there.

    `row_ends` is ours: where each sample ends along the tokens of the row.
    """
    view: dict[str, Any] = {
        "tokens": batch.tokens_T[None],
        "unconcat_tokens": [
            batch.tokens_T[span.stop + 1 - span.total_length : span.stop + 1] for span in spans
        ],
        "row_ends": [span.stop + 1 for span in spans],
        "total_lengths": [span.total_length for span in spans],
        "response_lengths": [span.response_length for span in spans],
        "loss_masks": masks_of(batch, spans),
    }
    for ours, theirs in {**COLUMNS, "engine_logprobs": "rollout_log_probs"}.items():
        column_T = getattr(batch, f"{ours}_T")
        if column_T is not None:
            view[theirs] = [span.of(column_T) for span in spans]
    return view


def response_logprobs(
    batch: Mapping[str, Any], logits: "torch.Tensor", temperature: float = 1.0
) -> "list[torch.Tensor]":
    """The log-probs of each response's tokens, for a custom loss that starts from logits."""
    found = []
    for tokens, end, length in zip(
        batch["unconcat_tokens"], batch["row_ends"], batch["response_lengths"], strict=True
    ):
        rows = logits[0, end - 1 - length : end - 1].float() / temperature
        found.append(rows.log_softmax(-1).gather(1, tokens[-length:, None])[:, 0])
    return found


def rollout_view(
    groups: Sequence[Group], scores: Sequence[np.ndarray], kl: Sequence["torch.Tensor"]
) -> dict[str, Any]:
    """The dialect's `rollout_data`: a list with one entry a sample under each of its keys.

    `rewards` are the normalised ones, `raw_reward` those of the verdicts (0 where none came);
    `rollout_mask_sums` counts the sampled tokens of all samples of an attempt.
    """
    import torch

    pairs = [(group, place) for group in groups for place in range(len(group.samples))]
    starts = [len(group.prompt.tokens_T) for group, _ in pairs]
    samples = [group.samples[place] for group, place in pairs]

    def cut(arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
        cuts = zip(arrays, starts, strict=True)
        return [torch.from_numpy(np.array(array_T[start:])) for array_T, start in cuts]

    sums: dict[int, int] = {}
    for sample in samples:
        sums[sample.rollout] = sums.get(sample.rollout, 0) + sample.num_sampled
    rewards = [0.0 if sample.reward is None else sample.reward for sample in samples]
    view: dict[str, Any] = {
        "tokens": [torch.from_numpy(sample.tokens_T.astype(np.int64)) for sample in samples],
        "total_lengths": [sample.num_tokens for sample in samples],
        "response_lengths": [length for group in groups for length in group.responses_G],
        "loss_masks": cut([sample.sampled_T.astype(np.int32) for sample in samples]),
        "rewards": [float(score) for scores_G in scores for score in scores_G],
        "raw_reward": rewards,
        "rollout_log_probs": cut([sample.logprobs_T for sample in samples]),
        "kl": list(kl),
        "sample_indices": [sample.index for sample in samples],
        "rollout_ids": [sample.rollout for sample in samples],
        "rollout_mask_sums": [float(sums[sample.rollout]) for sample in samples],
        "truncated": [int(sample.ending is Ending.LENGTH) for sample in samples],
    }
    for ours, theirs in COLUMNS.items():
        if all(getattr(group, ours) is not None for group in groups):
            view[theirs] = cut([getattr(group, ours)[place] for group, place in pairs])
    return view


def with_advantages(
    groups: Sequence[Group], advantages: Sequence[Any], returns: Sequence[Any] | None
) -> list[Group]:
    """The groups with columns made of a hook's lists over responses; 0 where nothing was chosen."""
    count = sum(len(group.samples) for group in groups)
    if len(advantages) != count or (returns is not None and len(returns) != count):
        raise HookError(
            f"--custom-advantage-function-path set {len(advantages)} advantages for {count} samples"
        )
    places, done = iter(range(count)), []
    for group in groups:
        mine = [next(places) for _ in group.samples]
        columns: dict[str, Any] = {
            name: tuple(
                column_of(group, place, values[i], "--custom-advantage-function-path set")
                for place, i in enumerate(mine)
            )
            for name, values in (("advantages", advantages), ("returns", returns))
            if values is not None
        }
        done.append(replace(group, **columns))
    return done


def column_of(group: Group, place: int, values: Any, said: str) -> np.ndarray:
    """A hook's numbers about the response of one sample, as a column of all its tokens, `[T]`.

    0 where the policy did not choose the token. Raises HookError, which begins with `said`, for
    another count of numbers.
    """
    sample, start = group.samples[place], len(group.prompt.tokens_T)
    array = np.asarray(values, np.float32)
    if array.shape != (sample.num_tokens - start,):
        raise HookError(
            f"{said} {array.size} numbers for sample {sample.index}, whose response has "
            f"{sample.num_tokens - start} tokens"
        )
    column_T = np.zeros(sample.num_tokens, np.float32)
    column_T[start:] = array
    return np.where(sample.sampled_T, column_T, 0).astype(np.float32)
