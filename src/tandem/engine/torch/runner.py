"""Runs the decoder over the paged cache and draws tokens: everything of a step on the device.

The host hands in numpy arrays about a few rows and gets tokens and log-probs `Later`. The
newest token of every slot stays on the device, so a decode step needs nothing of the one before it
from the host.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tandem.contracts import Attend
from tandem.engine.torch.attend import (
    DecodeAttend,
    GroupedDecodeAttend,
    PaddedAttend,
    PrefillAttend,
)
from tandem.engine.torch.chosen import ChosenExperts
from tandem.engine.torch.graphs import DecodeGraphs
from tandem.engine.torch.grouping import find_groups, suffixes
from tandem.engine.torch.virtual import VirtualMemory
from tandem.kernels.head import token_logprobs
from tandem.kernels.later import Later
from tandem.kernels.replay import Replayed, Run, places_of
from tandem.kernels.sample import choose_tokens, uniform
from tandem.models.decoder import Decoder
from tandem.models.experts import Routing

LEAST_ROWS = 16
"""Rows of a matrix product on the CPU from which on its bits do not depend on their number; see
`kernels.linear`. The deterministic mode computes no fewer."""


@dataclass(frozen=True, slots=True)
class Draws:
    """How R rows choose their next token.

    `integers_R6` holds a column each for slot, top-k, seed, prompt, sample and place (the index in
    its sequence of the token that is drawn). `forbidden` lists (row, token id) pairs.
    """

    integers_R6: np.ndarray  # int64
    temperature_R: np.ndarray  # float32
    top_p_R: np.ndarray  # float32
    forbidden: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True, slots=True)
class Prefill:
    """Chunks of S sequences, packed; a token is drawn after each of the positions `last_R`."""

    tokens_T: np.ndarray  # int64
    positions_T: np.ndarray  # int64
    places_T: np.ndarray  # int64: block id * block size + offset of each token
    bounds_S: np.ndarray  # int32, S + 1
    lengths_S: np.ndarray  # int32, the cached tokens before a chunk and its own
    table_SB: np.ndarray  # int32
    last_R: np.ndarray  # int64, in T
    draws: Draws
    copies: list[tuple[int, int]]  # blocks, from and to, once the chunks are computed


@dataclass(frozen=True, slots=True)
class Decode:
    """The newest token of each of R slots, which draw another."""

    positions_R: np.ndarray  # int64
    places_R: np.ndarray  # int64
    lengths_R: np.ndarray  # int32, the newest token included
    table_RB: np.ndarray  # int32
    rank_R: np.ndarray  # rows of one group are neighbours and have one rank
    draws: Draws


class Runner:
    """Owns the cache and the newest token of each slot; reads the decoder's parameters."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_blocks: int,
        block_size: int,
        num_slots: int,
        device: torch.device,
        is_deterministic: bool,
        records_experts: bool = False,
    ) -> None:
        self.records_experts = records_experts
        self._experts: ChosenExperts | None = None
        self.decoder, self.device = decoder, device
        self.num_blocks, self.block_size = num_blocks, block_size
        # CUDA's kernels give a token the same bits always; those of the CPU only if attention sees
        # it alone and products are never of few rows
        self._goes_by_row = is_deterministic and device.type == "cpu"
        self._newest_S = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._cache: Tensor | None = None
        self._canary = Replayed()
        self._memory: VirtualMemory | None = None
        self._graphs: DecodeGraphs | None = None
        self.allocate()

    @property
    def is_allocated(self) -> bool:
        return self._cache is not None

    def allocate(self) -> None:
        """Makes the cache, `[L, 2, B, block, K, H]`: keys and values of every layer."""
        if self._cache is not None:
            return
        if self.records_experts:
            self._experts = ChosenExperts(
                self.decoder.shape, self.num_blocks, self.block_size, self.device
            )
        if self.device.type == "cpu":
            self._cache = self._new_cache(self.num_blocks)
            return
        sizes, dtype = self._cache_sizes(self.num_blocks), self.decoder.dtype
        if self._memory is None:
            self._memory = VirtualMemory(math.prod(sizes) * dtype.itemsize, self.device)
        self._memory.take()
        self._cache = self._memory.tensor(dtype, sizes)
        if self._graphs is None:
            self._graphs = DecodeGraphs(
                self.decoder,
                self._cache,
                block_size=self.block_size,
                records_experts=self.records_experts,
            )

    def release(self) -> None:
        """Gives the cache's memory back; graphs stay, it will come back at the same address."""
        self._cache = self._experts = None
        if self._memory is not None:
            self._memory.give_back()

    def close(self) -> None:
        """Gives back everything; nothing can be computed after."""
        self._cache = self._experts = self._graphs = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    @torch.no_grad()
    def prefill(self, batch: Prefill) -> Later:
        """Tokens and log-probs of every row of `batch.draws`; computes chunks, copies blocks."""
        assert self._cache is not None, "the cache is released"
        hidden_TD = self._prefill(self._cache, batch, self._experts)
        if batch.copies:
            source, target = (
                self._tensor(np.array(ids)) for ids in zip(*batch.copies, strict=True)
            )
            for layer in self._cache:  # one at a time, to bound the copy between
                layer.index_copy_(1, target, layer.index_select(1, source))
            if self._experts is not None:
                self._experts.copy(source, target)
        return self._draw(hidden_TD.index_select(0, self._tensor(batch.last_R)), batch.draws)

    @torch.no_grad()
    def decode(self, batch: Decode) -> Later:
        """Computes the newest token of each row's slot and draws the next."""
        assert self._cache is not None, "the cache is released"
        tokens_R = self._newest_S.index_select(0, self._tensor(batch.draws.integers_R6[:, 0]))
        if self._graphs is not None:
            arrays = (batch.positions_R, batch.places_R, batch.lengths_R)
            hidden_RD, experts_RLk = self._graphs.hidden(
                tokens_R, *arrays, batch.table_RB, batch.rank_R
            )
            if self._experts is not None and experts_RLk is not None:
                self._experts.write(self._tensor(batch.places_R), experts_RLk)
            return self._draw(hidden_RD, batch.draws)
        attend = self._decode_attend(self._cache, batch)
        places_R, positions_R = (self._tensor(a) for a in (batch.places_R, batch.positions_R))
        hidden_RD = self._hidden(tokens_R, positions_R, attend, places_R, self._experts)
        return self._draw(hidden_RD, batch.draws)

    def experts(self, blocks: list[int], num_known: int, num_tokens: int) -> np.ndarray:
        """The experts of a sequence, as `ChosenExperts.read` gives them."""
        assert self._experts is not None, "experts were not recorded"
        return self._experts.read(blocks, num_known, num_tokens)

    @torch.no_grad()
    def logprobs(self, tokens_T: np.ndarray) -> np.ndarray:
        """The log-prob of each token given those before it, `[T]`, 0 at the first.

        By the path that samples, in a small cache of its own: what runs is not disturbed.
        """
        length = len(tokens_T)
        num_blocks = -(-length // self.block_size)
        tokens_T = np.ascontiguousarray(tokens_T, dtype=np.int64)
        batch = Prefill(
            tokens_T=tokens_T,
            positions_T=np.arange(length),
            places_T=np.arange(length),
            bounds_S=np.array([0, length], dtype=np.int32),
            lengths_S=np.array([length], dtype=np.int32),
            table_SB=np.arange(num_blocks, dtype=np.int32)[None],
            last_R=np.zeros(0, dtype=np.int64),
            draws=_NO_DRAWS,
            copies=[],
        )
        logprobs_T = np.zeros(length, dtype=np.float32)
        if length == 1:
            return logprobs_T
        prepare = partial(self._logprobs, batch, tokens_T[1:])
        is_alone = self.decoder.part.mesh.tensor.size == 1
        if self._graphs is not None and is_alone and self.decoder.shape.mixture is None:
            key = (tokens_T.tobytes(), *places_of(self.decoder))
            found = self._canary(key, prepare)
        else:
            found = Later(prepare()())
        (logprobs_T[1:],) = found.read()
        return logprobs_T

    def _logprobs(self, batch: Prefill, following_T: np.ndarray) -> Run:
        """What computes the log-probs of all tokens of a prefill but the first."""
        tokens_T, positions_T = self._tensor(batch.tokens_T), self._tensor(batch.positions_T)
        places_T, targets_T = self._tensor(batch.places_T), self._tensor(following_T)
        attend = self._prefill_attend(self._new_cache(len(batch.table_SB[0])), batch)

        def run() -> Tensor:
            hidden_TD = self._hidden(tokens_T, positions_T, attend, places_T, None)
            values_T, _ = token_logprobs(
                hidden_TD[:-1],
                self.decoder.head_weight,
                targets_T,
                axis=self.decoder.part.mesh.tensor,
                vocab_start=self.decoder.vocab_start,
            )
            return values_T

        return run

    def _prefill(
        self, cache: Tensor, batch: Prefill, experts: ChosenExperts | None = None
    ) -> Tensor:
        places_T, positions_T = self._tensor(batch.places_T), self._tensor(batch.positions_T)
        attend, tokens_T = self._prefill_attend(cache, batch), self._tensor(batch.tokens_T)
        return self._hidden(tokens_T, positions_T, attend, places_T, experts)

    def _prefill_attend(self, cache: Tensor, batch: Prefill) -> Attend:
        places_T = self._tensor(batch.places_T)
        if self._goes_by_row:
            return DecodeAttend(
                cache,
                places_R=places_T,
                table_RB=self._tensor(np.repeat(batch.table_SB, np.diff(batch.bounds_S), axis=0)),
                lengths_R=self._tensor(batch.positions_T) + 1,
            )
        return PrefillAttend(
            cache,
            places_T=places_T,
            bounds_S=self._tensor(batch.bounds_S),
            table_SB=self._tensor(batch.table_SB),
            lengths_S=self._tensor(batch.lengths_S),
            longest=int(np.diff(batch.bounds_S).max()),
        )

    def _hidden(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        attend: Attend,
        places_T: Tensor,
        experts: ChosenExperts | None,
    ) -> Tensor:
        """The hidden states; the experts that were taken go to `experts`, if it is there."""
        num_real = len(tokens_T)
        missing = LEAST_ROWS - num_real if self._goes_by_row else 0
        if missing > 0:
            fill = tokens_T.new_zeros(missing)
            tokens_T, positions_T = torch.cat([tokens_T, fill]), torch.cat([positions_T, fill])
            attend = PaddedAttend(attend, num_real)
        taken_TLk = None if experts is None else experts.room(len(tokens_T))
        routing = Routing(recorded_TLk=taken_TLk)
        hidden_TD = self.decoder(tokens_T, positions_T, attend, routing=routing)[:num_real]
        if experts is not None and taken_TLk is not None:
            experts.write(places_T, taken_TLk[:num_real])
        return hidden_TD

    def _decode_attend(self, cache: Tensor, batch: Decode) -> Attend:
        places_R = self._tensor(batch.places_R)
        if not self._goes_by_row:  # the CPU's bits of shared prefixes depend on who shares them
            full_R = (batch.lengths_R - 1) // self.block_size
            groups = find_groups(batch.table_RB, full_R, batch.rank_R)
            if groups.is_shared:
                shared_R, shared_G = groups.shared_R, groups.shared_G
                first_G = groups.bounds_G[:-1]
                return GroupedDecodeAttend(
                    cache,
                    places_R=places_R,
                    prefix_table_GB=self._tensor(batch.table_RB[first_G, : shared_G.max()]),
                    prefix_lengths_G=self._tensor(shared_G * np.int32(self.block_size)),
                    bounds_G=self._tensor(groups.bounds_G),
                    suffix_table_RB=self._tensor(suffixes(batch.table_RB, shared_R)),
                    suffix_lengths_R=self._tensor(
                        batch.lengths_R - shared_R * np.int32(self.block_size)
                    ),
                )
        return DecodeAttend(
            cache,
            places_R=places_R,
            table_RB=self._tensor(batch.table_RB),
            lengths_R=self._tensor(batch.lengths_R),
        )

    def _draw(self, hidden_RD: Tensor, draws: Draws) -> Later:
        integers_R6 = self._tensor(draws.integers_R6)
        slot_R, top_k_R, seed_R, prompt_R, sample_R, place_R = integers_R6.unbind(1)
        temperature_R = self._tensor(draws.temperature_R)
        # what no row asks for is not looked at: a restriction costs milliseconds at 150k tokens
        top_p_R = self._tensor(draws.top_p_R) if (draws.top_p_R < 1).any() else None
        cut_R = top_k_R if (draws.integers_R6[:, 1] > 0).any() else None
        logits_RV = self.decoder.head_logits(hidden_RD, self._goes_by_row)
        u_R = uniform(seed_R, prompt_R, sample_R, place_R)
        how = (u_R, temperature_R, top_p_R, cut_R)
        if draws.forbidden is None:
            tokens_R, logprobs_R = choose_tokens(logits_RV, *how)
        else:
            rows, ids = (self._tensor(array) for array in draws.forbidden)
            allowed_RV = logits_RV.index_put((rows, ids), logits_RV.new_tensor(float("-inf")))
            tokens_R, logprobs_R = choose_tokens(allowed_RV, *how)
            # what is trained is the distribution that forbids nothing
            rows = self._tensor(np.unique(draws.forbidden[0]))
            logprobs_R[rows] = _logprobs_of(tokens_R[rows], logits_RV[rows], temperature_R[rows])
        self._newest_S.index_copy_(0, slot_R, tokens_R)
        return Later(tokens_R, logprobs_R)

    def _cache_sizes(self, num_blocks: int) -> tuple[int, ...]:
        shape = self.decoder.shape
        heads = (self.decoder.num_key_heads, shape.head_size)
        return (shape.num_layers, 2, num_blocks, self.block_size, *heads)

    def _new_cache(self, num_blocks: int) -> Tensor:
        sizes, dtype = self._cache_sizes(num_blocks), self.decoder.dtype
        # zeros: a kernel may read past a row's end and mask what it read, which NaN would survive
        if self.device.type == "cpu":
            # numpy's zeros take memory where they are written, torch's at once
            raw = torch.from_numpy(np.zeros((*sizes, dtype.itemsize), np.uint8))
            return raw.view(dtype)[..., 0]
        return torch.zeros(sizes, dtype=dtype, device=self.device)

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


_NO_DRAWS = Draws(
    np.zeros((0, 6), dtype=np.int64), np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.float32)
)


def _logprobs_of(tokens_R: Tensor, logits_RV: Tensor, temperature_R: Tensor) -> Tensor:
    """As `choose_tokens` gives them."""
    inverse_R = 1 / torch.where(temperature_R > 0, temperature_R, 1.0)
    logprobs_RV = torch.log_softmax(logits_RV.float() * inverse_R[:, None], dim=-1)
    return logprobs_RV.gather(1, tokens_R[:, None])[:, 0]
