"""A short sequence that no data set knows, and what a model says of it."""

import numpy as np

from tandem.packing.row import Item, build_row
from tandem.parallel import row_multiple
from tandem.train.forward import Scoring
from tandem.train.model import Model
from tandem.types import Canary, Ending, Sample

LENGTH = 16
STRIDE = 7919  # a prime: neighbours are far apart in any vocabulary


def canary(model: Model) -> Canary:
    """The canary with the log-probs of `model` at temperature 1."""
    tokens_T = canary_tokens(model.shape.vocab)[: model.shape.max_positions]
    score_T = np.zeros(len(tokens_T), np.float32)
    score_T[1:] = _logprobs(model, tokens_T)[: len(tokens_T) - 1]
    return Canary(tokens_T=tokens_T, logprobs_T=score_T)


def canary_tokens(vocab: int) -> np.ndarray:
    """The canary's tokens, int32 `[T]`, the same for every run with this vocabulary."""
    return (np.arange(1, LENGTH + 1) * STRIDE % vocab).astype(np.int32)


def _logprobs(model: Model, tokens_T: np.ndarray) -> np.ndarray:
    """Entry t speaks of token t + 1."""
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
    batch = build_row([item], [chosen_T], [chosen_T], (), row_multiple(model.mesh))
    return model.scores([batch], Scoring())[0]
