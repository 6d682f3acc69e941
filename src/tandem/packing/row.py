"""One packed row of tensors. The shift by one token happens here, nowhere else."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tandem.types import COLUMNS, Batch, Group, Sample

PAD_TOKEN = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A sample and what its group's columns say of it."""

    sample: Sample
    columns: Mapping[str, np.ndarray]
    stays_T: np.ndarray | None = None  # see Group.stays


def flatten(groups: Sequence[Group]) -> list[Item]:
    """Every sample of every group, in order, with its columns."""
    return [
        Item(
            sample=sample,
            columns={name: column[place] for name, column in _columns_of(group).items()},
            stays_T=None if group.stays is None else group.stays[place],
        )
        for group in groups
        for place, sample in enumerate(group.samples)
    ]


def build_row(
    items: Sequence[Item],
    masks: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    columns: Iterable[str],
    row_multiple: int,
    *,
    replays: bool = False,
) -> Batch:
    """The row that holds the items one after the other, then padding as one more sequence.

    `masks` and `weights` are `[T]` a sample, about token t, as the columns are. Without items the
    row is all padding, so that a rank with nothing to do can keep step with the others. With
    `replays` it says which experts its tokens shall pass through, as far as samples know.
    """
    lengths = [item.sample.num_tokens for item in items]
    num_tokens = sum(lengths)
    padding = -num_tokens % row_multiple if items else row_multiple
    sizes = lengths + ([padding] if padding else [])

    def floats(arrays: Iterable[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(_shifted(arrays, padding, np.float32))

    tokens = [item.sample.tokens_T for item in items]
    shifted: dict[str, Any] = {
        f"{name}_T": floats(item.columns[name] for item in items) for name in columns
    }
    # padding has position 0 throughout: a short table of angles must not be read past its end
    positions = [*map(np.arange, lengths), np.zeros(padding, np.int64)]
    return Batch(
        tokens_T=torch.from_numpy(_joined(tokens, padding, np.int64, PAD_TOKEN)),
        targets_T=torch.from_numpy(_shifted(tokens, padding, np.int64)),
        positions_T=torch.from_numpy(np.concatenate(positions).astype(np.int64)),
        mask_T=floats(masks),
        weight_T=floats(weights),
        bounds_S=torch.from_numpy(np.cumsum([0, *sizes]).astype(np.int32)),
        longest=max(sizes),
        engine_logprobs_T=floats(item.sample.logprobs_T for item in items),
        experts_TLk=_experts(items, padding) if replays else None,
        **shifted,
        num_tokens=num_tokens,
    )


def unshifted(score_T: np.ndarray, sample: Sample) -> np.ndarray:
    """What a row says of one sample (entry t: of token t + 1), as a column of its group."""
    column_T = np.zeros(sample.num_tokens, np.float32)
    column_T[1:] = np.where(sample.sampled_T[1:], score_T[:-1], 0)
    return column_T


def _experts(items: Sequence[Item], padding: int) -> torch.Tensor | None:
    """What the samples passed through, int16 `[T, L, k]`, -1 where nobody knows; not shifted."""
    known = [item.sample.experts_TLk for item in items if item.sample.experts_TLk is not None]
    if not known:
        return None
    sizes = known[0].shape[1:]
    parts = [
        np.full((item.sample.num_tokens, *sizes), -1, np.int16)
        if item.sample.experts_TLk is None
        else item.sample.experts_TLk
        for item in items
    ]
    return torch.from_numpy(np.concatenate([*parts, np.full((padding, *sizes), -1, np.int16)]))


def _columns_of(group: Group) -> dict[str, tuple[np.ndarray, ...]]:
    columns = {name: getattr(group, name) for name in COLUMNS}
    return {name: column for name, column in columns.items() if column is not None}


def _shifted(arrays: Iterable[np.ndarray], padding: int, dtype: type) -> np.ndarray:
    """Entry t of a sequence becomes what was said of its token t + 1; its last becomes 0."""
    return _joined((np.append(array_T[1:], 0) for array_T in arrays), padding, dtype, 0)


def _joined(arrays: Iterable[np.ndarray], padding: int, dtype: type, fill: int) -> np.ndarray:
    parts: list[np.ndarray] = [np.asarray(array_T, dtype) for array_T in arrays]
    return np.concatenate([*parts, np.full(padding, fill, dtype)])
