"""A scheduler's plan as the arrays that the runner takes."""

import numpy as np

from tandem.engine.torch.rows import Rows
from tandem.engine.torch.runner import Decode, Draws, Prefill
from tandem.engine.torch.scheduler import Chunk, Plan
from tandem.engine.torch.stops import Stops


def drawing_slots(chunks: list[Chunk]) -> np.ndarray:
    """The slots that draw a token after these chunks, in order."""
    slots = [drawer.slot for chunk in chunks for drawer in chunk.drawers]
    return np.array(slots, dtype=np.int64)


def prefill_batch(plan: Plan, rows: Rows, stops: Stops, block_size: int) -> Prefill:
    """The chunks of a plan, packed one after the other."""
    chunks = plan.chunks
    sizes_S = np.array([chunk.stop - chunk.start for chunk in chunks])
    bounds_S = np.concatenate([[0], np.cumsum(sizes_S)])
    lengths_S = np.array([chunk.stop for chunk in chunks], dtype=np.int32)
    slots_S = np.array([chunk.sequence.slot for chunk in chunks])
    table_SB = rows.table_SB[slots_S, : -(-int(lengths_S.max()) // block_size)]
    positions_T = np.concatenate([np.arange(chunk.start, chunk.stop) for chunk in chunks])
    of_T = np.repeat(np.arange(len(chunks)), sizes_S)
    counts = [len(chunk.drawers) for chunk in chunks]
    return Prefill(
        tokens_T=np.concatenate(
            [chunk.sequence.tokens_T[chunk.start : chunk.stop] for chunk in chunks]
        ).astype(np.int64),
        positions_T=positions_T,
        places_T=_places(table_SB[of_T, positions_T // block_size], positions_T, block_size),
        bounds_S=bounds_S.astype(np.int32),
        lengths_S=lengths_S,
        table_SB=table_SB,
        last_R=np.repeat(bounds_S[1:] - 1, counts),
        draws=draws_of(drawing_slots(chunks), rows, stops),
        copies=plan.copies,
    )


def decode_batch(plan: Plan, rows: Rows, stops: Stops, block_size: int) -> Decode:
    """The rows of a plan that decode; `length_S` counts their newest token already."""
    slots_R = plan.decode_R
    lengths_R = rows.length_S[slots_R]
    table_RB = rows.table_SB[slots_R, : -(-int(lengths_R.max()) // block_size)]
    positions_R = (lengths_R - 1).astype(np.int64)
    of_R = np.arange(len(slots_R))
    return Decode(
        positions_R=positions_R,
        places_R=_places(table_RB[of_R, positions_R // block_size], positions_R, block_size),
        lengths_R=lengths_R,
        table_RB=table_RB,
        rank_R=rows.rank_S[slots_R],
        draws=draws_of(slots_R, rows, stops),
    )


def draws_of(slots_R: np.ndarray, rows: Rows, stops: Stops) -> Draws:
    """How these slots choose; `drawn_S` counts the token that is chosen now."""
    integers_R6 = np.empty((len(slots_R), 6), dtype=np.int64)
    integers_R6[:, 0] = slots_R
    integers_R6[:, 1] = rows.top_k_S[slots_R]
    integers_R6[:, 2:5] = rows.key_S3[slots_R]
    integers_R6[:, 5] = rows.length_S[slots_R]
    return Draws(
        integers_R6=integers_R6,
        temperature_R=rows.temperature_S[slots_R],
        top_p_R=rows.top_p_S[slots_R],
        forbidden=_forbidden(slots_R, rows, stops),
    )


def _places(block_T: np.ndarray, positions_T: np.ndarray, block_size: int) -> np.ndarray:
    return block_T.astype(np.int64) * block_size + positions_T % block_size


def _forbidden(
    slots_R: np.ndarray, rows: Rows, stops: Stops
) -> tuple[np.ndarray, np.ndarray] | None:
    """(row, token id) of every token that a row may not choose yet: it would end too early."""
    pairs = []
    for row in np.flatnonzero(rows.drawn_S[slots_R] <= rows.least_S[slots_R]).tolist():
        sequence = rows.owner[slots_R[row]]
        assert sequence is not None, f"slot {slots_R[row]} is vacant"
        pairs += [(row, token) for token in stops.forbidden(sequence.request.sampling)]
    if not pairs:
        return None
    row_M, token_M = np.array(pairs, dtype=np.int64).T
    return row_M, token_M
