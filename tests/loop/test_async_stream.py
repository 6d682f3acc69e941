"""Groups sampled without end keep the staleness limit, whatever is slow; the split of devices."""

import asyncio
import importlib.util
import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tandem.errors import Stopped
from tandem.loop_async import Ahead, BackgroundRunner, Stream
from tandem.loop_async.staleness import oldest_version, staleness_metrics
from tandem.observe.split import Phases, phases_of, propose
from tandem.rollout import Choice, Door, EventLoop, Generator, GroupSampler, RolloutStage, Supply
from tandem.rollout.settings import Terms
from tandem.rollout.supply import LEFTOVERS
from tandem.types import Ending, Rollout, Sampling

spec = importlib.util.spec_from_file_location(
    "rollout_fakes", Path(__file__).parents[1] / "rollout" / "fakes.py"
)
fakes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fakes)

BATCH, NUM_ROLLOUT = 3, 7
CHOICE = {"batch_size": BATCH, "fetch_size": 5}


class Engine(fakes.StepEngine):
    """Knows which weights drew each token, as real ones do."""

    def __init__(self, length_of):
        super().__init__(length_of)
        self.version_of_step = {}

    def step(self):
        self.version_of_step[self.num_steps + 1] = self.version
        super().step()

    def completion(self, request, drawn, ending):
        done = super().completion(request, drawn, ending)
        versions = [self.version_of_step[step] for step in drawn]
        return replace(done, version_C=np.array(versions, np.int32))


class Run:
    """A stage that samples without end over fakes, and the versions that it was given."""

    def __init__(self, *, limit, length_of, source=None, order="finished"):
        self.runner = BackgroundRunner()
        self.events = EventLoop(self.runner)
        self.engine = Engine(length_of)
        door = Door(self.engine, concurrency=100)
        self.supply = Supply(source or fakes.Numbers(), 2)
        self.groups = GroupSampler(
            door, Generator(door, fakes.Words()), fakes.LateReward(lambda p, s: s)
        )
        terms = Terms(sampling=Sampling(max_new_tokens=1000), seed=7)
        choice = Choice(**CHOICE, order=order)
        self.stream = Stream(
            self.supply,
            self.groups,
            terms,
            choice,
            num_rollout=NUM_ROLLOUT,
            max_staleness=limit,
            runner=self.runner,
        )
        self.stage = RolloutStage(
            supply=self.supply,
            groups=self.groups,
            terms=terms,
            choice=choice,
            events=self.events,
            rounds=self.stream,
        )

    def publish(self, version):
        with self.stream.paused():
            self.engine.version = version

    def steps(self, first=0, last=NUM_ROLLOUT, interval=1, pause_s=0.0):
        rollouts = []
        for step in range(first, last):
            rollouts.append(self.stage.collect(step))
            time.sleep(pause_s)
            if (step + 1) % interval == 0:
                self.publish(step + 1)
        return rollouts


@pytest.fixture
def start():
    runs = []

    def make(**settings):
        runs.append(Run(**settings))
        return runs[-1]

    yield make
    for run in runs:
        run.events.close()


def prompts_of(rollouts):
    return [group.prompt.index for rollout in rollouts for group in rollout.groups]


@pytest.mark.parametrize(("limit", "interval"), [(0, 1), (1, 1), (2, 1), (3, 2)])
def test_no_token_is_staler_than_the_limit_and_every_prompt_comes_once(start, limit, interval):
    lengths = random.Random(limit)
    of = {}
    # one group in four is so long that others overtake it for several rounds
    run = start(
        limit=limit,
        length_of=lambda p, s: of.setdefault(p, lengths.choice([3, 5, 8, 400])),
    )
    rollouts = run.steps(interval=interval, pause_s=0.002)
    assert sorted(prompts_of(rollouts)) == list(range(BATCH * NUM_ROLLOUT))
    stalest = [rollout.metrics["rollout/staleness/max"] for rollout in rollouts]
    assert max(stalest) <= limit
    assert run.engine.most_live <= 2 * CHOICE["fetch_size"]
    assert len(run.stream.state()[LEFTOVERS]) == 0, "nothing is sampled that nobody will train"


def test_a_group_at_its_last_chance_is_waited_for(start):
    run = start(limit=1, length_of=lambda p, s: 300 if p == 0 else 4)
    first, second = run.steps(last=2, pause_s=0.002)
    assert 0 not in prompts_of([first]) and 0 in prompts_of([second])


def test_in_the_order_of_prompts_a_slow_group_is_never_overtaken(start):
    run = start(limit=3, order="prompts", length_of=lambda p, s: 60 if p % 3 == 0 else 4)
    assert prompts_of(run.steps()) == list(range(BATCH * NUM_ROLLOUT))


def test_answers_that_new_weights_came_under_say_so(start):
    run = start(limit=2, length_of=lambda p, s: 10**9 if p < 4 and not run.engine.version else 3)
    rollouts = run.steps(last=3)
    samples = [s for rollout in rollouts for group in rollout.groups for s in group.samples]
    mixed = [s for s in samples if len(set(s.version_T[s.sampled_T].tolist())) > 1]
    assert mixed and all((np.diff(s.version_T[s.sampled_T]) >= 0).all() for s in mixed)
    assert any(rollout.metrics["rollout/staleness/mixed"] > 0 for rollout in rollouts)


def test_nothing_moves_while_paused(start):
    run = start(limit=2, length_of=lambda p, s: 100_000)
    ended = []

    def wait():
        with pytest.raises(Stopped):
            run.stage.collect(0)
        ended.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not run.engine.num_steps:
        time.sleep(0.001)
    with run.stream.paused():
        before = run.engine.num_steps
        time.sleep(0.02)
        assert run.engine.num_steps == before
    run.events.stop()
    waiting.join()
    assert ended


def test_state_holds_finished_groups_whole_and_the_rest_to_be_sampled_again(start):
    run = start(limit=2, length_of=lambda p, s: 100_000 if p == 4 else 3)
    run.steps(last=1)
    whole = []
    while not whole:
        state = run.stream.state()
        waiting = {group.prompt.index: group for group in state[LEFTOVERS]}
        samples = [s for group in waiting.values() for s in group.samples]
        whole = [s for s in samples if s.ending is Ending.STOP]
    assert all(s.reward is not None for s in whole)
    rest = [s for s in samples if s not in whole]
    assert {s.index // 2 for s in rest} >= {4}
    assert all(s.ending is Ending.ABORT and not s.sampled_T.any() for s in rest)

    again = start(limit=2, length_of=lambda p, s: 3)
    again.engine.version = 1
    again.stage.restore(state)
    rollouts = again.steps(first=1)
    assert max(r.metrics["rollout/staleness/max"] for r in rollouts) <= 2
    trained = {*prompts_of(rollouts)}
    assert {*waiting} <= trained and len(trained) == BATCH * (NUM_ROLLOUT - 1)


def test_what_a_source_raises_ends_the_run(start):
    class Dry(fakes.Numbers):
        def take(self, count):
            if self.taken >= 6:
                raise ValueError("no more")
            return super().take(count)

    run = start(limit=2, length_of=lambda p, s: 3, source=Dry())
    with pytest.raises(ValueError, match="no more"):
        run.steps()


class Slow:
    """A sampler that says with which version it sampled."""

    def __init__(self):
        self.version, self.taken = 0, 0

    def collect(self, step):
        version = self.version
        time.sleep(0.005)
        assert version == self.version, "weights changed under a rollout"
        self.taken += 1
        return Rollout(step=step, groups=(), metrics={"version": version})

    def state(self):
        return {"taken": self.taken}

    def restore(self, state):
        self.taken = state["taken"]


@pytest.mark.parametrize(
    ("interval", "limit", "wanted"),
    [
        (1, 0, [0, 1, 2, 3, 4]),
        (1, 1, [0, 0, 1, 2, 3]),
        (2, 1, [0, 0, 2, 2, 4]),
        (2, 2, [0, 0, 0, 2, 2]),
        (3, 5, [0, 0, 0, 0, 3]),
    ],
)
def test_which_version_samples_which_rollout_follows_from_the_settings(interval, limit, wanted):
    slow = Slow()
    ahead = Ahead(slow, version=lambda: slow.version, num_rollout=5, max_staleness=limit)
    seen = []
    for step in range(5):
        seen.append(ahead.collect(step).metrics["version"])
        if (step + 1) % interval == 0:
            with ahead.settled():
                slow.version = step + 1
    ahead.close()
    assert seen == wanted


def test_the_rollout_ahead_is_in_the_state_once_it_is_there():
    slow = Slow()
    ahead = Ahead(slow, version=lambda: slow.version, num_rollout=5, max_staleness=1)
    ahead.collect(0)
    with ahead.settled():
        state = ahead.state()
    ahead.close()
    again = Ahead(slow, version=lambda: 1, num_rollout=5, max_staleness=1)
    again.restore(state)
    assert slow.taken == 2
    assert again.collect(1).metrics["version"] == 0
    again.close()


def test_staleness_counts_from_the_oldest_token():
    engine, events = fakes.StepEngine(lambda p, s: 3, version=4), EventLoop()
    stage = fakes.build_stage(engine, fakes.LateReward(lambda p, s: 1), events)
    groups = stage.collect(0).groups
    events.close()
    assert oldest_version(groups[0].samples) == 4
    assert staleness_metrics(groups, 6)["rollout/staleness/mean"] == 2
    assert staleness_metrics((), 6) == {}


def test_the_split_halves_what_is_slower():
    phases = Phases(sampling_s=30, learning_s=10, publishing_s=0, num_sampling=4, num_learning=4)
    assert propose(phases, 8) == (6, 2)
    assert phases.overlapped_s(6, 2) == 20
    assert phases.in_turns_s(8) == 20
    assert propose(phases, 8, engine_size=4) == (4, 4)
    assert propose(phases, 8, trainer_size=4) == (4, 4)
    assert propose(phases, 1) is None


def test_phases_are_medians_of_the_later_half():
    rows = [{"perf/train_time": t, "perf/rollout_time": 2 * t} for t in (90.0, 80.0, 3.0, 5.0)]
    rows.append({"eval/heldout": 1.0})
    phases = phases_of(rows, num_sampling=1, num_learning=1)
    assert (phases.sampling_s, phases.learning_s) == (8, 4)
    rows[-2]["perf/sampling_time"] = rows[-3]["perf/sampling_time"] = 7.0
    assert phases_of(rows, num_sampling=1, num_learning=1).sampling_s == 7
    assert phases_of([], num_sampling=1, num_learning=1) is None


def test_steps_that_had_nothing_left_to_sample_say_nothing_about_the_split():
    seconds = (90.0, 7.0, 7.0, 0.0, 0.0)
    rows = [{"perf/train_time": 4.0, "perf/sampling_time": s} for s in seconds]
    assert phases_of(rows, num_sampling=1, num_learning=1, num_ahead=2).sampling_s == 7
    assert phases_of(rows[:1], num_sampling=1, num_learning=1, num_ahead=2).sampling_s == 90


def test_a_background_loop_ends_with_its_tasks():
    runner = BackgroundRunner()
    ended = []

    async def forever():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def begin():
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        return task

    runner.run(begin())
    runner.close()
    runner.close()
    assert ended == [True]
