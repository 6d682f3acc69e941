"""The stages of a run, but for trainer and engines: what every runtime builds where the loop is."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tandem.algo import NO_HOOKS, Hooks
from tandem.checkpoint.find import Found
from tandem.config import Config, check_expectations, complete, flat
from tandem.config.engines import who_samples
from tandem.config.overlap import uncorrected
from tandem.contracts import Engine, Evaluator, Sampler, Sync, Trainer
from tandem.data import PromptSource, load_eval_prompts, load_tokenizer, mask_question
from tandem.errors import ConfigError
from tandem.kernels.device import repeat_gradients
from tandem.kernels.linear import sum_products_in_one_order
from tandem.loop import Devices, Stages
from tandem.loop_async import Stream
from tandem.models.decoder import Decoder
from tandem.models.part import check_parts
from tandem.models.shape import Shape, read_shape
from tandem.observe import RunLog
from tandem.parallel import Layout
from tandem.rewards.reward import RewardStage
from tandem.rollout import EvaluationSet, EventLoop, ReplayedStage, SupervisedStage
from tandem.rollout.custom.converting import ConvertedSampler
from tandem.rollout.custom.sources import CustomSource
from tandem.rollout.door import Holds
from tandem.rollout.dump import DumpingSampler
from tandem.runtime.algorithm import load_hooks
from tandem.runtime.halves import NoEvaluator, without_evaluation
from tandem.runtime.overlap import overlapped
from tandem.runtime.recording import DumpingTrainer
from tandem.runtime.sampling import Sampling, check_hooks
from tandem.runtime.saving import Resumable, Saver, resume
from tandem.runtime.selftest import checked
from tandem.runtime.weights import find_start
from tandem.types import Prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What is known of a run before trainer and engines are built."""

    opened: "Inputs"
    found: Found
    num_rollout: int
    hooks: Hooks


@dataclass(frozen=True, kw_only=True, slots=True)
class Halves:
    """What a runtime makes: the two halves of a run and what is between them."""

    trainer: Resumable
    layout: Layout
    engine: Engine | None  # None: nothing is sampled
    holds: Holds | None  # the engine, where its steps can be held
    sync: Sync
    devices: Devices
    dtype: str  # that the model computes in, as torch spells it


BuildHalves = Callable[[Config, Known, ExitStack], Halves]


def build_stages(
    cfg: Config, events: EventLoop, stack: ExitStack, build_halves: BuildHalves
) -> tuple[Stages, Config]:
    """Every stage of the run, and the configuration once the prompts are counted.

    What must be closed at the end is pushed on `stack`. Cheap checks come first, so that a wrong
    path or flag is said before any model is loaded.
    """
    if cfg.debug.debug_train_only:
        cfg = without_evaluation(cfg)
    opened = open_inputs(cfg)
    cfg = complete(cfg, opened.source.prompts_per_epoch)
    num_rollout = cfg.data.num_rollout
    assert num_rollout is not None, "the prompts are counted"
    found = find_start(cfg)
    start = cfg.data.start_rollout_id
    start = found.start_rollout_id if start is None else start
    hooks = load_hooks(cfg, start)
    check_hooks(cfg)
    if cfg.debug.debug_rollout_only:
        hooks = NO_HOOKS
    reward = build_reward(cfg, stack)
    known = Known(opened=opened, found=found, num_rollout=num_rollout, hooks=hooks)
    halves = build_halves(cfg, known, stack)
    log = stack.enter_context(open_log(cfg, found, start, num_rollout))
    if cfg.debug.dump_details is not None:  # what makes text of the dumped tokens
        opened.tokenizer.save_pretrained(Path(cfg.debug.dump_details) / "tokenizer")
    sampler, evaluator, stream = build_sampling(cfg, opened, halves, reward, events, log)
    sampler, devices = overlapped(
        cfg, sampler, stream, halves.engine, halves.devices, events, stack
    )
    if found.is_resume:
        with_optimizer = not cfg.checkpoint.no_load_optim
        resume(found, halves.trainer, sampler, with_optimizer=with_optimizer)
    saved = found.start_rollout_id - 1 if cfg.checkpoint.load == cfg.checkpoint.save else -1
    saver = Saver(cfg, halves.trainer, saved=saved)
    stack.callback(saver.finish)
    precision = "fp32" if halves.dtype == "float32" else "bf16"
    stages = Stages(
        sampler=sampler,
        evaluator=evaluator,
        trainer=checked(
            dumping(cfg, halves.trainer, start), cfg.debug, cfg.algo, precision, first=start
        ),
        hooks=hooks,
        sync=halves.sync,
        log=log,
        devices=devices,
        layout=halves.layout,
        start=start,
        num_rollout=num_rollout,
        rollouts_per_epoch=rollouts_per_epoch(cfg, opened.source),
        precision=precision,
        save=saver.save,
    )
    return stages, cfg


def dumping(cfg: Config, trainer: Trainer, start: int) -> Trainer:
    """The trainer, writing down what it learns from where that is asked for."""
    template = cfg.debug.save_debug_train_data
    if template is None or cfg.debug.debug_rollout_only:
        return trainer
    return DumpingTrainer(trainer, template, first=start)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What a run reads before it builds anything."""

    shape: Shape
    tokenizer: Any
    source: "PromptSource | NoPrompts | CustomSource"
    held_out: Sequence[EvaluationSet]
    max_context: int


def open_inputs(cfg: Config) -> Inputs:
    """The model's shape, tokenizer and all prompts; raises ConfigError and DataError."""
    folder = cfg.model.hf_checkpoint
    assert folder is not None, "rules refuse a run without --hf-checkpoint"
    check_expectations(cfg.expectations, json.loads((Path(folder) / "config.json").read_text()))
    shape = read_shape(folder)
    check_parts(shape, cfg.cluster.num_trainers, cfg.parallel)
    tokenizer = load_tokenizer(folder)
    is_supervised = cfg.algo.loss_type == "sft_loss"
    source: PromptSource | NoPrompts | CustomSource = NoPrompts()
    if cfg.data.data_source_path is not None:
        source = CustomSource(cfg.data.data_source_path, flat(cfg), tokenizer)
    elif cfg.data.prompt_data is not None:
        source = PromptSource(cfg.data, tokenizer, is_sft=is_supervised)
    sets = [
        EvaluationSet(
            cfg=one,
            prompts=load_eval_prompts(one, tokenizer, skip_bad_lines=cfg.data.skip_bad_lines),
        )
        for one in cfg.eval.eval_sets
    ]
    limits = [shape.max_positions, cfg.rollout.rollout_max_context_len or shape.max_positions]
    return Inputs(
        shape=shape, tokenizer=tokenizer, source=source, held_out=sets, max_context=min(limits)
    )


class NoPrompts:
    """The source of a run that only evaluates."""

    prompts_per_epoch = 0

    def take(self, count: int) -> Sequence[Prompt]:
        raise ConfigError("--prompt-data is not set, and this run has rollouts to sample; set it")

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore: nothing will be taken."""


def device_of(cfg: Config) -> torch.device:
    """The device that everything runs on; raises ConfigError for one that is not there."""
    has_cuda = torch.cuda.is_available()
    if cfg.cluster.device == "cuda" and not has_cuda:
        raise ConfigError("--device cuda: this machine shows no CUDA device; set --device cpu")
    device = torch.device("cuda" if has_cuda and cfg.cluster.device != "cpu" else "cpu")
    if device.type == "cuda":
        sum_products_in_one_order()
        if cfg.engine.deterministic_mode:
            repeat_gradients()
    return device


def dtype_name(decoder: Decoder) -> str:
    """The dtype that the model computes in, as torch spells it."""
    return str(decoder.head_weight.dtype).removeprefix("torch.")


def build_reward(cfg: Config, stack: ExitStack) -> RewardStage:
    """The reward stage; every reward that the run will ask for is checked now."""
    reward = RewardStage(cfg.reward, args=flat(cfg), seed=cfg.data.rollout_seed)
    stack.callback(reward.close)
    sets = cfg.eval.eval_sets
    reward.check(
        rm_types=[one.rm_type for one in sets if one.rm_type],
        hooks=[one.custom_rm_path for one in sets if one.custom_rm_path],
    )
    return reward


def open_log(cfg: Config, found: Found, start: int, num_rollout: int) -> RunLog:
    """The run's log, with everything said that a user must know before the first step."""
    assert cfg.observe.run_dir is not None, "resolve names a run folder"
    log = RunLog(
        Path(cfg.observe.run_dir),
        cfg,
        start=start,
        num_rollout=num_rollout,
        num_devices=cfg.cluster.rollout_num_gpus or 1,
    )
    log.note(f"run folder: {cfg.observe.run_dir}")
    if found.is_fallback:
        log.warn(found.message)
    else:
        log.note(found.message)
    log.note(who_samples(cfg))
    for note in cfg.notes:
        log.note(note)
    caution = uncorrected(cfg)
    if caution is not None:
        log.warn(caution)
    if 0 < num_rollout <= start:
        log.warn(
            f"nothing to do: the next rollout is {start} and --num-rollout {num_rollout} is the "
            "end of the whole run; set a larger --num-rollout to go on"
        )
    return log


def build_sampling(
    cfg: Config,
    opened: Inputs,
    halves: Halves,
    reward: RewardStage,
    events: EventLoop,
    log: RunLog,
) -> tuple[Sampler, Evaluator, Stream | None]:
    """What gives rollouts, what looks at held-out sets, and what samples without end if asked."""
    sampler, evaluator, stream = unsampled(cfg, opened, events), None, None
    if halves.engine is not None:
        sampling = Sampling(
            cfg,
            flat(cfg),
            engine=halves.engine,
            reward=reward,
            tokenizer=opened.tokenizer,
            source=opened.source,
            max_context=opened.max_context,
            events=events,
        )
        if sampler is None:
            progress = partial(log.progress, "sampling")
            stream = sampling.stream(progress) if cfg.sync.asynchronous == "full" else None
            sampler = sampling.sampler(halves.holds, progress, stream)
        evaluator = sampling.evaluator(opened.held_out, partial(log.progress, "evaluation"))
    assert sampler is not None, "rules refuse a run that has nothing to sample with"
    if cfg.debug.save_debug_rollout_data is not None:
        sampler = DumpingSampler(sampler, cfg.debug.save_debug_rollout_data)
    convert = cfg.rollout.custom_convert_samples_to_train_data_path
    if convert is not None:
        sampler = ConvertedSampler(sampler, convert, flat(cfg))
    return sampler, evaluator or NoEvaluator(), stream


def unsampled(cfg: Config, opened: Inputs, events: EventLoop) -> Sampler | None:
    """The stage of rollouts that no engine samples: of a dump or supervised; None for others."""
    template = cfg.debug.load_debug_rollout_data or cfg.debug.load_forge_rollout_data
    if template is not None:
        return ReplayedStage(template, cfg.debug.load_debug_rollout_data_subsample)
    if cfg.algo.loss_type != "sft_loss":
        return None
    batch_size = cfg.data.rollout_batch_size
    assert batch_size is not None, "rules refuse a run without --rollout-batch-size"
    return SupervisedStage(
        source=opened.source,
        mask=partial(
            mask_question,
            opened.tokenizer,
            mask_type=cfg.data.loss_mask_type,
            apply_chat_template=cfg.data.apply_chat_template,
            kwargs=cfg.data.apply_chat_template_kwargs,
        ),
        tokenizer=opened.tokenizer,
        batch_size=batch_size,
        events=events,
    )


def rollouts_per_epoch(cfg: Config, source: "PromptSource | NoPrompts | CustomSource") -> int:
    """After how many rollouts the prompts have all been seen, where the run is counted in epochs.

    0 where it is not: then the end of an epoch triggers nothing.
    """
    if cfg.data.num_epoch is None or not cfg.data.rollout_batch_size:
        return 0
    return source.prompts_per_epoch // cfg.data.rollout_batch_size
