"""Listens to the pulse of every process and names those that stand still."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from tandem.runtime.ray.pulse import Pulse
from tandem.runtime.ray.worker import Whereabouts

MOST_INTERVAL_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """When a process that lives and stands still is ended, so that another takes its place."""

    interval_s: float
    timeout_s: float
    first_wait_s: float  # after its start


@dataclass(slots=True)
class _Watched:
    """One process and what was heard of it."""

    handle: Any
    where: Whereabouts
    pulse: Pulse | None = None
    heard_s: float = field(default_factory=time.monotonic)  # when a pulse came last
    moved_s: float = field(default_factory=time.monotonic)  # when one was another than before
    started_s: float = field(default_factory=time.monotonic)
    may_end: bool = False  # somebody puts another in its place
    is_named: bool = False
    bound_to: Any = None  # the handle of a process that ends with it


class Watch:
    """Owns a thread that asks every process for its pulse.

    A process that is at work and does not move, or does not answer, is named once, within
    `limit_s`, with what it waits for, and everybody's stacks go to a file. Those that can be
    replaced are ended by `checks`, where there are some.
    """

    def __init__(
        self,
        *,
        limit_s: float,
        folder: Path,
        say: Callable[[str], None],
        checks: Checks | None = None,
    ) -> None:
        """`folder` is where stacks are written, `say` takes a sentence."""
        self._folder, self._say = folder, say
        self._checks, self._checked_s = checks, time.monotonic()
        self._interval_s = min(MOST_INTERVAL_S, limit_s / 8)
        if checks is not None:
            self._interval_s = min(self._interval_s, checks.timeout_s / 4)
        # between two looks lie an interval, and another in which some do not answer
        self._limit_s = limit_s - 2 * self._interval_s
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def add(self, name: str, handle: Any, where: Whereabouts, *, may_end: bool) -> None:
        """Watches a process; one of the same name is forgotten."""
        with self._lock:
            self._watched[name] = _Watched(handle, where, may_end=may_end)

    def bind(self, name: str, to: Any) -> None:
        """Has the death of this process end another, which cannot go on without it."""
        with self._lock:
            self._watched[name].bound_to = to

    def remove(self, name: str) -> None:
        """Forgets a process that has ended."""
        with self._lock:
            self._watched.pop(name, None)

    def describe(self, name: str) -> str:
        """The process's name and where it is."""
        watched = self._watched.get(name)
        return name if watched is None else f"{name} on {watched.where}"

    def last_heard(self, name: str) -> str:
        """What the process did when it was last heard of."""
        watched = self._watched.get(name)
        if watched is None or watched.pulse is None:
            return "nothing yet"
        return f"{_doing(watched.pulse)}, {time.monotonic() - watched.heard_s:.0f} s ago"

    def dead(self) -> dict[str, str]:
        """Processes that are no more, each with where it was, by name; all are asked now."""
        with self._lock:
            watched = dict(self._watched)
        pulses = self._pulses(watched)
        return {name: f"{name} on {watched[name].where}" for name in pulses if pulses[name] is None}

    def close(self) -> None:
        """Ends the thread."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        """Takes pulses, gives sentences about those that stand still; woken by its interval."""
        while not self._is_over.wait(self._interval_s):
            with self._lock:
                watched = dict(self._watched)
            self._listen(watched)
            now_s = time.monotonic()
            still = {
                name: one
                for name, one in watched.items()
                if now_s - min(one.heard_s, one.moved_s) > self._limit_s and not one.is_named
            }
            if self._is_over.is_set():
                return
            if still:
                self._name(still, watched)
            if self._checks is not None and now_s - self._checked_s >= self._checks.interval_s:
                self._checked_s = now_s
                self._end_hung(self._checks, watched, now_s)

    def _end_hung(self, checks: Checks, watched: dict[str, _Watched], now_s: float) -> None:
        """Ends processes that stand still and can be replaced; who called them hears of it."""
        for name, one in watched.items():
            silent_s = now_s - min(one.heard_s, one.moved_s)
            is_checked = one.may_end and now_s - one.started_s > checks.first_wait_s
            if is_checked and silent_s > checks.timeout_s:
                one.may_end = False
                self._say(
                    f"{name} on {one.where} has stood still for {silent_s:.0f} s and is ended "
                    f"(--use-fault-tolerance): {_doing(one.pulse)}"
                )
                ray.kill(one.handle)

    def _pulses(self, watched: dict[str, _Watched]) -> dict[str, Pulse | None]:
        """What those say who answer in time; None of the dead."""
        refs = {one.handle.pulse.remote(): name for name, one in watched.items()}
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=self._interval_s)
        found: dict[str, Pulse | None] = {}
        for ref in done:
            try:
                found[refs[ref]] = ray.get(ref)
            except RayActorError:
                found[refs[ref]] = None
        return found

    def _listen(self, watched: dict[str, _Watched]) -> None:
        for name, pulse in self._pulses(watched).items():
            one, now_s = watched[name], time.monotonic()
            one.heard_s = now_s
            if pulse is None:
                one.moved_s = now_s  # who called it will hear of its death
                if one.bound_to is not None:
                    ray.kill(one.bound_to)
                continue
            if pulse.span is None or one.pulse is None or pulse.place != one.pulse.place:
                one.moved_s, one.is_named = now_s, False
            one.pulse = pulse

    def _name(self, still: dict[str, _Watched], watched: dict[str, _Watched]) -> None:
        path = self._folder / f"stacks-{time.strftime('%H%M%S')}.txt"
        parts = []
        for name, one in watched.items():
            parts.append(f"==== {name} on {one.where}\n{self._stacks(one)}")
        path.write_text("\n".join(parts), encoding="utf-8")
        for name, one in still.items():
            one.is_named = True
            silent_s = time.monotonic() - one.heard_s
            if silent_s > self._limit_s:
                what = f"has not answered for {silent_s:.0f} s"
            else:
                what = f"has not moved for {time.monotonic() - one.moved_s:.0f} s"
            self._say(f"{name} on {one.where} {what}: {_doing(one.pulse)}; all stacks: {path}")

    def _stacks(self, one: _Watched) -> str:
        ref = one.handle.stacks.remote()
        done, _ = ray.wait([ref], timeout=self._interval_s)
        try:
            return ray.get(ref) if done else "no answer\n"
        except RayActorError:
            return "dead\n"


def _doing(pulse: Pulse | None) -> str:
    if pulse is None:
        return "nothing was ever heard of it"
    if pulse.span is None:
        return "idle"
    return f"in {pulse.span} for {pulse.seconds:.0f} s, in {pulse.waits_in}"
