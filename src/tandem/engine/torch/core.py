"""The engine without its clock: requests in, one step at a time, completions out."""

from dataclasses import dataclass

import numpy as np

from tandem.engine.torch.batches import decode_batch, drawing_slots, prefill_batch
from tandem.engine.torch.blocks import BlockPool
from tandem.engine.torch.rows import Rows
from tandem.engine.torch.runner import Runner
from tandem.engine.torch.scheduler import Plan, Scheduler
from tandem.engine.torch.sequence import Deliver, Sequence
from tandem.engine.torch.stops import Stops
from tandem.errors import EngineError
from tandem.kernels.later import Later
from tandem.types import Ending, Request


@dataclass(frozen=True, slots=True)
class _Launched:
    """Tokens that are being drawn: for which slots, of which owner, by which weights."""

    slots_R: np.ndarray
    epoch_R: np.ndarray
    version: int
    drawn: Later


class Core:
    """All live requests, and the step that moves them on.

    If `is_late`, a step's tokens are read after the next step was launched, so that the host's
    work hides behind the device's; a sequence that had ended then draws one token in vain.
    """

    def __init__(
        self,
        runner: Runner,
        stops: Stops,
        *,
        num_slots: int,
        prefill_tokens: int,
        version: int,
        is_late: bool,
    ) -> None:
        self.version = version
        self.num_generated = self.num_prefilled = self.num_cached = self.num_arrived = 0
        self._runner, self._stops, self._is_late = runner, stops, is_late
        self._block_size = runner.block_size
        self._max_positions = runner.decoder.shape.max_positions
        self._vocab = runner.decoder.shape.vocab
        self.pool = BlockPool(runner.num_blocks)
        num_row_blocks = min(runner.num_blocks, -(-self._max_positions // self._block_size))
        self._rows = Rows(num_slots, num_row_blocks)
        self.scheduler = Scheduler(self.pool, self._rows, self._block_size, prefill_tokens)
        self._live: dict[str, Sequence] = {}
        self._launched: list[_Launched] = []

    @property
    def has_work(self) -> bool:
        return bool(self._live)

    def queue(self, request: Request, deliver: Deliver) -> None:
        """Queues a request; raises EngineError if it can never be served."""
        self._check(request)
        sequence = Sequence(request, self.num_arrived, self._block_size, deliver)
        self.num_arrived += 1
        if request.sampling.max_new_tokens == 0:
            deliver(sequence.completion(Ending.LENGTH))
            return
        self._live[request.id] = sequence
        self.scheduler.add(sequence)

    def step(self) -> None:
        """Launches one step of all that is live, and takes the tokens that are due."""
        if self.scheduler.num_blocks_wanted() > self.pool.num_available:
            # what has ended gives its blocks back: then perhaps nobody must be preempted
            self.drain()
            if not self._live:
                return
        plan = self.scheduler.plan()
        assert self._launched or not plan.is_empty, "requests are live, yet none can go on"
        earlier, self._launched = self._launched, self._launch(plan)
        for launched in earlier:
            self._take(launched)
        if not self._is_late:
            self.drain()

    def drain(self) -> None:
        """Takes every token that was launched."""
        earlier, self._launched = self._launched, []
        for launched in earlier:
            self._take(launched)

    def abort(self, ids: set[str] | None) -> None:
        """Ends the named requests, or all, with what they have written."""
        self.drain()
        for sequence in list(self._live.values()):
            if ids is None or sequence.request.id in ids:
                self._finish(sequence, Ending.ABORT)

    def fail(self, why: str, cause: Exception | None = None) -> None:
        """Ends all requests with an EngineError that says `why`; nothing is live after."""
        live, self._live, self._launched = list(self._live.values()), {}, []
        for sequence in live:
            self.scheduler.end(sequence)
        self.scheduler.forget()
        for sequence in live:
            failure = EngineError(f"request {sequence.request.id} was dropped: {why}")
            failure.__cause__ = cause
            sequence.deliver(failure)

    def forget(self) -> None:
        """Drops all cached prefixes; running sequences keep the keys and values they have."""
        self.scheduler.forget()

    def _launch(self, plan: Plan) -> list[_Launched]:
        rows, stops, size = self._rows, self._stops, self._block_size
        launched = []
        if plan.chunks:
            chunks = prefill_batch(plan, rows, stops, size)
            self.num_prefilled += len(chunks.tokens_T)
            launched.append((drawing_slots(plan.chunks), self._runner.prefill(chunks)))
        if plan.decode_R.size:
            batch = decode_batch(plan, rows, stops, size)
            launched.append((plan.decode_R, self._runner.decode(batch)))
        return [
            _Launched(slots_R, rows.epoch_S[slots_R], self.version, drawn)
            for slots_R, drawn in launched
        ]

    def _take(self, launched: _Launched) -> None:
        """Records tokens, and ends the sequences that they end."""
        rows = self._rows
        tokens_R, logprobs_R = launched.drawn.read()
        # a sequence may have ended, and its slot may have another owner, since
        is_live_R = rows.epoch_S[launched.slots_R] == launched.epoch_R
        slots_R, tokens_R = launched.slots_R[is_live_R], tokens_R[is_live_R]
        rows.record(slots_R, tokens_R, logprobs_R[is_live_R], launched.version)
        self.num_generated += len(slots_R)
        # the newest token has no keys and values yet
        cached_R = rows.entry_S[slots_R] + rows.count_S[slots_R] - 1
        self.scheduler.name_written(slots_R[cached_R % self._block_size == 0])
        is_eos_R = self._stops.is_eos(tokens_R) & rows.obeys_eos_S[slots_R]
        is_full_R = rows.count_S[slots_R] >= rows.limit_S[slots_R]
        for row in np.flatnonzero(is_eos_R | is_full_R | rows.has_own_stops_S[slots_R]).tolist():
            sequence = rows.owner[slots_R[row]]
            assert sequence is not None, f"slot {slots_R[row]} is vacant"
            self._end_if_done(sequence, bool(is_eos_R[row]), bool(is_full_R[row]))

    def _end_if_done(self, sequence: Sequence, is_eos: bool, is_full: bool) -> None:
        slot, sampling = sequence.slot, sequence.request.sampling
        written_C = self._rows.written(slot)
        matched: str | int | None = int(written_C[-1]) if is_eos else None
        if matched is None and self._rows.has_own_stops_S[slot]:
            written_C = np.concatenate([sequence.brought_C, written_C])
            if len(written_C) >= sampling.min_new_tokens:
                written_C = np.concatenate([sequence.written_before_C, written_C])
                matched = self._stops.matched(sampling, written_C)
        if matched is not None:
            self._finish(sequence, Ending.STOP, matched)
        elif is_full:
            self._finish(sequence, Ending.LENGTH)

    def _finish(self, sequence: Sequence, ending: Ending, matched: str | int | None = None) -> None:
        del self._live[sequence.request.id]
        if self._runner.records_experts:
            sequence.experts_TLk = self._experts(sequence)
        self.scheduler.end(sequence)
        self.num_cached += sequence.num_cached
        sequence.deliver(sequence.completion(ending, matched))

    def _experts(self, sequence: Sequence) -> np.ndarray:
        """What its tokens passed through; of a sequence that waits nothing is known any more."""
        num_tokens, num_known, slot = sequence.num_tokens, 0, sequence.slot
        if slot >= 0:
            num_tokens += int(self._rows.count_S[slot])
            num_computed = max(sequence.num_planned, int(self._rows.length_S[slot]))
            num_known = min(num_computed, num_tokens - 1)  # the newest went through nothing yet
        return self._runner.experts(sequence.blocks, num_known, num_tokens)

    def _check(self, request: Request) -> None:
        tokens_T, sampling, name = request.tokens_T, request.sampling, f"request {request.id}"
        if request.id in self._live:
            raise EngineError(f"{name} is running already; give every live request its own id")
        if len(tokens_T) == 0:
            raise EngineError(f"{name} has no tokens; there must be one to continue from")
        if tokens_T.min() < 0 or tokens_T.max() >= self._vocab:
            raise EngineError(
                f"{name} has token ids from {tokens_T.min()} to {tokens_T.max()}, the model knows "
                f"0 to {self._vocab - 1}; is the tokenizer another model's?"
            )
        if sampling.max_new_tokens < 0 or sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
            raise EngineError(
                f"{name} asks for max_new_tokens {sampling.max_new_tokens}, temperature "
                f"{sampling.temperature}, top_p {sampling.top_p}; wanted are at least 0, at least "
                "0, and above 0 up to 1"
            )
        self._stops.check(sampling)
        total = len(tokens_T) + sampling.max_new_tokens
        if total > self._max_positions:
            raise EngineError(
                f"{name} has {len(tokens_T)} tokens and wants {sampling.max_new_tokens} more, the "
                f"model has {self._max_positions} positions; ask for at most "
                f"{max(0, self._max_positions - len(tokens_T))}"
            )
        room = self.pool.num_blocks * self._block_size
        # the last token's keys and values are never needed
        if total - 1 > room:
            raise EngineError(
                f"{name} has {len(tokens_T)} tokens and wants {sampling.max_new_tokens} more, the "
                f"whole cache holds {room}; raise --engine-cache-tokens (or the memory share), or "
                "lower the response limit"
            )
