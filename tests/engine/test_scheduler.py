"""Whatever comes in whatever order, everything ends, and every block is free afterwards."""

from types import SimpleNamespace

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tandem.engine.torch.core import Core
from tandem.engine.torch.stops import Stops
from tandem.types import Ending, Request, SampleKey, Sampling

VOCAB = 50


class FakeRunner:
    """Draws tokens that depend on the sequence alone, and keeps a cache that only tells the truth
    when every token's keys and values were computed at the right place."""

    records_experts = False

    def __init__(self, num_blocks, block_size, num_slots):
        self.decoder = SimpleNamespace(shape=SimpleNamespace(max_positions=4096, vocab=VOCAB))
        self.num_blocks, self.block_size = num_blocks, block_size
        self.cache = np.full(num_blocks * block_size, -1)
        self.newest_S = np.full(num_slots, -1)

    def prefill(self, batch):
        self.cache[batch.places_T] = batch.tokens_T
        of_T = np.repeat(np.arange(len(batch.lengths_S)), np.diff(batch.bounds_S))
        rows_R = of_T[batch.last_R]
        for row, length in enumerate(batch.lengths_S):
            assert (self._read(batch.table_SB[row], length) >= 0).all()
        drawn = self._draw(batch.table_SB[rows_R], batch.lengths_S[rows_R], batch.draws)
        for source, target in batch.copies:
            size = self.block_size
            self.cache[target * size :][:size] = self.cache[source * size :][:size]
        return drawn

    def decode(self, batch):
        slots_R = batch.draws.integers_R6[:, 0]
        assert len(set(batch.places_R.tolist())) == len(slots_R)
        self.cache[batch.places_R] = self.newest_S[slots_R]
        return self._draw(batch.table_RB, batch.lengths_R, batch.draws)

    def _read(self, table_B, length):
        places_T = np.arange(length)
        blocks_T = table_B[places_T // self.block_size]
        return self.cache[blocks_T * self.block_size + places_T % self.block_size]

    def _draw(self, table_RB, lengths_R, draws):
        slots_R, sample_R = draws.integers_R6[:, 0], draws.integers_R6[:, 4]
        assert (draws.integers_R6[:, 5] == lengths_R).all()
        tokens_R = np.array(
            [
                next_token(self._read(table_RB[row], length), sample_R[row])
                for row, length in enumerate(lengths_R)
            ],
            dtype=np.int64,
        )
        self.newest_S[slots_R] = tokens_R
        logprobs_R = -tokens_R.astype(np.float32)
        return SimpleNamespace(read=lambda: (tokens_R, logprobs_R))


def next_token(tokens_T, sample):
    """A token that depends on every one before it and on the sample."""
    powers_T = np.arange(1, len(tokens_T) + 1) ** 2
    return int((tokens_T * powers_T).sum() * 7 + 3 * sample + len(tokens_T)) % VOCAB


def expected_tokens(request, eos):
    tokens = request.tokens_T.tolist()
    while len(tokens) - len(request.tokens_T) < request.sampling.max_new_tokens:
        tokens.append(next_token(np.array(tokens), request.key.sample))
        if tokens[-1] == eos:
            break
    return tokens[len(request.tokens_T) :]


@st.composite
def loads(draw):
    """Requests of a few groups, when they come, and sizes of an engine that can hold each."""
    block_size = draw(st.sampled_from([1, 2, 3, 8]))
    num_groups = draw(st.integers(1, 4))
    requests = []
    for group in range(num_groups):
        prompt_T = np.array(draw(st.lists(st.integers(0, 3), min_size=1, max_size=12)))
        for sample in range(draw(st.integers(1, 4))):
            requests.append(
                Request(
                    id=f"{group}-{sample}",
                    tokens_T=prompt_T.astype(np.int32),
                    sampling=Sampling(max_new_tokens=draw(st.integers(1, 14))),
                    key=SampleKey(seed=0, prompt=group, sample=sample),
                    group=draw(st.sampled_from([f"{group}", None])),
                )
            )
    longest = max(len(r.tokens_T) + r.sampling.max_new_tokens for r in requests)
    num_blocks = -(-longest // block_size) + draw(st.integers(0, 6))
    return SimpleNamespace(
        requests=draw(st.permutations(requests)),
        arrivals=[draw(st.integers(0, 8)) for _ in requests],
        num_blocks=num_blocks,
        block_size=block_size,
        num_slots=draw(st.integers(1, 8)),
        prefill_tokens=draw(st.integers(1, 16)),
        is_late=draw(st.booleans()),
        aborted=draw(st.sampled_from([None, *(request.id for request in requests)])),
        abort_step=draw(st.integers(0, 12)),
        update_step=draw(st.integers(0, 12)),
    )


def all_end_for_want_of_a_block():
    """Two sequences hold every block when their last tokens, not taken yet, have ended both."""
    prompts = {"first": [0], "second": [2, 2, 0, 1]}
    requests = [
        Request(
            id=name,
            tokens_T=np.array(prompt, dtype=np.int32),
            sampling=Sampling(max_new_tokens=11 if name == "second" else 10),
            key=SampleKey(seed=0, prompt=0, sample=int(name == "second")),
            group=None,
        )
        for name, prompt in prompts.items()
    ]
    return SimpleNamespace(
        requests=requests,
        arrivals=[0, 2],
        num_blocks=21,
        block_size=1,
        num_slots=2,
        prefill_tokens=4,
        is_late=True,
        aborted=None,
        abort_step=0,
        update_step=0,
    )


@settings(max_examples=400, deadline=None)
@example(all_end_for_want_of_a_block())
@given(loads())
def test_everything_ends_with_its_own_tokens_and_all_blocks_come_back(load):
    core = Core(
        FakeRunner(load.num_blocks, load.block_size, load.num_slots),
        Stops(None, (11,)),
        num_slots=load.num_slots,
        prefill_tokens=load.prefill_tokens,
        version=0,
        is_late=load.is_late,
    )
    given: dict[str, object] = {}
    for step in range(4000):
        for request, arrival in zip(load.requests, load.arrivals, strict=True):
            if arrival == step:
                core.queue(request, lambda done, id=request.id: given.__setitem__(id, done))
        if step == load.abort_step and load.aborted is not None:
            core.abort({load.aborted})
        if step == load.update_step:
            core.drain()
            core.version = 1
            core.forget()
        if core.has_work:
            core.step()
        elif step > 12:
            break
    assert set(given) == {request.id for request in load.requests}
    for request in load.requests:
        done, expected = given[request.id], expected_tokens(request, eos=11)
        tokens = done.tokens_C.tolist()
        assert done.logprobs_C.tolist() == [-token for token in tokens]
        assert sorted(done.version_C.tolist()) == done.version_C.tolist()
        if done.ending is Ending.ABORT:
            assert request.id == load.aborted
            assert tokens == expected[: len(tokens)]
        else:
            assert tokens == expected
            assert done.ending is (Ending.STOP if tokens[-1] == 11 else Ending.LENGTH)
    assert core.pool.num_held == 0
    assert core.scheduler.num_running == 0
    assert not core.scheduler.waiting


def test_sequences_that_wait_for_slots_start_together():
    core = Core(
        FakeRunner(1024, 8, 64), Stops(None, ()), num_slots=64, prefill_tokens=4096, version=0,
        is_late=False,
    )  # fmt: skip
    given, started = [], []
    for number in range(100):
        request = Request(
            id=str(number),
            tokens_T=np.array([number % VOCAB, number // VOCAB], dtype=np.int32),
            sampling=Sampling(max_new_tokens=2 + number, ignore_eos=True),  # they end one by one
            key=SampleKey(seed=0, prompt=number, sample=0),
            group=None,
        )
        core.queue(request, given.append)
    while core.has_work:
        num_waiting = len(core.scheduler.waiting)
        core.step()
        started.append(num_waiting - len(core.scheduler.waiting))
    assert len(given) == 100
    assert started[0] == 64
    later = [count for count in started[1:] if count]
    assert min(later) >= 2  # a vacated slot waits for a second one
