"""A request on its way through the engine."""

from collections.abc import Callable

import numpy as np

from tandem.engine.torch.blocks import Digest, chain, content
from tandem.types import Completion, Ending, Request

Deliver = Callable[[Completion | Exception], None]


class Sequence:
    """What the engine knows of one request; `slot` is its place in `Rows` while it runs.

    It waits (no slot, no blocks), is prefilled (`num_planned` of its tokens have keys and values,
    or will have them when the launched work is done), then decodes. Preempted, it waits again,
    with everything it wrote so far as part of `tokens_T`.
    """

    def __init__(self, request: Request, arrival: int, block_size: int, deliver: Deliver) -> None:
        self.request = request
        self.arrival = arrival
        self.deliver = deliver
        self.block_size = block_size
        self.slot = -1
        self.blocks: list[int] = []
        self.num_planned = 0
        self.num_cached = 0
        self.was_started = False
        self.experts_TLk: np.ndarray | None = None  # set at the end, where they are recorded
        self.is_clean = True  # every key and value is of the engine's present version
        self._written: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.tokens_T = np.zeros(0, dtype=np.int32)
        self.digests: list[Digest] = []  # of its full blocks
        self.content: Digest = b""  # of all its tokens
        self._set_tokens(np.ascontiguousarray(request.tokens_T, dtype=np.int32))

    @property
    def num_tokens(self) -> int:
        """Tokens that are known on entry into a slot: what prefill has to compute."""
        return len(self.tokens_T)

    @property
    def num_written(self) -> int:
        """New tokens that it brought along from before a preemption."""
        return sum(len(tokens_C) for tokens_C, _, _ in self._written)

    @property
    def brought_C(self) -> np.ndarray:
        """These tokens."""
        return np.concatenate(
            [np.zeros(0, np.int32), *(tokens_C for tokens_C, _, _ in self._written)]
        )

    @property
    def written_before_C(self) -> np.ndarray:
        """The tokens of the request that were written before an interruption."""
        request = self.request
        return request.tokens_T[len(request.tokens_T) - request.num_written :]

    def keep(self, tokens_C: np.ndarray, logprobs_C: np.ndarray, version_C: np.ndarray) -> None:
        """Takes what was written in a slot that it leaves."""
        if len(tokens_C):
            self._written.append((tokens_C, logprobs_C, version_C))
            self._set_tokens(np.concatenate([self.tokens_T, tokens_C]))

    def extend_digests(self, num_full: int, fresh_C: np.ndarray) -> None:
        """Digests for `num_full` full blocks; `fresh_C` follows the tokens known on entry."""
        if len(self.digests) < num_full:
            tokens_T = np.concatenate([self.tokens_T, fresh_C])[: num_full * self.block_size]
            self.digests = chain(tokens_T, self.block_size, self.digests)

    def completion(
        self, ending: Ending, matched: str | int | None = None, error: str | None = None
    ) -> Completion:
        """What the engine added, once it has left its slot."""
        empty = (np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int32))
        columns = zip(*self._written, strict=True) if self._written else ([x] for x in empty)
        tokens_C, logprobs_C, version_C = (np.concatenate(list(column)) for column in columns)
        return Completion(
            id=self.request.id,
            tokens_C=tokens_C,
            logprobs_C=logprobs_C,
            version_C=version_C,
            ending=ending,
            experts_TLk=self.experts_TLk,
            matched=matched,
            num_cached=self.num_cached,
            error=error,
        )

    def _set_tokens(self, tokens_T: np.ndarray) -> None:
        self.tokens_T = tokens_T
        self.digests = chain(tokens_T, self.block_size)
        self.content = content(tokens_T, self.block_size, self.digests)
