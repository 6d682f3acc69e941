"""What scheduling costs: thousands of samples at once over an engine that does nothing.

    python benchmarks/rollout_load.py [--samples 4096] [--group 8] [--seconds 1.0]

Three rounds: all groups are wanted; half of them, so that the other half is cut off; half of them
after a filter that drops a quarter. The engine finishes each request after a random delay.
"""

import argparse
import asyncio
import json
import random
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
        self.aborted_at_s = 0.0
        self.num_finished = 0

    def add(self, request: Request) -> "asyncio.Future[Completion]":
        loop = asyncio.get_running_loop()
        future = self._live[request.id] = loop.create_future()
        self.most_live = max(self.most_live, len(self._live))
        delay_s = self._random.random() * self._seconds
        loop.call_later(delay_s, self._finish, request.id, Ending.STOP)
        return future

    async def abort(self, ids: Any = None) -> None:
        self.aborted_at_s = time.perf_counter()
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
    ended_s, cpu_s = time.perf_counter(), time.process_time() - began_cpu_s
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
        "cut_off_ms": round((ended_s - engine.aborted_at_s) * 1e3, 1)
        if engine.aborted_at_s
        else None,
    }


def main() -> None:
    """Prints a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4096, help="at work at once")
    parser.add_argument("--group", type=int, default=8, help="samples of a prompt")
    parser.add_argument("--seconds", type=float, default=1.0, help="longest delay")
    options = parser.parse_args()
    size = options.samples // options.group
    rows = [
        measure("all wanted", options, batch_size=size),
        measure("half wanted", options, batch_size=size // 2),
        measure("half wanted, rest saved", options, batch_size=size // 2, saves=True),
        measure("half wanted, filtered", options, batch_size=size // 2, keeps=drop_quarter),
    ]
    print(f"{'round':<26}{'samples':>9}{'at once':>9}{'s':>8}{'cpu us':>9}{'cut off ms':>12}")
    for row in rows:
        cut = "-" if row["cut_off_ms"] is None else row["cut_off_ms"]
        print(
            f"{row['round']:<26}{row['samples']:>9}{row['at_once']:>9}{row['seconds']:>8}"
            f"{row['cpu_us_per_sample']:>9}{cut:>12}"
        )
    print(json.dumps({"benchmark": "rollout_load", "rows": rows}))


if __name__ == "__main__":
    main()
