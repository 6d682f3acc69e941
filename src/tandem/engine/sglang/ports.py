"""Ports of this machine that nobody else takes between finding and using them."""

import random
import socket
from types import TracebackType

from tandem.errors import ResourceError

FIRST, LAST, BLOCK = 15_000, 31_000, 40
"""Below the range that systems draw from for outgoing connections; a block serves one server."""


MEETING = 4
"""The place in its block where the processes of a server on several hosts meet; those after it
are taken too."""


class Ports:
    """A block of ports, ours as long as its first one is held.

    Every run claims blocks by listening on the first port, so two runs never share one. Programs
    that do not know this rule may still take a port inside; then the server says so and the next
    block is tried.
    """

    def __init__(self, *, host: str = "127.0.0.1") -> None:
        """Raises ResourceError when every block is taken."""
        blocks = list(range(FIRST, LAST, BLOCK))
        random.shuffle(blocks)
        for first in blocks:
            guard = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                guard.bind((host, first))
                guard.listen(1)
                self._refuse_taken(host, first)
            except OSError:
                guard.close()
                continue
            self._guard, self.first = guard, first
            return
        raise ResourceError(f"no block of {BLOCK} free ports between {FIRST} and {LAST}")

    def __getitem__(self, place: int) -> int:
        """The port at `place` of the block, from 1: the first one is the claim itself."""
        assert 0 < place < BLOCK, f"a block has ports 1 to {BLOCK - 1}, not {place}"
        return self.first + place

    def close(self) -> None:
        """Gives the block up."""
        self._guard.close()

    def __enter__(self) -> "Ports":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @staticmethod
    def _refuse_taken(host: str, first: int) -> None:
        for port in range(first + 1, first + MEETING + 1):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
