"""The host's arrays about running sequences, one slot each, so that a step costs no Python a row.

Letters here: S slots, R slots of one call in its order, B blocks of a sequence, C new tokens.
"""

import numpy as np

from tandem.engine.torch.sequence import Sequence

FIRST_ROOM = 64
"""New tokens a slot has room for at first; doubled when one needs more."""


class Rows:
    """Everything about running sequences that a step reads or writes, by slot."""

    def __init__(self, num_slots: int, num_row_blocks: int) -> None:
        self.owner: list[Sequence | None] = [None] * num_slots
        self._vacant = list(range(num_slots - 1, -1, -1))
        self.epoch_S = np.zeros(num_slots, dtype=np.int64)  # counts the owners of a slot
        self.table_SB = np.zeros((num_slots, num_row_blocks), dtype=np.int32)
        # tokens with keys and values in the cache, those of launched work included
        self.length_S = np.zeros(num_slots, dtype=np.int32)
        self.entry_S = np.zeros(num_slots, dtype=np.int32)  # tokens known when the slot was taken
        self.is_decoding_S = np.zeros(num_slots, dtype=bool)
        self.rank_S = np.zeros(num_slots, dtype=np.int64)  # orders groups
        self.arrival_S = np.zeros(num_slots, dtype=np.int64)
        self.drawn_S = np.zeros(num_slots, dtype=np.int32)  # new tokens, launched ones included
        self.count_S = np.zeros(num_slots, dtype=np.int32)  # new tokens that the host has seen
        self.limit_S = np.zeros(num_slots, dtype=np.int32)  # new tokens wanted at most
        self.least_S = np.zeros(num_slots, dtype=np.int32)  # and at least
        self.obeys_eos_S = np.zeros(num_slots, dtype=bool)
        self.has_own_stops_S = np.zeros(num_slots, dtype=bool)  # own stop ids or strings
        self.temperature_S = np.zeros(num_slots, dtype=np.float32)
        self.top_p_S = np.ones(num_slots, dtype=np.float32)
        self.top_k_S = np.full(num_slots, -1, dtype=np.int64)
        self.key_S3 = np.zeros((num_slots, 3), dtype=np.int64)  # seed, prompt, sample
        self.tokens_SC = np.zeros((num_slots, FIRST_ROOM), dtype=np.int32)
        self.logprobs_SC = np.zeros((num_slots, FIRST_ROOM), dtype=np.float32)
        self.version_SC = np.zeros((num_slots, FIRST_ROOM), dtype=np.int32)

    @property
    def num_slots(self) -> int:
        return len(self.owner)

    @property
    def num_vacant(self) -> int:
        return len(self._vacant)

    def enter(self, sequence: Sequence, rank: int) -> None:
        """Gives the sequence a slot; its blocks must be set."""
        slot = self._vacant.pop()
        sampling, key = sequence.request.sampling, sequence.request.key
        sequence.slot = slot
        self.owner[slot] = sequence
        self.epoch_S[slot] += 1
        self.table_SB[slot, : len(sequence.blocks)] = sequence.blocks
        self.length_S[slot] = sequence.num_planned
        self.entry_S[slot] = sequence.num_tokens
        self.is_decoding_S[slot] = False
        self.rank_S[slot] = rank
        self.arrival_S[slot] = sequence.arrival
        self.drawn_S[slot] = self.count_S[slot] = 0
        self.limit_S[slot] = sampling.max_new_tokens - sequence.num_written
        self.least_S[slot] = sampling.min_new_tokens - sequence.num_written
        self.obeys_eos_S[slot] = not sampling.ignore_eos
        self.has_own_stops_S[slot] = bool(sampling.stop or sampling.stop_token_ids)
        self.temperature_S[slot] = sampling.temperature
        self.top_p_S[slot] = sampling.top_p
        self.top_k_S[slot] = sampling.top_k
        self.key_S3[slot] = (key.seed, key.prompt, key.sample)

    def leave(self, sequence: Sequence) -> None:
        """Takes the slot away; the sequence keeps what it wrote there."""
        slot = sequence.slot
        sequence.keep(*(array[slot, : self.count_S[slot]].copy() for array in self._outputs()))
        sequence.slot = -1
        self.owner[slot] = None
        self.epoch_S[slot] += 1
        self.is_decoding_S[slot] = False
        self._vacant.append(slot)

    def add_block(self, slot: int, block: int) -> None:
        """Appends a block to the owner's and to the table."""
        sequence = self.owner[slot]
        assert sequence is not None, f"slot {slot} is vacant"
        self.table_SB[slot, len(sequence.blocks)] = block
        sequence.blocks.append(block)

    def decodable(self) -> np.ndarray:
        """The slots that can draw another token, those of one group side by side."""
        slots_R = np.flatnonzero(self.is_decoding_S & (self.drawn_S < self.limit_S))
        return slots_R[np.lexsort((self.arrival_S[slots_R], self.rank_S[slots_R]))]

    def record(
        self, slots_R: np.ndarray, tokens_R: np.ndarray, logprobs_R: np.ndarray, version: int
    ) -> None:
        """Writes one new token for each slot."""
        at_R = self.count_S[slots_R]
        if at_R.size and at_R.max() >= self.tokens_SC.shape[1]:
            self._grow()
        self.tokens_SC[slots_R, at_R] = tokens_R
        self.logprobs_SC[slots_R, at_R] = logprobs_R
        self.version_SC[slots_R, at_R] = version
        self.count_S[slots_R] += 1

    def written(self, slot: int) -> np.ndarray:
        """The new tokens of a slot."""
        return self.tokens_SC[slot, : self.count_S[slot]]

    def _outputs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.tokens_SC, self.logprobs_SC, self.version_SC

    def _grow(self) -> None:
        self.tokens_SC, self.logprobs_SC, self.version_SC = (
            np.concatenate([array, np.zeros_like(array)], axis=1) for array in self._outputs()
        )
