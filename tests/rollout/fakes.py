"""A small engine that steps, and judges as late as one likes."""

import asyncio
import random
from dataclasses import dataclass, field, replace

import numpy as np

from tandem.rollout import Choice, Door, Generator, GroupSampler, RolloutStage, Supply
from tandem.rollout.custom.generating import CustomGenerator
from tandem.rollout.custom.line import Switchboard
from tandem.rollout.settings import Terms
from tandem.types import Completion, Ending, EngineStats, Prompt, Request, Sampling


class StepEngine:
    """A token a step for every request; an answer has `length_of(prompt, sample)` tokens.

    The token at place t is a function of its key and t, and its log-prob says in which step it was
    drawn, so that two runs only agree if their steps were the same.
    """

    def __init__(self, length_of, version=0, lag=0):
        self.length_of = length_of
        self.version = version
        self.num_steps = 0
        self.most_live = 0
        self.live: dict[str, tuple[Request, list, asyncio.Future]] = {}
        self.seen: list[str] = []
        self._may_step = asyncio.Event()
        self._may_step.set()
        self._pump_task = None

    def add(self, request):
        assert request.id not in self.live, "one request was asked twice"
        self.seen.append(request.id)
        future = asyncio.get_running_loop().create_future()
        self.live[request.id] = (request, [], future)
        self.most_live = max(self.most_live, len(self.live))
        future.add_done_callback(lambda done: self.live.pop(request.id, None))
        if self._pump_task is None or self._pump_task.done():
            self._pump_task = asyncio.get_running_loop().create_task(self._pump())
        return future

    async def _pump(self):
        while self.live:
            if self._may_step.is_set():
                self.step()
                await asyncio.sleep(0)
            else:
                await self._may_step.wait()

    def step(self):
        self.num_steps += 1
        for request, drawn, future in list(self.live.values()):
            drawn.append(self.num_steps)
            length = self.length_of(request.key.prompt, request.key.sample)
            done = len(request.tokens_T) - request.key.prompt % 3 - 1 + len(drawn)
            if done >= length:
                future.set_result(self.completion(request, drawn, Ending.STOP))
                self.live.pop(request.id)

    def completion(self, request, drawn, ending):
        places = len(request.tokens_T) + np.arange(len(drawn))
        return Completion(
            id=request.id,
            tokens_C=(places * 7 + request.key.prompt + request.key.sample).astype(np.int32),
            logprobs_C=-np.array(drawn, np.float32),
            version_C=np.full(len(drawn), self.version, np.int32),
            ending=ending,
        )

    async def abort(self, ids=None):
        for request, drawn, future in list(self.live.values()):
            future.set_result(self.completion(request, drawn, Ending.ABORT))
            self.live.pop(request.id)

    def hold(self):
        self._may_step.clear()

    def release(self):
        self._may_step.set()

    def stats(self):
        return EngineStats(
            version=self.version,
            num_running=len(self.live),
            num_waiting=0,
            num_cache_blocks=0,
            num_free_blocks=0,
            num_generated_tokens=0,
            num_prefill_tokens=0,
            num_cached_tokens=0,
        )


@dataclass
class LateReward:
    """`reward_of(prompt, sample)`, after a random delay."""

    reward_of: object
    delay_s: float = 0.0
    chance: random.Random = field(default_factory=random.Random)
    judged: list = field(default_factory=list)

    async def score(self, group, *, is_evaluation=False):
        if self.delay_s:
            await asyncio.sleep(self.chance.random() * self.delay_s)
        due = [s for s in group.samples if s.reward is None and s.ending is not Ending.ABORT]
        self.judged += [sample.index for sample in due]
        return replace(
            group,
            samples=tuple(
                replace(s, reward=self.reward_of(group.prompt.index, s.position)) if s in due else s
                for s in group.samples
            ),
        )

    def close(self):
        pass


class Words:
    def decode(self, token_ids, *, skip_special_tokens=False):
        return " ".join(map(str, token_ids))


class Numbers:
    """Prompt n has n % 3 + 1 tokens."""

    def __init__(self):
        self.taken = 0

    def take(self, count):
        prompts = [prompt_of(self.taken + place) for place in range(count)]
        self.taken += count
        return prompts

    def state(self):
        return {"taken": self.taken}

    def restore(self, state):
        self.taken = state["taken"]


def prompt_of(index):
    tokens_T = np.arange(index % 3 + 1, dtype=np.int32)
    return Prompt(index=index, tokens_T=tokens_T, text="", content="", label=None)


def build_stage(
    engine,
    reward,
    events,
    *,
    num_samples=3,
    choose=None,
    concurrency=1000,
    custom=None,
    args=None,
    hooks=(),
    **choice,
):
    """A stage over fakes; `custom` is the path of a generate function that gets `args`, `hooks`
    those of sample hooks, `choice` are fields of Choice."""
    door = Door(engine, concurrency=concurrency)
    source = Numbers()
    more = {} if choose is None else {"choose": choose}
    proceed = CustomGenerator(
        Generator(door, Words()),
        door,
        Words(),
        args,
        switchboard=Switchboard(engine, door),
        path=custom,
        hooks=hooks,
    )
    return RolloutStage(
        supply=Supply(source, num_samples, **more),
        groups=GroupSampler(door, proceed, reward),
        terms=Terms(sampling=Sampling(max_new_tokens=1000), seed=7),
        choice=Choice(**{"batch_size": 4, "fetch_size": 4, **choice}),
        events=events,
        holds=engine,
    )
