"""The loop on 8 to 4,096 GPUs, simulated event by event from what was measured on one.

    python benchmarks/scale_sim.py [--gpus 8 64 512 4096] [--lengths long] [--batch 64]

`--batch` is in samples a GPU; `--fixed-batch` in samples a step, whatever the number of GPUs. Every
rate is in `Costs`, with where it comes from. What is not simulated: memory, stragglers among
trainers, contention of networks, prompts. Rewards cost nothing here. See docs/scale.md.
"""

import argparse
import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

STEP_S = ((64, 0.00556), (256, 0.01071), (512, 0.02056))
"""(sequences at once, seconds a token each) of one H200: benchmarks/results/engine.json, W1."""

Lengths = Callable[[random.Random], int]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What things cost. Measured by us unless it says otherwise."""

    step_s: tuple[tuple[int, float], ...] = STEP_S
    max_running: int = 512  # sequences of an engine
    train_tokens_per_s: float = 21_700  # of one H200: benchmarks/results/step.json
    optimizer_s: float = 0.05  # the same
    model_bytes: float = 8e9  # 4B weights in bf16
    gpus_per_host: int = 8
    host_bytes_per_s: float = 306e9  # broadcast with packing, H200s of a host: docs/sync.md
    net_bytes_per_s: float = 40e9  # assumed: 400 Gbit/s a GPU, 80 % of it
    bucket_bytes: float = 512 * 2**20  # --update-weight-buffer-size
    check_s: float = 0.017  # digests and canary of both sides: docs/sync.md
    call_s: float = 0.0012  # a call of a Ray actor, on a CPU machine
    controller_s: float = 127e-6  # a sample: benchmarks/results/rollout_load.json
    pack_s: float = 70e-9  # advantages and packing, a token: benchmarks/results/step.json
    token_bytes: float = 13.0  # token, log-prob, version, mask
    controller_bytes_per_s: float = 3e9  # assumed: 25 Gbit/s
    num_controllers: int = 1
    packs_on_ranks: bool = False  # each rank packs its own share
    calls_by_tree: bool = False  # hosts pass calls on, instead of one driver to all
    gpu_mtbf_s: float = 50_000 * 3600.0  # Llama 3 (arXiv:2407.21783): 419 faults, 16,384 GPUs, 54 d
    engine_restart_s: float = 60.0  # assumed
    trainer_restart_s: float = 300.0  # assumed, with the repeated half of a checkpoint's interval

    def token_s(self, running: int) -> float:
        """Seconds a token of each of so many sequences: straight lines through the points."""
        points = self.step_s
        place = 1
        while place < len(points) - 1 and running > points[place][0]:
            place += 1
        (x0, y0), (x1, y1) = points[place - 1], points[place]
        return y0 + (y1 - y0) * (running - x0) / (x1 - x0)

    def update_s(self, num_gpus: int) -> float:
        """Seconds of a weight update: buckets down a tree of hosts, and a call to every engine."""
        hosts = max(1, math.ceil(num_gpus / self.gpus_per_host))
        seconds = self.model_bytes / self.host_bytes_per_s + self.check_s
        if hosts > 1:
            depth = math.ceil(math.log2(hosts))
            seconds += (self.model_bytes + depth * self.bucket_bytes) / self.net_bytes_per_s
        calls = num_gpus if not self.calls_by_tree else 8 * math.ceil(math.log(num_gpus, 8) or 1)
        return seconds + calls * self.call_s

    def train_s(self, tokens: float, num_gpus: int) -> float:
        """Seconds of one optimizer step: data parallel, gradients reduced at the end."""
        hosts = math.ceil(num_gpus / self.gpus_per_host)
        rate = self.host_bytes_per_s if hosts == 1 else self.net_bytes_per_s
        reduce_s = 0.0 if num_gpus == 1 else 2 * 2 * self.model_bytes / rate  # fp32, both ways
        reduce_s /= 1 if hosts == 1 else self.gpus_per_host  # each GPU of a host carries its share
        return tokens / (self.train_tokens_per_s * num_gpus) + reduce_s + self.optimizer_s

    def hand_over_s(self, tokens: float, num_gpus: int) -> float:
        """Seconds in which a batch leaves the controller: packed there, and sent."""
        pack_s = tokens * self.pack_s / (num_gpus if self.packs_on_ranks else 1)
        return (pack_s + tokens * self.token_bytes / self.controller_bytes_per_s) / (
            self.num_controllers
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is simulated."""

    mode: str  # in turns, one ahead, without end
    num_sampling: int
    num_learning: int
    batch: int  # samples a step
    num_steps: int
    lengths: Lengths
    max_staleness: int
    seed: int = 1
    has_faults: bool = False
    weight: int = 1  # GPUs that each simulated one stands for: they are all alike


@dataclass
class Fleet:
    """Engines that share their time evenly among what they run.

    An engine's clock counts the tokens that each of its sequences got; a sequence ends when it has
    moved on by its length. So an event costs a heap operation, however many sequences there are.
    """

    costs: Costs
    size: int
    now: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    ends: list[list[float]] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    idle: list[tuple[int, int]] = field(default_factory=list)
    busy_s: float = 0.0

    def __post_init__(self) -> None:
        self.now, self.clock = [0.0] * self.size, [0.0] * self.size
        self.ends, self.stamps = [[] for _ in range(self.size)], [0] * self.size
        self.idle = [(0, engine) for engine in range(self.size)]

    def advance(self, engine: int, at_s: float) -> None:
        """Moves an engine's sequences on to a moment."""
        running = len(self.ends[engine])
        if running:
            passed_s = at_s - self.now[engine]
            self.clock[engine] += passed_s / self.costs.token_s(running)
            self.busy_s += passed_s
        self.now[engine] = at_s

    def shift(self, seconds: float) -> None:
        """Lets time pass in which no engine moves."""
        self.now = [at_s + seconds for at_s in self.now]

    def next_end(self, engine: int) -> float | None:
        """When the next sequence of an engine ends, if nothing comes to it before."""
        ends = self.ends[engine]
        if not ends:
            return None
        missing = max(0.0, ends[0] - self.clock[engine])
        return self.now[engine] + missing * self.costs.token_s(len(ends))

    def place(self) -> int | None:
        """The engine with the fewest sequences; None when all are full."""
        while self.idle:
            count, engine = self.idle[0]
            if count == len(self.ends[engine]):
                return engine if count < self.costs.max_running else None
            heapq.heapreplace(self.idle, (len(self.ends[engine]), engine))
        return None


class Simulation:
    """One run: takes a Plan and Costs, gives the seconds and idle shares of its steps."""

    def __init__(self, plan: Plan, costs: Costs) -> None:
        self.plan, self.costs = plan, costs
        self.random = random.Random(plan.seed)
        self.fleet = Fleet(costs, plan.num_sampling)
        self.events: list[tuple[float, int, int, int]] = []  # when, kind, engine, stamp
        self.now_s = 0.0
        self.waiting: deque[int] = deque()
        self.started = self.version = self.taken = 0
        self.done: deque[tuple[float, int, int]] = deque()  # ready at, tokens, version at the start
        self.free_s = [0.0] * costs.num_controllers
        self.flight: dict[tuple[int, float], list[tuple[int, int]]] = {}
        self.num_flying = 0
        self.flying: Counter[int] = Counter()
        self.step_ends: list[float] = []
        self.learning_s = self.publishing_s = self.passing_s = 0.0
        self.sums = [(0.0,) * 5]  # seconds in all, and of each part, after every step
        self.staleness: list[int] = []

    def run(self) -> dict[str, float]:
        """Seconds a step, tokens a second, idle shares, and how stale samples were."""
        plan = self.plan
        for step in range(plan.num_steps):
            self._admit()
            ready_s, tokens = self._wait_for_batch(step)
            began_s = max(ready_s, self.step_ends[-1] if self.step_ends else 0.0)
            self._sample_until(began_s)
            self.taken += 1
            self._admit()
            tokens, num_learning = tokens * plan.weight, plan.num_learning * plan.weight
            learn_s = self.costs.hand_over_s(tokens, num_learning)
            learn_s += self.costs.train_s(tokens, num_learning)
            if plan.has_faults:
                chance = learn_s * num_learning / self.costs.gpu_mtbf_s
                learn_s += self.costs.trainer_restart_s * (self.random.random() < chance)
            self.learning_s += learn_s
            self._sample_until(began_s + learn_s)
            if plan.mode == "one ahead":  # publishing waits for the rollout under way
                while self.num_flying:
                    self._next_event()
            self._publish()
            self.step_ends.append(self.now_s)
            for engine in range(plan.num_sampling):
                self.fleet.advance(engine, self.now_s)
            self.sums.append(
                (self.now_s, self.fleet.busy_s, self.learning_s, self.publishing_s, self.passing_s)
            )
        return self._summary()

    def _publish(self) -> None:
        num_sampling = self.plan.num_sampling * self.plan.weight
        seconds = self.costs.update_s(num_sampling)
        if self.plan.has_faults:
            chance = self.now_s - (self.step_ends[-1] if self.step_ends else 0.0)
            chance *= num_sampling / self.costs.gpu_mtbf_s
            lost = self.random.random() < chance  # one engine's answers are sampled again
            seconds += self.costs.engine_restart_s * lost / num_sampling
        self.publishing_s += seconds
        self.fleet.shift(seconds)
        self.events = [(at_s + seconds, *rest) for at_s, *rest in self.events]
        self.now_s += seconds
        self.version += 1

    def _admit(self) -> None:
        """Starts what the mode lets start now."""
        plan = self.plan
        rounds = {
            "in turns": self.version + 1,
            "one ahead": min(self.version + 2, self.taken + 1),
            "without end": self.version + 1 + plan.max_staleness,
        }[plan.mode]
        limit = min(rounds, plan.num_steps) * plan.batch
        touched = set()
        while self.started < limit:
            engine = self.fleet.place()
            if engine is None:
                break
            self.fleet.advance(engine, self.now_s)
            length = plan.lengths(self.random)
            end = self.fleet.clock[engine] + length
            heapq.heappush(self.fleet.ends[engine], end)
            heapq.heapreplace(self.fleet.idle, (len(self.fleet.ends[engine]), engine))
            self.flight.setdefault((engine, end), []).append((length, self.version))
            self.started += 1
            self.num_flying += 1
            self.flying[self.version] += 1
            touched.add(engine)
        for engine in touched:
            self._schedule(engine)

    def _schedule(self, engine: int) -> None:
        self.fleet.stamps[engine] += 1
        at_s = self.fleet.next_end(engine)
        if at_s is not None:
            heapq.heappush(self.events, (at_s, 0, engine, self.fleet.stamps[engine]))

    def _next_event(self) -> None:
        """The next sequence ends, and passes the controller."""
        at_s, _, engine, stamp = heapq.heappop(self.events)
        if stamp != self.fleet.stamps[engine]:
            return
        self.now_s = max(self.now_s, at_s)
        self.fleet.advance(engine, at_s)
        end = heapq.heappop(self.fleet.ends[engine])
        heapq.heappush(self.fleet.idle, (len(self.fleet.ends[engine]), engine))
        self.fleet.clock[engine] = end
        length, version = self.flight[engine, end].pop()
        if not self.flight[engine, end]:
            del self.flight[engine, end]
        self.num_flying -= 1
        self.flying[version] -= 1
        self.flying += Counter()  # drops versions of which none is left
        controller = min(range(len(self.free_s)), key=self.free_s.__getitem__)
        pass_s = self.costs.controller_s * self.plan.weight
        ready_s = self.free_s[controller] = max(self.free_s[controller], at_s) + pass_s
        self.passing_s += pass_s
        self.done.append((ready_s, length, version))
        self._schedule(engine)
        self._admit()

    def _sample_until(self, at_s: float) -> None:
        while self.events and self.events[0][0] <= at_s:
            self._next_event()
        self.now_s = max(self.now_s, at_s)

    def _wait_for_batch(self, step: int) -> tuple[float, int]:
        """When the batch is whole, and its tokens."""
        last_chance = step - max(self.plan.max_staleness, self.plan.mode == "one ahead")
        while len(self.done) < self.plan.batch or min(self.flying, default=step + 1) <= last_chance:
            self._next_event()
        # the oldest go first, so that no sample is trained later than the limit allows
        self.done = deque(sorted(self.done, key=lambda one: one[2]))
        batch = [self.done.popleft() for _ in range(self.plan.batch)]
        self.staleness += [step - version for _, _, version in batch]
        return max(ready_s for ready_s, _, _ in batch), sum(length for _, length, _ in batch)

    def _summary(self) -> dict[str, float]:
        plan = self.plan
        first = plan.num_steps // 3  # then all is in swing
        last = max(first + 1, plan.num_steps - plan.max_staleness - 1)  # nothing runs dry yet
        begin, end = self.sums[first], self.sums[last]
        total_s, busy_s, learning_s, publishing_s, passing_s = (
            after - before for before, after in zip(begin, end, strict=True)
        )
        return {
            "step_s": total_s / (last - first),
            "total_s": self.now_s,
            "sampler_idle": 1 - busy_s / (total_s * plan.num_sampling),
            "trainer_idle": 1 - learning_s / total_s,
            "publishing": publishing_s / total_s,
            "controller": passing_s / (total_s * self.costs.num_controllers),
            "staleness": sum(self.staleness) / len(self.staleness),
            "stalest": max(self.staleness),
        }


def fixed(length: int) -> Lengths:
    """Every answer has this length."""
    return lambda chance: length


def long_tailed(chance: random.Random) -> int:
    """Lognormal with a median of 2,000 tokens, cut at 16,384: reasoning answers, roughly."""
    return max(16, min(16_384, round(chance.lognormvariate(math.log(2000), 0.9))))


MOST_SIMULATED = 16
"""Larger clusters are simulated by so many GPUs, each standing for its like."""

LENGTHS: dict[str, Lengths] = {"w1": fixed(1024), "long": long_tailed}


def best(plan: Plan, costs: Costs, num_gpus: int) -> tuple[Plan, dict[str, float]]:
    """The plan with the split of devices whose step is shortest, and what it gave."""
    weight = max(1, num_gpus // MOST_SIMULATED)
    plan = replace(plan, batch=plan.batch // weight, weight=weight)
    num_gpus //= weight
    if plan.mode == "in turns":
        whole = replace(plan, num_sampling=num_gpus, num_learning=num_gpus, max_staleness=0)
        return whole, Simulation(whole, costs).run()
    found = []
    for share in (0.375, 0.5, 0.625, 0.75, 0.875):
        sampling = max(1, round(num_gpus * share))
        one = replace(plan, num_sampling=sampling, num_learning=num_gpus - sampling)
        found.append((Simulation(one, costs).run(), one))
    result, one = min(found, key=lambda pair: pair[0]["step_s"])
    return one, result


def rows_of(options: argparse.Namespace, costs: Costs) -> Iterator[dict[str, Any]]:
    """A row for each number of GPUs and mode."""
    for num_gpus in options.gpus:
        for mode in ("in turns", "one ahead", "without end"):
            plan = Plan(
                mode=mode,
                num_sampling=1,
                num_learning=1,
                batch=options.fixed_batch or options.batch * num_gpus,
                num_steps=options.steps,
                lengths=LENGTHS[options.lengths],
                max_staleness=2,
                has_faults=options.faults,
            )
            one, found = best(plan, costs, num_gpus)
            rate = plan.batch / found["step_s"] / num_gpus
            yield {
                "GPUs": num_gpus,
                "mode": mode,
                "sample/train": f"{one.num_sampling * one.weight}/{one.num_learning * one.weight}",
                "step_s": round(found["step_s"], 2),
                "samples/s/GPU": round(rate, 3),
                **{
                    name: round(found[name], 3)
                    for name in ("sampler_idle", "trainer_idle", "publishing", "controller")
                },
                "staleness": round(found["staleness"], 2),
            }


def main() -> None:
    """Prints the table and one JSON line."""
    from w1 import RESULTS, report

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512, 4096])
    parser.add_argument("--lengths", choices=list(LENGTHS), default="long")
    parser.add_argument("--batch", type=int, default=64, help="samples of a step, for each GPU")
    parser.add_argument("--fixed-batch", type=int, help="samples of a step in all")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--faults", action="store_true", help="GPUs fail")
    parser.add_argument("--mended", action="store_true", help="with the changes of docs/scale.md")
    parser.add_argument("--keep", action="store_true", help="add the line to benchmarks/results")
    options = parser.parse_args()
    costs = Costs()
    if options.mended:
        costs = replace(costs, packs_on_ranks=True, calls_by_tree=True, num_controllers=8)
    facts = {name: value for name, value in vars(options).items() if name != "keep"}
    out: Path | None = RESULTS if options.keep else None
    report("scale_sim", list(rows_of(options, costs)), out, **facts)


if __name__ == "__main__":
    main()
