"""The reward stage: groups in, the same groups with a reward on every sample that got one."""

import asyncio
import inspect
import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from tandem.config import RewardConfig
from tandem.errors import ConfigError, RewardError
from tandem.hooks.load import Spec, load
from tandem.hooks.view import merged_metadata, view_of
from tandem.rewards.grade import REMOTE, Answer, Verdict, check_rm_type, unboxed
from tandem.rewards.pool import GraderPool
from tandem.rewards.remote import RemoteReward
from tandem.types import Ending, Group, Prompt, Sample

HOPELESS_AFTER = 64
"""So many samples without one verdict among them mean that the reward cannot work."""

CUSTOM = Spec("--custom-rm-path", "args, sample", kind="either")
CUSTOM_OF_GROUP = Spec("--custom-rm-path", "args, samples", kind="either")

MAX_BLOCKING_CALLS = 16
"""Custom functions that are not async run in threads, this many at once."""

log = logging.getLogger(__name__)


class RewardStage:
    """Judges samples by the reward that is theirs.

    Which one: the sample's `metadata["custom_rm_path"]`, else `--custom-rm-path`, else
    `metadata["rm_type"]`, else `--rm-type`; with `--group-rm` the custom function judges a group at
    once. A verdict that does not come leaves `reward` None and
    says why in `verdict["missing"]`. `num_verdicts` and `num_missing` count both.

    `args` is what custom functions get as their first argument; `seed` is the one of `random`.
    """

    def __init__(self, cfg: RewardConfig, *, args: Any = None, seed: int = 0) -> None:
        self._cfg = cfg
        self._args = args
        self._seed = seed
        self._hooks: dict[str, Callable[..., Any]] = {}
        self._group_hook: Callable[..., Any] | None = None
        if cfg.custom_rm_path is not None and cfg.group_rm:
            self._group_hook = load(cfg.custom_rm_path, CUSTOM_OF_GROUP).call
        elif cfg.custom_rm_path is not None:
            self._hook(cfg.custom_rm_path)
        elif cfg.rm_type is not None:
            self.check(rm_types=[cfg.rm_type])
        self._pool = GraderPool(num_workers=cfg.reward_workers, limit_s=cfg.reward_timeout_s)
        self._blocking_calls = asyncio.Semaphore(MAX_BLOCKING_CALLS)
        self._remote: RemoteReward | None = None
        self.num_verdicts = 0
        self.num_missing = 0

    def check(self, *, rm_types: Iterable[str] = (), hooks: Iterable[str] = ()) -> None:
        """Raises ConfigError or HookError for rewards that cannot be, e.g. of evaluation sets."""
        for name in rm_types:
            check_rm_type(name.strip())
            if name.strip().endswith(REMOTE) and self._cfg.rm_url is None:
                raise ConfigError(f"--rm-type {name} needs the service's address; set --rm-url")
        for path in hooks:
            self._hook(path)

    async def score(self, group: Group, *, is_evaluation: bool = False) -> Group:
        """The group with `reward` and `verdict` on every sample that can be judged.

        Aborted and failed samples are not judged, nor are siblings of an aborted one, nor what
        already has a verdict. Raises RewardError when no reward is named, when the key of a
        dictionary is wrong, or when not one of the first 64 samples got a verdict.
        """
        key = self._cfg.reward_key
        if is_evaluation:
            key = self._cfg.eval_reward_key or key
        due = [nth for nth in range(len(group.samples)) if _is_due(group, nth)]
        if self._group_hook is not None and "custom_rm_path" not in group.prompt.metadata:
            judged = await self._score_together(self._group_hook, group, due, key)
        else:
            judged = await asyncio.gather(
                *(self._score_one(group.prompt, group.samples[nth], key) for nth in due)
            )
        samples = list(group.samples)
        for nth, sample in zip(due, judged, strict=True):
            samples[nth] = sample
        return replace(group, samples=tuple(samples))

    def close(self) -> None:
        """Ends the grading processes."""
        self._pool.close()

    async def _score_one(self, prompt: Prompt, sample: Sample, key: str | None) -> Sample:
        metadata = merged_metadata(prompt, sample)
        path = metadata.get("custom_rm_path") or self._cfg.custom_rm_path
        if path:
            view = view_of(prompt, sample)
            verdict = await self._call(self._hook(path), view)
            return replace(self._judged(sample, verdict, key), metadata=view.metadata)
        return self._judged(sample, await self._named(prompt, sample, metadata), key)

    async def _score_together(
        self, hook: Callable[..., Any], group: Group, due: list[int], key: str | None
    ) -> list[Sample]:
        if any(sample.ending == Ending.ABORT for sample in group.samples) or not due:
            return [group.samples[nth] for nth in due]  # the group goes on later, as a whole
        views = [view_of(group.prompt, group.samples[nth]) for nth in due]
        whole = await self._call(hook, views)
        judged = []
        for nth, view, verdict in zip(due, views, _spread(whole, len(due)), strict=True):
            sample = self._judged(group.samples[nth], verdict, key)
            judged.append(replace(sample, metadata=view.metadata))
        return judged

    async def _named(self, prompt: Prompt, sample: Sample, metadata: Mapping[str, Any]) -> Verdict:
        """The verdict of a reward by name, or of the service behind `remote_rm`."""
        rm_type = str(metadata.get("rm_type") or self._cfg.rm_type or "").strip()
        if not rm_type:
            raise RewardError(
                f"prompt {prompt.index} has no reward: set --rm-type or --custom-rm-path, "
                'or "rm_type" in the metadata of its row'
            )
        answer = Answer(
            rm_type=rm_type,
            response=sample.text,
            label=prompt.label,
            metadata=metadata,
            key=f"{self._seed}-{sample.index}",
        )
        if rm_type.endswith(REMOTE):
            self.check(rm_types=[rm_type])
            return await self._service().judge(
                prompt=prompt.text or prompt.content,
                response=unboxed(answer).response or "",
                label=prompt.label,
            )
        return await self._pool.grade(answer)

    async def _call(self, hook: Callable[..., Any], shown: Any) -> Verdict:
        """What a custom function says; whatever it raises is a verdict that did not come."""
        limit_s = self._cfg.reward_timeout_s
        try:
            if inspect.iscoroutinefunction(hook):
                async with asyncio.timeout(limit_s):
                    return Verdict(value=await hook(self._args, shown))
            async with self._blocking_calls, asyncio.timeout(limit_s):
                said = await _in_thread(hook, self._args, shown)
                return Verdict(value=await said if inspect.isawaitable(said) else said)
        except TimeoutError:
            return Verdict(error=f"no verdict within {limit_s:g} s (--reward-timeout-s)")
        except (Exception, SystemExit) as error:
            return Verdict(error=f"{type(error).__name__}: {error}")

    def _judged(self, sample: Sample, verdict: Verdict, key: str | None) -> Sample:
        said = _plain(verdict.value)
        missing = verdict.error
        reward = None
        if missing is None:
            reward, missing = _number(said, key)
        if missing is None:
            self.num_verdicts += 1
            return replace(sample, reward=reward, verdict=said)
        self.num_missing += 1
        if self.num_missing == 1:
            log.warning("sample %d got no verdict: %s", sample.index, missing)
        if self.num_verdicts == 0 and self.num_missing >= HOPELESS_AFTER:
            raise RewardError(
                f"not one of the first {self.num_missing} samples got a verdict; "
                f"the last reason was: {missing}"
            )
        return replace(sample, verdict={"missing": missing})

    def _hook(self, path: str) -> Callable[..., Any]:
        if path not in self._hooks:
            self._hooks[path] = load(path, CUSTOM).call
        return self._hooks[path]

    def _service(self) -> RemoteReward:
        if self._remote is None:
            assert self._cfg.rm_url is not None, "checked before the service is asked"
            self._remote = RemoteReward(self._cfg.rm_url)
        return self._remote


async def _in_thread(hook: Callable[..., Any], *arguments: Any) -> Any:
    """What a blocking function returns, from a thread of its own.

    A thread that hangs cannot be ended; being a daemon it keeps neither later calls nor the exit.
    """
    done: Future[Any] = Future()

    def work() -> None:
        done.set_running_or_notify_cancel()  # from here on a late verdict falls on deaf ears
        try:
            done.set_result(hook(*arguments))
        except (Exception, SystemExit) as error:
            done.set_exception(error)

    threading.Thread(target=work, name="custom-reward", daemon=True).start()
    return await asyncio.wrap_future(done)


def _is_due(group: Group, nth: int) -> bool:
    sample = group.samples[nth]
    if sample.reward is not None or sample.verdict is not None or sample.ending == Ending.ERROR:
        return False
    siblings = (one for one in group.samples if one.rollout == sample.rollout)
    return all(one.ending != Ending.ABORT for one in siblings)


def _spread(whole: Verdict, count: int) -> list[Verdict]:
    """A verdict on a group as verdicts on its samples."""
    if whole.error is not None:
        return [whole] * count
    said = whole.value.tolist() if hasattr(whole.value, "tolist") else whole.value
    if not isinstance(said, (list, tuple)) or len(said) != count:
        kind = f"{len(said)} values" if isinstance(said, (list, tuple)) else type(said).__name__
        return [Verdict(error=f"the group's reward gave {kind} for {count} samples")] * count
    return [Verdict(value=one) for one in said]


def _plain(value: Any) -> Any:
    """The value with scalars of numpy and torch as Python's."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if hasattr(value, "item") and getattr(value, "size", None) in (1, ()):
        return value.item()
    return value


def _number(said: Any, key: str | None) -> tuple[float | None, str | None]:
    """The reward that a verdict holds, or why it holds none.

    A plain number counts with or without a key, so that rewards of both kinds may be mixed.
    """
    if isinstance(said, Mapping):
        keys = ", ".join(map(str, said))
        if key is None:
            raise RewardError(
                f"the reward is a dictionary with the keys {keys}; say which with --reward-key"
            )
        if key not in said:
            raise RewardError(f"--reward-key {key} is not in the reward; its keys are: {keys}")
        said = said[key]
    if not isinstance(said, (int, float)):
        return None, f"the reward is {said!r:.80}, which is no number"
    if not math.isfinite(said):
        return None, f"the reward is {said}"
    return float(said), None
