"""What scheduling costs: thousands of samples at once over an engine that does nothing.

    python benchmarks/rollout_load.py [--samples 4096] [--group 8] [--seconds 1.0] [--repeats 5]

Rounds: all groups are wanted; half of them, so that the other half is cut off, and thrown away or
saved; half of them after a filter that drops a quarter. The engine finishes each request after a
random delay. `cut off` is from the decision to stop until everything that was cut off is back: wall
time, and processor time of the same, which other work on the machine does not lengthen. Medians.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np

from tandem.rollout import (
    Choice,
    Door,
    EventLoop,
    Generator,
    GroupSampler,
    RolloutStage,
    Supply,
    Terms,
)
from tandem.rollout.rules import KEEP, Ruling
from tandem.types import Completion, Ending, EngineStats, Group, Prompt, Request, Sampling

TOKENS = np.arange(64, dtype=np.int32)


class IdleEngine:
    """Finishes each request after a random delay of at most `seconds`; computes nothing."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._random = random.Random(1)
        self._live: dict[str, asyncio.Future[Completion]] = {}
        self.most_live = 0
        self.aborted_at_s = self.aborted_at_cpu_s = 0.0
        self.num_finished = 0

    def add(self, request: Request) -> "asyncio.Future[Completion]":
        loop = asyncio.get_running_loop()
        future = self._live[request.id] = loop.create_future()
        self.most_live = max(self.most_live, len(self._live))
        delay_s = self._random.random() * self._seconds
        loop.call_later(delay_s, self._finish, request.id, Ending.STOP)
        return future

    async def abort(self, ids: Any = None) -> None:
        self.aborted_at_s, self.aborted_at_cpu_s = time.perf_counter(), time.process_time()
        for name in list(self._live):
            self._finish(name, Ending.ABORT)

    def _finish(self, name: str, ending: Ending) -> None:
        future = self._live.pop(name, None)
        if future is None:
            return
        self.num_finished += 1
        count = len(TOKENS)
        future.set_result(
            Completion(
                id=name,
                tokens_C=TOKENS,
                logprobs_C=np.zeros(count, np.float32),
                version_C=np.zeros(count, np.int32),
                ending=ending,
            )
        )

    def stats(self) -> EngineStats:
        numbers = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
        return EngineStats(**{**numbers, "is_asleep": False})


class AtOnce:
    """A reward of 1 for everybody."""

    async def score(self, group: Group, *, is_evaluation: bool = False) -> Group:
        return replace(group, samples=tuple(replace(s, reward=1.0) for s in group.samples))

    def close(self) -> None:
        """Nothing to close."""


class Numbers:
    """Prompts without an end."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> list[Prompt]:
        first, self._next = self._next, self._next + count
        return [
            Prompt(index=first + nth, tokens_T=TOKENS, text="", content="") for nth in range(count)
        ]

    def state(self) -> dict[str, int]:
        return {"next": self._next}

    def restore(self, state: Any) -> None:
        self._next = state["next"]


class NoWords:
    """A tokenizer that has nothing to say."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return ""


def drop_quarter(group: Group) -> Ruling:
    return Ruling(reason="quarter") if group.prompt.index % 4 == 0 else KEEP


def measure(name: str, options: argparse.Namespace, **choice: Any) -> dict[str, Any]:
    """One round: its seconds, what scheduling cost, and how fast it was cut off."""
    engine, events, source = IdleEngine(options.seconds), EventLoop(), Numbers()
    door = Door(engine, concurrency=options.samples)
    groups = GroupSampler(door, Generator(door, NoWords()), AtOnce())
    stage = RolloutStage(
        supply=Supply(source, options.group),
        groups=groups,
        terms=Terms(sampling=Sampling(max_new_tokens=64), seed=1),
        choice=Choice(fetch_size=options.samples // options.group, **choice),
        events=events,
    )
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    rollout = stage.collect(0)
    ended_s, ended_cpu_s = time.perf_counter(), time.process_time()
    cpu_s, is_cut = ended_cpu_s - began_cpu_s, engine.aborted_at_s > 0
    events.close()
    kept = {group.prompt.index for group in rollout.groups}
    assert len(kept) == choice["batch_size"], "a group was lost or doubled"
    assert all(s.reward == 1.0 for group in rollout.groups for s in group.samples)
    return {
        "round": name,
        "samples": engine.num_finished,
        "at_once": engine.most_live,
        "seconds": round(ended_s - began_s, 3),
        "cpu_us_per_sample": round(cpu_s / engine.num_finished * 1e6, 1),
        "cut_off_ms": (ended_s - engine.aborted_at_s) * 1e3 if is_cut else None,
        "cut_off_cpu_ms": (ended_cpu_s - engine.aborted_at_cpu_s) * 1e3 if is_cut else None,
    }


def repeated(name: str, options: argparse.Namespace, **choice: Any) -> dict[str, Any]:
    """The median of every number over repeats of a round, and the longest cut."""
    rounds = [measure(name, options, **choice) for _ in range(options.repeats)]
    row: dict[str, Any] = {"round": name}
    for key, first in rounds[0].items():
        if key != "round":
            values = [one[key] for one in rounds]
            row[key] = None if first is None else round(statistics.median(values), 3)
    cuts = [one["cut_off_ms"] for one in rounds if one["cut_off_ms"] is not None]
    return row | {"longest_cut_off_ms": round(max(cuts), 1) if cuts else None}


def main() -> None:
    """Prints a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4096, help="at work at once")
    parser.add_argument("--group", type=int, default=8, help="samples of a prompt")
    parser.add_argument("--seconds", type=float, default=1.0, help="longest delay")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    size = options.samples // options.group
    rows = [
        repeated("all wanted", options, batch_size=size),
        repeated("half wanted", options, batch_size=size // 2),
        repeated("half wanted, rest saved", options, batch_size=size // 2, saves=True),
        repeated("half wanted, filtered", options, batch_size=size // 2, keeps=drop_quarter),
    ]
    heads = ("samples", "at_once", "seconds", "cpu_us_per_sample", "cut_off_ms")
    heads = (*heads, "longest_cut_off_ms", "cut_off_cpu_ms")
    print(f"{'round':<26}" + "".join(f"{head:>20}" for head in heads))
    for row in rows:
        cells = ("-" if row[head] is None else f"{row[head]:.4g}" for head in heads)
        print(f"{row['round']:<26}" + "".join(f"{cell:>20}" for cell in cells))
    load = round(os.getloadavg()[0], 1)
    print(json.dumps({"benchmark": "rollout_load", "load_average": load, "rows": rows}))


if __name__ == "__main__":
    main()
