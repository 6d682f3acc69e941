"""The rollout stage as the settings ask for it."""

from typing import Any

from tandem.config import Config, flat
from tandem.contracts import Source
from tandem.rollout import Choice, EventLoop, GroupSampler, RolloutStage, Supply, Terms
from tandem.rollout.brake import Holds
from tandem.rollout.collect import Progress
from tandem.rollout.custom.filters import buffer_filter, dynamic_filter
from tandem.rollout.settings import training_sampling
from tandem.rollout.supply import first_in


def build_rollout_stage(
    cfg: Config,
    *,
    source: Source,
    groups: GroupSampler,
    max_context: int,
    holds: Holds | None,
    events: EventLoop,
    progress: Progress,
) -> RolloutStage:
    """The stage that samples, keeps and saves groups; `holds`: the engine, if it can be held."""
    args = flat(cfg)
    waiting = cfg.rollout.buffer_filter_path
    choose = first_in if waiting is None else buffer_filter(waiting, args)
    return RolloutStage(
        supply=Supply(source, cfg.data.n_samples_per_prompt, choose),
        groups=groups,
        terms=Terms(
            sampling=training_sampling(cfg.rollout),
            seed=cfg.data.rollout_seed,
            max_context=max_context,
        ),
        choice=choice_of(cfg, args),
        events=events,
        holds=None if cfg.rollout.no_hold_for_verdicts else holds,
        progress=progress,
    )


def choice_of(cfg: Config, args: Any) -> Choice:
    """How many groups a round keeps, and which."""
    batch_size, fetch_size = cfg.data.rollout_batch_size, cfg.rollout.over_sampling_batch_size
    assert batch_size is not None, "rules refuse a run without --rollout-batch-size"
    path = cfg.rollout.dynamic_sampling_filter_path
    return Choice(
        batch_size=batch_size,
        fetch_size=fetch_size or batch_size,
        keeps=None if path is None else dynamic_filter(path, args),
        order=cfg.rollout.dynamic_sampling_keeps,
        saves=cfg.rollout.partial_rollout,
        masks_old=cfg.rollout.mask_offpolicy_in_partial_rollout,
    )
