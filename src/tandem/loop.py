"""The loop that owns every arrow: sample, judge, learn, publish, report, save."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from tandem.algo import NO_HOOKS, Hooks, advantage
from tandem.config import Config
from tandem.contracts import Evaluator, Sampler, Sync, Trainer
from tandem.errors import Stopped
from tandem.observe import RunLog, Timers
from tandem.packing import pack
from tandem.parallel import Layout
from tandem.train import broken_invariants
from tandem.types import Group, StepStats


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Whose turn it is on shared devices; each does nothing where they are not shared."""

    sampling: Callable[[], AbstractContextManager[Any]] = nullcontext
    learning: Callable[[], AbstractContextManager[Any]] = nullcontext
    publishing: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Everything that the loop drives, built by a runtime."""

    sampler: Sampler
    evaluator: Evaluator
    trainer: Trainer
    sync: Sync
    log: RunLog
    devices: Devices
    layout: Layout
    start: int
    num_rollout: int
    rollouts_per_epoch: int
    precision: str  # fp32 or bf16: what the model computes in
    save: Callable[[int, Mapping[str, Any]], None]  # (rollout id, state of the sampler)
    hooks: Hooks = NO_HOOKS  # the user's own functions in the algorithm


def train(cfg: Config, stages: Stages) -> None:
    """Runs rollouts `start` to `num_rollout`.

    Asked to stop, it saves what it has learnt and raises Stopped; a rollout under way is given up.
    """
    sampler, trainer, sync, log = stages.sampler, stages.trainer, stages.sync, stages.log
    devices, timers = stages.devices, Timers()
    learnt, state = stages.start - 1, sampler.state()  # what a checkpoint could hold now
    update: Mapping[str, float] = {}
    with devices.publishing():
        sync.publish(trainer.weights(stages.start))
    try:
        if evaluates_before(cfg, stages):
            evaluate(stages, stages.start)
        for step in range(stages.start, stages.num_rollout):
            with timers.span("rollout"), devices.sampling():
                rollout = sampler.collect(step)
            groups, stats = learn(cfg, stages, rollout.groups, timers)
            learnt, state, update = step, sampler.state(), {}
            if is_update_due(cfg, step, stages):
                with timers.span("update_weights"), devices.publishing():
                    update = sync.publish(trainer.weights(step + 1))
                state = sampler.state()
            log.step(step, rollout, groups, stats, update, timers.take())
            for sentence in broken_invariants(stats, cfg.algo, stages.precision):
                log.warn(sentence, kind="first step")
            if is_evaluation_due(cfg, step, stages):
                evaluate(stages, step + 1)
            if is_due(cfg.checkpoint.save_interval, step, stages):
                with timers.span("save"):
                    stages.save(step, state)
    except Stopped:
        stages.save(learnt, state)
        raise


def learn(
    cfg: Config, stages: Stages, groups: Sequence[Group], timers: Timers
) -> tuple[tuple[Group, ...], StepStats]:
    """The groups with the columns that were added on the way, and what the trainer reports."""
    with stages.devices.learning():
        with timers.span("annotate"):
            annotated = stages.trainer.annotate(groups)
        with timers.span("advantage"):
            judged = advantage(annotated, cfg.algo, stages.hooks)
        with timers.span("pack"):
            batches = pack(judged, stages.layout, cfg.batch, cfg.algo)
        with timers.span("train"):
            stats = stages.trainer.step_on(batches)
    return judged, stats


def evaluate(stages: Stages, step: int) -> None:
    """Looks at the held-out sets with the weights that stand before rollout `step`."""
    with stages.devices.sampling():
        evaluation = stages.evaluator.evaluate()
    stages.log.evaluation(step, evaluation.metrics, evaluation.groups)


def evaluates_before(cfg: Config, stages: Stages) -> bool:
    """Whether held-out sets are looked at before the first rollout: only in fresh runs."""
    if not cfg.eval.eval_sets:
        return False
    if stages.num_rollout == 0:
        return True
    is_asked = cfg.eval.eval_interval is not None and not cfg.eval.skip_eval_before_train
    return is_asked and stages.start == 0


def is_evaluation_due(cfg: Config, step: int, stages: Stages) -> bool:
    """Whether held-out sets are looked at after this rollout: at intervals and at the end."""
    is_last = step + 1 == stages.num_rollout
    return bool(cfg.eval.eval_sets) and (is_last or is_due(cfg.eval.eval_interval, step, stages))


def is_update_due(cfg: Config, step: int, stages: Stages) -> bool:
    """Whether the engines get new weights after this rollout: at intervals and at the end.

    Before an evaluation and a save too: one is of the newest weights, and from the other a run must
    go on as if it had never ended, with engines that hold what the checkpoint holds.
    """
    return (
        is_due(cfg.sync.update_weights_interval, step, stages)
        or is_evaluation_due(cfg, step, stages)
        or is_due(cfg.checkpoint.save_interval, step, stages)
    )


def is_due(interval: int | None, step: int, stages: Stages) -> bool:
    """Whether something that happens every `interval` rollouts happens after this one.

    The last rollout and the end of an epoch count too (dialect: periodic actions).
    """
    if interval is None:
        return False
    done = step + 1
    return (
        done == stages.num_rollout
        or done % interval == 0
        or (stages.rollouts_per_epoch > 0 and done % stages.rollouts_per_epoch == 0)
    )
