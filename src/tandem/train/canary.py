"""A short sequence that no data set knows, and what a model says of it."""

from functools import partial

import numpy as np

from tandem.kernels.replay import Replayed, Run, places_of
from tandem.models.decoder import Decoder
from tandem.packing.row import Item, build_row
from tandem.parallel import row_multiple
from tandem.train.forward import Scoring, hidden_of, row_for, scores_of
from tandem.train.model import Model
from tandem.types import Batch, Canary, Ending, Sample

LENGTH = 16
STRIDE = 7919  # a prime: neighbours are far apart in any vocabulary


def canary(model: Model, replayed: Replayed | None = None) -> Canary:
    """The canary with the log-probs of `model` at temperature 1.

    `replayed`, always the same one for a model, lets a GPU replay the computation.
    """
    tokens_T = canary_tokens(model.shape.vocab)[: model.shape.max_positions]
    score_T = np.zeros(len(tokens_T), np.float32)
    batch = _batch(model, tokens_T)
    if replayed is not None and _is_replayable(model):
        (part,) = model.parts
        found_T = replayed(places_of(part), partial(_prepared, part, batch)).cpu().numpy()
    else:
        found_T = model.scores([batch], Scoring())[0]
    score_T[1:] = found_T[: len(tokens_T) - 1]  # entry t speaks of token t + 1
    return Canary(tokens_T=tokens_T, logprobs_T=score_T)


def canary_tokens(vocab: int) -> np.ndarray:
    """The canary's tokens, int32 `[T]`, the same for every run with this vocabulary."""
    return (np.arange(1, LENGTH + 1) * STRIDE % vocab).astype(np.int32)


def _is_replayable(model: Model) -> bool:
    """Whether all of it runs on this GPU and asks the host for nothing on its way."""
    return model.device.type == "cuda" and model.is_whole and model.shape.mixture is None


def _prepared(part: Decoder, batch: Batch) -> Run:
    row, how = row_for(part, batch), Scoring()
    return lambda: scores_of(part, row, hidden_of(part, row), how)[0]


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
