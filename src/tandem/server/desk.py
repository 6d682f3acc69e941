"""The way to the engine: each answer has an id, can be ended by it, and is written down."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from tandem.errors import EngineError
from tandem.server.branches import Conversation, Session, Turn
from tandem.server.faults import Refusal
from tandem.server.settings import Samples, ServerSettings
from tandem.server.terms import Terms
from tandem.server.words import Words
from tandem.types import Completion, Ending, Request, SampleKey, Sampling

_WORD = (1 << 63) - 1
"""Words of a key are signed 64-bit integers."""

_OWN_STREAM = 0x5E12_7E12_0000_0000
"""Sets keys of requests without a session apart from those of training."""


Said = Callable[[Completion, int], Conversation]
"""The conversation with a reply in it, from the reply and its place among the request's answers."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ask:
    """One answer that is wanted."""

    id: str  # of the request it belongs to
    choice: int  # its place among that request's answers
    tokens_T: np.ndarray
    sampling: Sampling
    key: SampleKey
    turn: Turn | None = None
    said: Said | None = None


class Desk:
    """Takes asks to the engine and gives completions; knows which are live."""

    def __init__(self, engine: Samples, words: Words, settings: ServerSettings) -> None:
        self._engine, self._words, self._settings = engine, words, settings
        self._live: dict[str, set[str]] = {}  # names that the engine knows, by request
        self._aborted: set[str] = set()
        self._num_asked = 0

    @property
    def num_live(self) -> int:
        """Requests that are being answered."""
        return len(self._live)

    @contextmanager
    def asks(
        self,
        tokens_T: np.ndarray,
        terms: Terms,
        *,
        id: str,
        session: Session | None,
        said: Said | None = None,
    ) -> Iterator[list[Ask]]:
        """One ask for each answer that the terms want; raises Refusal.

        In a session every ask is a turn, which is over at the end of the block. A session with a
        key sets the request's own seed aside: an agent that always sends the same seed would give
        every sample of a group one answer.
        """
        if id in self._live:
            raise Refusal(f"request id {id} is running already; give every request its own")
        if terms.num_choices > self._settings.max_choices:
            raise Refusal(f"n is {terms.num_choices}; at most {self._settings.max_choices}")
        limit = self._limit(len(tokens_T), terms.limit, session)
        sampling = replace(terms.sampling, max_new_tokens=limit)
        self._num_asked += 1
        self._live[id] = set()
        asks: list[Ask] = []
        try:
            for choice in range(terms.num_choices):
                turn = None if session is None else session.begin(tokens_T)
                asks.append(
                    Ask(
                        id=id,
                        choice=choice,
                        tokens_T=tokens_T,
                        sampling=sampling if turn is None else turn.pins.applied(sampling),
                        key=(turn and turn.key) or self._key(terms.seed, choice),
                        turn=turn,
                        said=said,
                    )
                )
            yield asks
        finally:
            del self._live[id]
            self._aborted.discard(id)
            for ask in asks:
                if ask.turn is not None:
                    ask.turn.drop()

    async def answer(self, ask: Ask) -> Completion:
        """The whole completion; see `pieces`."""
        return [piece async for piece in self.pieces(ask, interval=None)][-1]

    async def answers(self, asks: Sequence[Ask]) -> list[Completion]:
        """All of them, asked for at once; where one fails the others are ended."""
        tasks = [asyncio.create_task(self.answer(ask)) for ask in asks]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def pieces(self, ask: Ask, *, interval: int | None) -> AsyncGenerator[Completion, None]:
        """The completion as it grows, by `interval` tokens or in one piece; the last is whole, and
        written down before it is given.

        The engine is asked again for each piece. Randomness is a function of the place of a token,
        so the tokens are those of one piece, up to the rounding of logits. Raises Refusal for what
        the engine does not take. Cut off, it writes down what it had given.
        """
        written, is_whole = Completion.empty(ask.id, Ending.ABORT), False
        try:
            while not is_whole:
                count = len(written.tokens_C)
                if ask.id in self._aborted:
                    written, is_whole = replace(written, ending=Ending.ABORT), True
                else:
                    piece = await self._ask_engine(ask, written, interval)
                    written = self._cut_at_stop(ask, _joined(written, piece), count)
                    # an engine that has no room left adds nothing, however often it is asked
                    is_whole = is_last(ask, written) or len(written.tokens_C) == count
                if is_whole and ask.turn is not None:
                    said = ask.said and ask.said(written, ask.choice)
                    ask.turn.finish(written, said)
                yield written
        finally:
            if ask.turn is not None:
                ask.turn.finish(replace(written, ending=Ending.ABORT))

    async def abort(self, id: str | None = None) -> None:
        """Ends a request, or all; they answer with ABORT and what was written."""
        ids = list(self._live) if id is None else [id] if id in self._live else []
        self._aborted.update(ids)
        names = [name for one in ids for name in self._live[one]]
        if names:
            await self._engine.abort(names)

    def _limit(self, length: int, asked: int | None, session: Session | None) -> int:
        """New tokens that fit; Refusal where the request wants more and that is not cut off."""
        room = self._settings.max_context - length
        if self._settings.cuts_to_context:
            return max(0, room if asked is None else min(asked, room))
        if room < (asked or 0) or room < 0:
            raise Refusal(
                f"the prompt has {length} tokens and {asked or 0} more are wanted; the context "
                f"holds {self._settings.max_context}",
                code="context_length_exceeded",
            )
        limit = room if asked is None else asked
        if session is None or session.pins.max_new_tokens is None:
            return limit
        return max(0, min(limit, session.pins.max_new_tokens - session.num_sampled))

    def _key(self, seed: int | None, choice: int) -> SampleKey:
        if seed is not None:
            return SampleKey(seed=seed & _WORD, prompt=0, sample=choice)
        own = (self._settings.seed ^ _OWN_STREAM) & _WORD
        return SampleKey(seed=own, prompt=self._num_asked, sample=choice)

    async def _ask_engine(self, ask: Ask, written: Completion, interval: int | None) -> Completion:
        """The next piece; a request that is cancelled while it waits is ended in the engine."""
        count = len(written.tokens_C)
        left = ask.sampling.max_new_tokens - count
        name = f"{ask.id}/{ask.choice}/{count}"
        request = Request(
            id=name,
            tokens_T=np.concatenate([ask.tokens_T, written.tokens_C]).astype(np.int32),
            sampling=replace(
                ask.sampling,
                max_new_tokens=left if interval is None else min(interval, left),
                min_new_tokens=max(0, ask.sampling.min_new_tokens - count),
            ),
            key=ask.key,
            group=ask.id,
        )
        try:
            way = ask.turn and ask.turn.way
            coming = way(request) if way else self._engine.add(request)
        except EngineError as error:
            raise Refusal(str(error)) from error
        names = self._live[ask.id]
        names.add(name)
        try:
            piece = await coming
        except asyncio.CancelledError:
            await self._engine.abort([name])
            raise
        finally:
            names.discard(name)
        if piece.ending is Ending.ERROR:
            raise Refusal(piece.error or "the engine could not sample this", status=500)
        return piece

    def _cut_at_stop(self, ask: Ask, written: Completion, start: int) -> Completion:
        """The completion up to a stop string that began in an earlier piece, if there is one."""
        sampling, tokens = ask.sampling, written.tokens_C.tolist()
        if start == 0 or not sampling.stop:
            return written
        for end in range(max(start + 1, sampling.min_new_tokens), len(tokens) + 1):
            for stop in sampling.stop:
                if stop in self._tail(tokens[:end], stop, sampling) and (
                    end < len(tokens) or written.ending is not Ending.STOP
                ):
                    return _first(written, end, stop)
        return written

    def _tail(self, tokens: list[int], stop: str, sampling: Sampling) -> str:
        # a token that gives text gives a byte or more; a tokenizer may treat the first apart
        window = len(stop.encode()) + 8
        return self._words.decode(tokens[-window:], skips_special=sampling.skip_special_tokens)


def is_last(ask: Ask, piece: Completion) -> bool:
    """Whether a piece is the whole completion."""
    is_full = len(piece.tokens_C) >= ask.sampling.max_new_tokens
    return is_full or piece.ending is not Ending.LENGTH


def _joined(written: Completion, piece: Completion) -> Completion:
    is_first = len(written.tokens_C) == 0
    return replace(
        piece,
        id=written.id,
        tokens_C=np.concatenate([written.tokens_C, piece.tokens_C]).astype(np.int32),
        logprobs_C=np.concatenate([written.logprobs_C, piece.logprobs_C]).astype(np.float32),
        version_C=np.concatenate([written.version_C, piece.version_C]).astype(np.int32),
        num_cached=piece.num_cached if is_first else written.num_cached,
    )


def _first(written: Completion, count: int, matched: str) -> Completion:
    return replace(
        written,
        tokens_C=written.tokens_C[:count],
        logprobs_C=written.logprobs_C[:count],
        version_C=written.version_C[:count],
        ending=Ending.STOP,
        matched=matched,
    )
