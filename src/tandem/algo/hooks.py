"""The user's own functions in the algorithm, with the dialect's signatures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tandem.algo.dialect import (
    batch_view,
    column_of,
    joined,
    masks_of,
    packed,
    rollout_view,
    spans_of,
    with_advantages,
)
from tandem.algo.kl import response_kl
from tandem.algo.mismatch import Correction, Tokens
from tandem.config import AlgoConfig
from tandem.errors import HookError
from tandem.types import COLUMNS, Batch, Group, Sample

if TYPE_CHECKING:
    import torch


Hook = Callable[..., Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """Functions that were loaded and checked at the start; None where the flag is not set.

    `args` is the flat view of the settings that each gets first.
    """

    args: Any = None
    advantage: Hook | None = None  # --custom-advantage-function-path
    loss: Hook | None = None  # --custom-loss-function-path
    reducer: Hook | None = None  # --custom-pg-loss-reducer-function-path
    tis: Hook | None = None  # --custom-tis-function-path
    post_process: Callable[[Sequence[Group]], Sequence[np.ndarray]] | None = None
    """--custom-reward-post-process-path, as scores `[G]` of each group."""
    postprocess: Callable[[Any], None] | None = None
    """--rollout-data-postprocess-path, given the `rollout_data` of the rollout that is next."""


NO_HOOKS = Hooks()


def hooked_advantages(
    groups: Sequence[Group],
    scores: Sequence[np.ndarray],
    kl: Sequence[Any],
    hooks: Hooks,
    *,
    wants_returns: bool,
) -> list[Group]:
    """The groups with what `fn(args, rollout_data)` put under "advantages" and "returns".

    `scores` are the normalised rewards `[G]` of each group. Raises HookError for what is missing.
    """
    assert hooks.advantage is not None, "asked for advantages of a hook that is not there"
    data = rollout_view(groups, scores, kl)
    hooks.advantage(hooks.args, data)
    for key in ("advantages", "returns") if wants_returns else ("advantages",):
        if data.get(key) is None:
            raise HookError(
                f'--custom-advantage-function-path returned without setting rollout_data["{key}"]; '
                "wanted a list with one tensor a sample, as long as its response"
            )
    return with_advantages(groups, data["advantages"], data.get("returns"))


def hooked_correction(
    batch: Batch, tokens: Tokens, loss_T: "torch.Tensor", hooks: Hooks
) -> "tuple[torch.Tensor, Correction]":
    """The losses as `fn(args, pg_loss=..., ...)` left them, and its masks and metrics."""
    assert hooks.tis is not None, "asked for a correction of a hook that is not there"
    spans, num_tokens = spans_of(batch), len(loss_T)
    said = hooks.tis(
        hooks.args,
        pg_loss=joined(loss_T, spans),
        train_log_probs=[span.of(tokens.trainer_T) for span in spans],
        rollout_log_probs=[span.of(tokens.engine_T) for span in spans],
        loss_masks=masks_of(batch, spans),
        total_lengths=[span.total_length for span in spans],
        response_lengths=[span.response_length for span in spans],
    )
    if not isinstance(said, tuple) or len(said) != 3:
        raise HookError(
            "--custom-tis-function-path must return (pg_loss, modified_loss_masks, metrics); it "
            f"returned {type(said).__name__}"
        )
    changed, masks, metrics = said
    is_kept_T = tokens.mask_T > 0
    if masks is not None:
        is_kept_T = packed(list(masks), spans, num_tokens) > 0
    columns = {name: packed(value, spans, num_tokens) for name, value in metrics.items()}
    ones_T = loss_T.new_ones(()).expand_as(loss_T)
    return packed(changed, spans, num_tokens), Correction(ones_T, is_kept_T, columns)


def hooked_reduction(
    batch: Batch, loss_T: "torch.Tensor", hooks: Hooks, *, per_token: bool
) -> "torch.Tensor":
    """The policy term as the user's reducer sums it, over the step's attempts or tokens."""
    assert hooks.reducer is not None, "asked for a reduction by a hook that is not there"
    spans = spans_of(batch)
    reduce = hooks.reducer(
        [span.total_length for span in spans],
        [span.response_length for span in spans],
        masks_of(batch, spans),
        per_token,
    )
    return reduce(joined(loss_T, spans)).double() / batch.denominator


def hooked_loss(
    batch: Batch, logits_TV: "torch.Tensor", hooks: Hooks
) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
    """The loss and metrics of `fn(args, batch, logits, sum_of_sample_mean)`.

    `logits` is `[1, T, V]`, raw; `sum_of_sample_mean(x)` takes one number for each response token,
    samples joined in order, and gives the sum over samples of their mean (of tokens, under
    `--calculate-per-token-loss`). What the function returns is divided by the attempts (tokens) of
    the whole step, as every loss is.
    """
    assert hooks.loss is not None, "asked for the loss of a hook that is not there"
    spans, num_tokens = spans_of(batch), len(batch.mask_T)

    def sum_of_sample_mean(x: "torch.Tensor") -> "torch.Tensor":
        x_T = packed(x, spans, num_tokens)
        return (batch.weight_T.double() * x_T.double()).sum() * batch.denominator

    said = hooks.loss(hooks.args, batch_view(batch, spans), logits_TV[None], sum_of_sample_mean)
    if not isinstance(said, tuple) or len(said) != 2:
        raise HookError(
            "--custom-loss-function-path must return (loss, metrics); it returned "
            f"{type(said).__name__}"
        )
    value, metrics = said[0].double() / batch.denominator, dict(said[1])
    shares = {name: _share(metric, batch) for name, metric in metrics.items()}
    return value, {"loss": value.detach()} | shares


def _share(metric: Any, batch: Batch) -> "torch.Tensor":
    import torch

    return torch.as_tensor(metric).detach().double().to(batch.mask_T.device) / batch.denominator


FLAG = "--rollout-data-postprocess-path"


def postprocessed(
    groups: Sequence[Group], scores: Sequence[np.ndarray], cfg: AlgoConfig, hooks: Hooks
) -> tuple[Group, ...]:
    """The groups with what `fn(args, rollout_id, rollout_data)` left in its lists.

    Taken over are `loss_masks`, `rollout_log_probs` and the columns that were there: `log_probs`,
    `ref_log_probs`, `teacher_log_probs`, `values`, `advantages`, `returns`. A token taken out of
    `loss_masks` still counts in the denominators of the loss, as the dialect has it. `scores` are
    the rewards `[G]` as advantages started from them. Raises HookError.
    """
    if hooks.postprocess is None:
        return tuple(groups)
    data = rollout_view(groups, scores, response_kl(groups, cfg))
    known = {name for name in COLUMNS.values() if name in data}
    hooks.postprocess(data)
    count = sum(len(group.samples) for group in groups)
    for name in ("loss_masks", "rollout_log_probs", *known):
        if len(data.get(name) or ()) != count:
            raise HookError(f"{FLAG} left {name} with another number of entries than {count}")
    done, first = [], 0
    for group in groups:
        done.append(_with(group, data, known, first))
        first += len(group.samples)
    return tuple(done)


def _with(group: Group, data: dict[str, Any], known: set[str], first: int) -> Group:
    """One group, whose samples are the entries of `data` from `first` on."""
    start = len(group.prompt.tokens_T)

    def column(name: str, place: int) -> np.ndarray:
        return column_of(group, place, data[name][first + place], f"{FLAG} left as {name}")

    places = range(len(group.samples))
    samples = [
        replace(sample, logprobs_T=column("rollout_log_probs", place))
        for place, sample in enumerate(group.samples)
    ]
    masks = [np.asarray(data["loss_masks"][first + place]) != 0 for place in places]
    columns: dict[str, Any] = {
        ours: tuple(column(theirs, place) for place in places)
        for ours, theirs in COLUMNS.items()
        if theirs in known
    }
    stays = tuple(_stays(*pair, start) for pair in zip(samples, masks, strict=True))
    return replace(group, samples=tuple(samples), stays=stays, **columns)


def _stays(sample: Sample, mask: np.ndarray, start: int) -> np.ndarray:
    if mask.shape != (sample.num_tokens - start,):
        raise HookError(f"{FLAG} left loss_masks of sample {sample.index} with another length")
    stays_T = np.concatenate([np.zeros(start, bool), mask])
    if (stays_T & ~sample.sampled_T).any():
        raise HookError(
            f"{FLAG} added tokens to loss_masks of sample {sample.index} that the policy did not "
            "choose; they have no log-probs, so only take tokens out"
        )
    return stays_T
