"""Groups to the batches of each optimizer step, and scores back to columns of groups."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tandem.config import AlgoConfig, BatchConfig
from tandem.packing.plan import Layout, Row, Step, plan, split_steps
from tandem.packing.row import Item, build_row, flatten, unshifted
from tandem.types import Batch, Ending, Group, Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringRow:
    """A batch to compute log-probs on, and the samples it holds, by place in the flat list."""

    batch: Batch
    samples: Row


def pack(
    groups: Sequence[Group], layout: Layout, cfg: BatchConfig, algo: AlgoConfig
) -> list[list[Batch]]:
    """The batches of this data rank: one inner list for each optimizer step.

    Every rank gets equally many batches in a step, on the CPU. A sample that has no verdict, or
    could not be sampled, or holds no trained token is in no batch, and counts in the denominators
    as the dialect says (section 3.9). Raises ConfigError.
    """
    items = flatten(groups)
    masks = [trained(item.sample, algo) for item in items]
    names = _shared_columns(items)
    steps = []
    for step in _plan(items, masks, layout, cfg):
        weights, denominator = _weights(
            items, masks, step.samples, per_token=algo.calculate_per_token_loss
        )
        steps.append(
            [
                replace(
                    build_row(
                        [items[place] for place in row],
                        [_left(items[place], masks[place]) for place in row],
                        [_left(items[place], weights[place]) for place in row],
                        names,
                        layout.row_multiple,
                        replays=algo.use_routing_replay,
                    ),
                    denominator=denominator,
                )
                for row in step.rows(layout.data_rank)
            ]
        )
    return steps


def num_steps(groups: Sequence[Group], cfg: BatchConfig) -> int:
    """How many optimizer steps `pack` makes of these groups."""
    rollouts = [sample.rollout for group in groups for sample in group.samples]
    return len(split_steps(rollouts, cfg.global_batch_size))


def scoring_rows(
    groups: Sequence[Group], layout: Layout, cfg: BatchConfig, algo: AlgoConfig
) -> list[ScoringRow]:
    """The rows to score this rank's samples with before its first step; their weights are 0.

    They hold the same samples as the rows of `pack`, so that the same forward pass gives the same
    bits, unless `log_probs_max_tokens_per_gpu` asks for longer or shorter ones.
    """
    items = flatten(groups)
    masks = [trained(item.sample, algo) for item in items]
    if cfg.use_dynamic_batch_size and cfg.log_probs_max_tokens_per_gpu is not None:
        cfg = replace(cfg, max_tokens_per_gpu=cfg.log_probs_max_tokens_per_gpu)
    rows = []
    for step in _plan(items, masks, layout, cfg):
        for row in step.rows(layout.data_rank):
            members = [items[place] for place in row]
            row_masks = [masks[place] for place in row]
            zeros = [np.zeros(len(mask_T)) for mask_T in row_masks]
            batch = build_row(
                members,
                row_masks,
                zeros,
                (),
                layout.row_multiple,
                replays=algo.use_rollout_routing_replay,
            )
            rows.append(ScoringRow(batch=batch, samples=row))
    return rows


def columns(
    groups: Sequence[Group], rows: Sequence[ScoringRow], scores: Iterable[np.ndarray]
) -> list[tuple[np.ndarray, ...]]:
    """A column for each group, from one array of scores for each row: packing turned round.

    Entry t of a row's array speaks of its `targets_T[t]`. Tokens that no row scored have 0.
    """
    flat = [sample for group in groups for sample in group.samples]
    column = [np.zeros(sample.num_tokens, np.float32) for sample in flat]
    for row, score_T in zip(rows, scores, strict=True):
        bounds = row.batch.bounds_S.tolist()
        for place, start, end in zip(row.samples, bounds, bounds[1:], strict=False):
            column[place] = unshifted(score_T[start:end], flat[place])
    parts = iter(column)
    return [tuple(next(parts) for _ in group.samples) for group in groups]


def trained(sample: Sample, algo: AlgoConfig) -> np.ndarray:
    """Where the sample's tokens are trained, `[T]` bool, about token t.

    Token 0 never is: nothing predicts it.
    """
    trained_T = sample.sampled_T.copy()
    trained_T[:1] = False
    has_verdict = sample.reward is not None or algo.loss_type == "sft_loss"
    if sample.ending is Ending.ERROR or not has_verdict:
        trained_T[:] = False
    return trained_T


def _left(item: Item, column_T: np.ndarray) -> np.ndarray:
    """A mask or weights without the tokens that a hook took out of the loss."""
    return column_T if item.stays_T is None else column_T * item.stays_T


def _plan(
    items: Sequence[Item], masks: Sequence[np.ndarray], layout: Layout, cfg: BatchConfig
) -> tuple[Step, ...]:
    return plan(
        [item.sample.num_tokens for item in items],
        [item.sample.rollout for item in items],
        [bool(mask_T.any()) for mask_T in masks],
        layout,
        cfg,
    )


def _weights(
    items: Sequence[Item], masks: Sequence[np.ndarray], samples: Row, *, per_token: bool
) -> tuple[dict[int, np.ndarray], float]:
    """mask / denominator of every sample of a step, by place, float64 `[T]` about token t.

    Beside it the part of the denominator that the whole step shares: its attempts or its tokens.

    Rollout mean: the trained tokens of the sample's whole rollout times the rollouts of the step.
    Per token: the trained tokens of the step, where a sample without any counts as one.
    """
    sizes = {place: int(masks[place].sum()) for place in samples}
    if per_token:
        total = sum(max(size, 1) for size in sizes.values())
        return {place: masks[place] / total for place in samples}, total
    tokens: dict[int, int] = {}
    for place, size in sizes.items():
        rollout = items[place].sample.rollout
        tokens[rollout] = tokens.get(rollout, 0) + size
    weights = {
        place: masks[place] / (max(tokens[items[place].sample.rollout], 1) * len(tokens))
        for place in samples
    }
    return weights, len(tokens)


def _shared_columns(items: Sequence[Item]) -> tuple[str, ...]:
    """The columns that every sample has; one that only some have is our own fault."""
    names = {name for item in items for name in item.columns}
    for name in names:
        count = sum(name in item.columns for item in items)
        assert count == len(items), f"column {name} is there for {count} of {len(items)} samples"
    return tuple(sorted(names))
