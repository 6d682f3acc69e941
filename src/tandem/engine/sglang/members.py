"""The servers of one engine, which of them may sample, and who takes a request."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from tandem.engine.sglang.server import Server


class Runs(Protocol):
    """The process behind a server, where it is ours to start and end."""

    @property
    def url(self) -> str: ...

    @property
    def meeting(self) -> str:
        """Where the processes of a server on several hosts meet, once it was started."""

    def start(self) -> None:
        """Starts it, anew if it ran before; the address may be another one then."""

    def death(self) -> str | None:
        """How it ended, with its last lines; None while it runs."""

    def kill(self) -> None:
        """Ends it and everything that it started."""


class Member:
    """One server, and what is asked of it now. Everything but `process` belongs to the line."""

    def __init__(self, server: Server, process: Runs | None) -> None:
        self.server, self.process = server, process
        self.is_up = False  # it answers
        self.is_listed = False  # whoever spreads requests knows its address
        self.version: int | None = None  # of its weights; None when they are of no version
        self.rids: set[str] = set()
        self.num_restarts = 0

    @property
    def name(self) -> str:
        return self.server.name


class Balance:
    """Sends the samples of a group where its first one went, else where least is going on."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)
        self._home: dict[str, Member] = {}
        self._guests: dict[str, int] = {}

    def take(self, group: str | None, ready: Iterable[Member]) -> Member | None:
        """The member for one more request of the group; None if none is ready. See `leave`."""
        able = [member for member in self._members if member in set(ready)]
        if not able:
            return None
        home = self._home.get(group) if group is not None else None
        if home not in able:
            home = min(able, key=lambda member: len(member.rids))
        if group is not None:
            self._home[group] = home
            self._guests[group] = self._guests.get(group, 0) + 1
        return home

    def leave(self, group: str | None) -> None:
        """A request that `take` placed is done."""
        if group is None:
            return
        self._guests[group] -= 1
        if not self._guests[group]:
            del self._guests[group], self._home[group]


class Gate:
    """Where requests wait while weights change, while no server is up, or until they are ended."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self.is_open = True

    async def change(self, *, is_open: bool | None = None) -> None:
        """Lets everybody who waits look again."""
        async with self._changed:
            if is_open is not None:
                self.is_open = is_open
            self._changed.notify_all()

    async def until(self, holds) -> None:
        """Waits until `holds()`; woken by `change`."""
        async with self._changed:
            await self._changed.wait_for(holds)
