"""The rollout stage and evaluation as the settings and the users' hooks ask for them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from tandem.config import Config
from tandem.contracts import Engine, Evaluator, Reward, Sampler, Source
from tandem.filters import find_shipped
from tandem.hooks import load
from tandem.loop_async import BackgroundRunner, Stream
from tandem.rollout import (
    Choice,
    Door,
    EvaluationSet,
    EventLoop,
    Generator,
    GroupSampler,
    RolloutStage,
    SetEvaluator,
    Supply,
    Terms,
)
from tandem.rollout.collect import AfterRound, Progress, Rounds
from tandem.rollout.custom import batches, converting, functions, generating
from tandem.rollout.custom.batches import buffer_filter, dynamic_filter
from tandem.rollout.custom.functions import CustomEvaluator, CustomRollout
from tandem.rollout.custom.generating import CustomGenerator
from tandem.rollout.custom.line import Switchboard
from tandem.rollout.custom.sources import CustomSource, DataSourceView
from tandem.rollout.door import Holds
from tandem.rollout.settings import training_sampling
from tandem.rollout.supply import first_in
from tandem.runtime.serving import asks_engine, served
from tandem.types import Rollout


class Sampling:
    """Builds what samples: training rollouts and evaluation, over one engine and one reward.

    Every hook is loaded here, before a step is taken; raises HookError for those that cannot be
    called.
    """

    def __init__(
        self,
        cfg: Config,
        args: Any,
        *,
        engine: Engine,
        reward: Reward,
        tokenizer: Any,
        source: Source,
        max_context: int,
        events: EventLoop,
    ) -> None:
        """`args` is what hooks see of the settings."""
        self._cfg = cfg
        self._events, self._max_context = events, max_context
        self._key = cfg.reward.reward_key
        self._source = source
        door = Door(engine, concurrency=cfg.engine.sglang_server_concurrency * num_engines(cfg))
        switchboard = Switchboard(engine, door)
        if asks_engine(cfg):
            args = served(cfg, args, switchboard, tokenizer, max_context, events)
        self._args = args
        waiting = cfg.rollout.buffer_filter_path
        choose = first_in if waiting is None else buffer_filter(waiting, args)
        self._supply = Supply(source, cfg.data.n_samples_per_prompt, choose)
        generator = CustomGenerator(
            Generator(door, tokenizer),
            door,
            tokenizer,
            args,
            switchboard=switchboard,
            path=cfg.rollout.custom_generate_function_path,
            hooks=cfg.rollout.rollout_sample_hook_path,
            reward_key=self._key,
        )
        of_sets = (one.custom_generate_function_path for one in cfg.eval.eval_sets)
        generator.check(path for path in of_sets if path is not None)
        self._groups = GroupSampler(door, generator, reward)
        self._means = functions.Means(
            args=args,
            supply=self._supply,
            reward=reward,
            door=door,
            tokenizer=tokenizer,
            events=events,
            seed=cfg.data.rollout_seed,
            max_context=max_context,
            num_samples=cfg.data.n_samples_per_prompt,
            reward_key=self._key,
        )

    def stream(self, progress: Progress) -> Stream:
        """What keeps groups at work without end (`--asynchronous full`)."""
        cfg, runner = self._cfg, self._events.runner
        assert isinstance(runner, BackgroundRunner), "sampling without end has a thread of its own"
        num_rollout, max_staleness = cfg.data.num_rollout, cfg.sync.max_staleness
        assert num_rollout is not None and max_staleness is not None, "resolve fills them"
        return Stream(
            self._supply,
            self._groups,
            self._terms(),
            choice_of(cfg, self._args),
            num_rollout=num_rollout,
            max_staleness=max_staleness,
            runner=runner,
            progress=progress,
        )

    def sampler(
        self, holds: Holds | None, progress: Progress, rounds: Rounds | None = None
    ) -> Sampler:
        """The stage of training rollouts; `holds` is the engine, if it can be held, `rounds` what
        gives the rounds where they are not collected one by one."""
        cfg, path = self._cfg, self._cfg.rollout.rollout_function_path
        if path is not None:
            batch_size = cfg.data.rollout_batch_size
            assert batch_size is not None, "rules refuse a run without --rollout-batch-size"
            changed = self._sample_filter() or tuple
            return CustomRollout(path, self._means, batch_size=batch_size, changed=changed)
        return RolloutStage(
            supply=self._supply,
            groups=self._groups,
            terms=self._terms(),
            choice=choice_of(cfg, self._args),
            events=self._events,
            holds=None if cfg.rollout.no_hold_for_verdicts else holds,
            after=self._after(),
            progress=progress,
            rounds=rounds,
        )

    def evaluator(self, sets: Sequence[EvaluationSet], progress: Progress) -> Evaluator:
        """Every held-out set, through the same engine and rewards, or a user's own evaluation."""
        path = self._cfg.eval.eval_function_path
        if path is not None:
            return CustomEvaluator(path, self._means)
        path = self._cfg.rollout.custom_eval_rollout_log_function_path
        hook = None if path is None else load(path, batches.EVAL_LOG)
        return SetEvaluator(
            sets,
            self._groups,
            seed=self._cfg.data.rollout_seed,
            max_context=self._max_context,
            events=self._events,
            log=None if hook is None else partial(batches.log_evaluation, hook, self._args),
            progress=progress,
        )

    def _terms(self) -> Terms:
        return Terms(
            sampling=training_sampling(self._cfg.rollout),
            seed=self._cfg.data.rollout_seed,
            max_context=self._max_context,
        )

    def _after(self) -> AfterRound:
        rollout = self._cfg.rollout
        look = rollout.rollout_all_samples_process_path
        log = rollout.custom_rollout_log_function_path
        return AfterRound(
            change=self._sample_filter(),
            look=None if look is None else self._looking(look),
            log=None if log is None else self._logging(log),
            mark=self._marking(),
        )

    def _sample_filter(self) -> batches.SampleFilter | None:
        path = self._cfg.rollout.rollout_sample_filter_path
        return None if path is None else batches.SampleFilter(path, self._args, self._key)

    def _looking(self, path: str) -> Any:
        hook, view = load(path, batches.ALL_SAMPLES), DataSourceView(self._supply, self._key)
        return lambda groups: batches.show_all(hook, self._args, groups, view)

    def _logging(self, path: str) -> Any:
        hook = load(path, batches.LOG)

        def log(rollout: Rollout) -> bool:
            seconds = rollout.metrics["perf/rollout_time"]
            return batches.log_round(
                hook, self._args, rollout.step, rollout.groups, rollout.metrics, seconds
            )

        return log

    def _marking(self) -> Any:
        is_saving = self._cfg.checkpoint.save is not None
        return self._source.mark if is_saving and isinstance(self._source, CustomSource) else None


def num_engines(cfg: Config) -> int:
    """How many engines sample, by the settings; 1 where nothing is said of devices."""
    addresses, cluster = cfg.rollout.rollout_external_engine_addrs, cfg.cluster
    if addresses:
        return len(addresses)
    return max(1, (cluster.rollout_num_gpus or 1) // cluster.rollout_num_gpus_per_engine)


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


def check_hooks(cfg: Config) -> None:
    """Passes if every hook of sampling can be called as its flag says; else HookError."""
    rollout = cfg.rollout
    wanted = [
        (rollout.buffer_filter_path, batches.BUFFER),
        (rollout.custom_generate_function_path, generating.GENERATE),
        (rollout.rollout_function_path, functions.ROLLOUT),
        (cfg.eval.eval_function_path, functions.EVALUATION),
        (rollout.rollout_sample_filter_path, batches.SAMPLE_FILTER),
        (rollout.rollout_all_samples_process_path, batches.ALL_SAMPLES),
        (rollout.custom_convert_samples_to_train_data_path, converting.CONVERT),
        (rollout.custom_rollout_log_function_path, batches.LOG),
        (rollout.custom_eval_rollout_log_function_path, batches.EVAL_LOG),
        *((path, generating.SAMPLE_HOOK) for path in rollout.rollout_sample_hook_path),
        *((one.custom_generate_function_path, generating.GENERATE) for one in cfg.eval.eval_sets),
    ]
    dynamic = rollout.dynamic_sampling_filter_path
    if dynamic is not None and find_shipped(dynamic) is None:
        wanted.append((dynamic, batches.DYNAMIC))
    for path, spec in wanted:
        if path is not None:
            load(path, spec)
