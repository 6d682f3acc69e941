"""Sampling rounds against a small fake engine whose tokens are a function of the key."""

import asyncio
from dataclasses import replace

import numpy as np

from tandem.config import EvalSet, RolloutConfig
from tandem.rollout.collect import Choice, RolloutStage
from tandem.rollout.door import Door
from tandem.rollout.evaluate import EvaluationSet, SetEvaluator
from tandem.rollout.events import EventLoop
from tandem.rollout.groups import Generator, GroupSampler, blank_sample
from tandem.rollout.settings import Terms, evaluation_seed, training_sampling
from tandem.rollout.supply import Supply
from tandem.types import Completion, Ending, Prompt, Request, Sampling


class FakeEngine:
    """Finishes requests in reverse order; the token at place t is prompt + sample + t."""

    def __init__(self) -> None:
        self.running = 0
        self.peak = 0
        self.ids: list[str] = []

    async def abort(self, ids=None) -> None:
        raise AssertionError("nothing was left to abort")

    async def add(self, request: Request) -> Completion:
        self.ids.append(request.id)
        self.running += 1
        self.peak = max(self.peak, self.running)
        await asyncio.sleep(0.02 / (1 + request.key.sample + request.key.prompt))
        self.running -= 1
        count = request.sampling.max_new_tokens
        places = len(request.tokens_T) + np.arange(count)
        return Completion(
            id=request.id,
            tokens_C=(places + request.key.prompt + request.key.sample).astype(np.int32),
            logprobs_C=np.full(count, -1.0, np.float32),
            version_C=np.full(count, 3, np.int32),
            ending=Ending.LENGTH,
        )


class LengthReward:
    async def score(self, group, *, is_evaluation=False):
        await asyncio.sleep(0)
        return replace(
            group,
            samples=tuple(replace(s, reward=float(s.num_sampled)) for s in group.samples),
        )

    def close(self) -> None:
        pass


class Words:
    def decode(self, token_ids, *, skip_special_tokens=False):
        return " ".join(map(str, token_ids))


class Numbers:
    """Prompt n has n % 3 + 1 tokens."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self, count):
        prompts = [prompt_of(self.taken + place) for place in range(count)]
        self.taken += count
        return prompts

    def state(self):
        return {"taken": self.taken}

    def restore(self, state):
        self.taken = state["taken"]


def prompt_of(index: int) -> Prompt:
    tokens_T = np.arange(index % 3 + 1, dtype=np.int32)
    return Prompt(index=index, tokens_T=tokens_T, text="", content="", label=None)


def groups_of(engine, *, concurrency=100) -> GroupSampler:
    door = Door(engine, concurrency=concurrency)
    return GroupSampler(door, Generator(door, Words()), LengthReward())


def stage_of(engine, events, *, concurrency=100, progress=None) -> RolloutStage:
    cfg = RolloutConfig(rollout_max_response_len=4)
    return RolloutStage(
        supply=Supply(Numbers(), 3),
        groups=groups_of(engine, concurrency=concurrency),
        terms=Terms(sampling=training_sampling(cfg), seed=7, max_context=6),
        choice=Choice(batch_size=5, fetch_size=5),
        events=events,
        progress=progress,
    )


def test_rollout_holds_every_prompt_once_in_order_and_judged():
    events, engine, seen = EventLoop(), FakeEngine(), []
    stage = stage_of(engine, events, progress=lambda done, total: seen.append((done, total)))
    rollouts = [stage.collect(0), stage.collect(1)]
    prompts = [group.prompt.index for rollout in rollouts for group in rollout.groups]
    assert prompts == list(range(10))
    samples = [s for rollout in rollouts for group in rollout.groups for s in group.samples]
    assert [sample.index for sample in samples] == list(range(30))
    assert all(sample.reward == sample.num_sampled for sample in samples)
    assert len(set(engine.ids)) == 30
    assert seen[:15] == [(done + 1, 15) for done in range(15)]
    events.close()


def test_context_limit_shortens_answers():
    events = EventLoop()
    rollout = stage_of(FakeEngine(), events).collect(0)
    for group in rollout.groups:
        room = min(4, 6 - len(group.prompt.tokens_T))
        assert [sample.num_sampled for sample in group.samples] == [room] * 3
    events.close()


def test_no_more_samples_in_flight_than_allowed():
    events, engine = EventLoop(), FakeEngine()
    stage_of(engine, events, concurrency=4).collect(0)
    assert engine.peak == 4
    events.close()


def test_restored_stage_gives_the_same_next_rollout():
    events = EventLoop()
    first, second = stage_of(FakeEngine(), events), stage_of(FakeEngine(), events)
    first.collect(0)
    second.restore(first.state())
    wanted, given = first.collect(1), second.collect(1)
    for one, other in zip(wanted.groups, given.groups, strict=True):
        for a, b in zip(one.samples, other.samples, strict=True):
            assert a.index == b.index and (a.tokens_T == b.tokens_T).all()
    events.close()


async def continued(prompt, sample, max_new_tokens):
    generator = Generator(Door(FakeEngine(), concurrency=1), Words())
    terms = Terms(sampling=Sampling(max_new_tokens=max_new_tokens), seed=1)
    (sample,) = await generator(prompt, sample, terms)
    return sample


async def test_interrupted_sample_goes_on_from_its_tokens():
    prompt = prompt_of(1)
    blank = blank_sample(prompt, index=0, position=0)
    one = await continued(prompt, blank, 5)
    two = await continued(prompt, await continued(prompt, blank, 2), 5)
    assert one.tokens_T.tolist() == two.tokens_T.tolist()
    assert one.text == two.text
    assert two.num_sampled == 5 and two.sampled_T[: len(prompt.tokens_T)].sum() == 0


async def test_sample_without_room_ends_by_length():
    prompt = prompt_of(2)
    sample = await continued(prompt, blank_sample(prompt, index=0, position=0), 0)
    assert sample.ending is Ending.LENGTH and sample.num_sampled == 0


def test_evaluation_asks_each_set_with_its_own_settings_and_seed():
    events, engine = EventLoop(), FakeEngine()
    groups = groups_of(engine)
    sets = [
        EvaluationSet(
            cfg=EvalSet(name=name, path="", max_response_len=length, n_samples_per_eval_prompt=2),
            prompts=tuple(map(prompt_of, range(3))),
        )
        for name, length in (("short", 2), ("long", 6))
    ]
    evaluation = SetEvaluator(sets, groups, seed=7, max_context=100, events=events).evaluate()
    assert {name: len(rows) for name, rows in evaluation.groups.items()} == {"short": 3, "long": 3}
    assert evaluation.metrics["eval/short"] == 2 and evaluation.metrics["eval/long"] == 6
    assert evaluation_seed(7, "short") != evaluation_seed(7, "long") != 7
    assert len(set(engine.ids)) == 12
    events.close()
