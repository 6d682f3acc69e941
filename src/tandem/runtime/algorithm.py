"""What an algorithm needs beside the policy: the user's functions and a teacher."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tandem.algo import Hooks, wants_teacher
from tandem.checkpoint.find import decide_reference
from tandem.config import Config, flat
from tandem.errors import HookError
from tandem.hooks import Hook, Spec, load
from tandem.hooks.view import view_of
from tandem.models.decoder import Decoder
from tandem.models.shape import Shape
from tandem.parallel import Mesh
from tandem.rollout.custom.converting import converted_scores
from tandem.runtime.weights import fill
from tandem.train import build_parts
from tandem.types import Group

ADVANTAGE = Spec("--custom-advantage-function-path", "args, rollout_data")
LOSS = Spec("--custom-loss-function-path", "args, batch, logits, sum_of_sample_mean")
REDUCER = Spec(
    "--custom-pg-loss-reducer-function-path",
    "total_lengths, response_lengths, loss_masks, calculate_per_token_loss",
)
TIS = Spec(
    "--custom-tis-function-path",
    "args",
    keywords="pg_loss, train_log_probs, rollout_log_probs, loss_masks, total_lengths, "
    "response_lengths",
)
POST_PROCESS = Spec("--custom-reward-post-process-path", "args, samples")
DATA = Spec("--rollout-data-postprocess-path", "args, rollout_id, rollout_data")


def load_hooks(cfg: Config, first: int = 0) -> Hooks:
    """The algorithm's hooks, loaded and checked; raises HookError for one that cannot be called.

    `first` is the rollout that is learned from first; those after it come in their order.
    """
    args, algo = flat(cfg), cfg.algo

    def call(path: str | None, spec: Spec) -> Any:
        return None if path is None else _guarded(load(path, spec))

    post_process = _scoring(cfg, call(cfg.reward.custom_reward_post_process_path, POST_PROCESS))
    data = call(cfg.rollout.rollout_data_postprocess_path, DATA)
    numbers = itertools.count(first)
    return Hooks(
        args=args,
        advantage=call(algo.custom_advantage_function_path, ADVANTAGE),
        loss=call(algo.custom_loss_function_path, LOSS),
        reducer=call(algo.custom_pg_loss_reducer_function_path, REDUCER),
        tis=call(algo.custom_tis_function_path, TIS),
        post_process=post_process,
        postprocess=None if data is None else lambda told: data(args, next(numbers), told),
    )


def _scoring(cfg: Config, hook: Any) -> Any:
    """What gives the scores `[G]` of each group, if a function of the user's does."""
    if cfg.rollout.custom_convert_samples_to_train_data_path is not None:
        return converted_scores
    return None if hook is None else _post_process(hook, flat(cfg))


def teacher_parts(
    cfg: Config, shape: Shape, device: torch.device, mesh: Mesh
) -> tuple[Decoder, ...] | None:
    """What this process holds of the teacher that distillation asks for, of the policy's shape."""
    if not wants_teacher(cfg.algo):
        return None
    found = decide_reference(
        ref_load=cfg.algo.opd_teacher_load,
        hf_checkpoint=cfg.model.hf_checkpoint,
        ref_ckpt_step=cfg.algo.opd_teacher_ckpt_step,
    )
    parts = build_parts(cfg, shape, mesh, device)
    for part in parts:
        fill(part, found, cfg.debug.seed)
    return parts


def _guarded(hook: Hook) -> Any:
    """The hook's function; what it raises names the hook."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        with hook.at_work("this rollout", passes=(HookError,)):
            return hook.call(*arguments, **keywords)

    return call


def _post_process(hook: Any, args: Any) -> Any:
    """`fn(args, samples) -> (raw, processed)` as scores `[G]` of each group."""

    def scores(groups: Sequence[Group]) -> list[np.ndarray]:
        views = [view_of(group.prompt, one) for group in groups for one in group.samples]
        said = hook(args, views)
        count = len(views)
        if not isinstance(said, tuple) or len(said) != 2 or len(said[1]) != count:
            raise HookError(
                f"{POST_PROCESS.flag} must return (raw rewards, processed rewards), each a list of "
                f"{count} numbers, one a sample"
            )
        sizes = np.cumsum([len(group.samples) for group in groups])[:-1]
        return np.split(np.asarray(said[1], np.float64), sizes)

    return scores
