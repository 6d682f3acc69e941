"""A short sequence that no data set knows, and what a model says of it."""

from functools import partial

import numpy as np

from tandem.kernels.replay import Replayed, Run, places_of
from tandem.packing.row import Item, build_row
from tandem.parallel import row_multiple
from tandem.train.forward import Scoring, hidden_of, row_for, scores_of
from tandem.train.model import Model
from tandem.types import Batch, Canary, Ending, Sample

LENGTH = 16
STRIDE = 7919  # a prime: neighbours are far apart in any vocabulary


def canary(model: Model, replayed: Replayed | None = None) -> Canary:
    """The canary with the log-probs of `model` as it is now, at temperature 1.

    `replayed`, always the same one for a model, lets a GPU replay the computation; then nobody
    waits for it before the log-probs are read.
    """
    tokens_T = canary_tokens(model.shape.vocab)[: model.shape.max_positions]
    if replayed is not None and _is_replayable(model):
        (part,) = model.parts
        found = replayed(places_of(part), partial(_prepared, model, tokens_T))
        return Canary(tokens_T=tokens_T, read=lambda: _shifted(found.read()[0], len(tokens_T)))
    (found_T,) = model.scores([_batch(model, tokens_T)], Scoring())
    return Canary(tokens_T=tokens_T, read=_shifted(found_T, len(tokens_T)).copy)


def canary_tokens(vocab: int) -> np.ndarray:
    """The canary's tokens, int32 `[T]`, the same for every run with this vocabulary."""
    return (np.arange(1, LENGTH + 1) * STRIDE % vocab).astype(np.int32)


def _is_replayable(model: Model) -> bool:
    """Whether all of it runs on this GPU and asks the host for nothing on its way."""
    return model.device.type == "cuda" and model.is_whole and model.shape.mixture is None


def _prepared(model: Model, tokens_T: np.ndarray) -> Run:
    (part,) = model.parts
    row, how = row_for(part, _batch(model, tokens_T)), Scoring()
    return lambda: scores_of(part, row, hidden_of(part, row), how)[0]


def _shifted(found_T: np.ndarray, length: int) -> np.ndarray:
    """The log-prob of each token, where entry t of what was found speaks of token t + 1."""
    return np.concatenate([np.zeros(1, np.float32), found_T[: length - 1]])


def _batch(model: Model, tokens_T: np.ndarray) -> Batch:
    chosen_T = np.ones(len(tokens_T), bool)
    sample = Sample(
        index=0,
        position=0,
        tokens_T=tokens_T,
        sampled_T=chosen_T,
        logprobs_T=np.zeros(len(tokens_T), np.float32),
        version_T=np.zeros(len(tokens_T), np.int32),
        ending=Ending.STOP,
        text="",
    )
    item = Item(sample=sample, columns={})
    return build_row([item], [chosen_T], [chosen_T], (), row_multiple(model.mesh))
