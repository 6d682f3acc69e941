"""A short sequence that no data set knows, and what a model says of it."""

import numpy as np
import torch

from tandem.models.decoder import Decoder
from tandem.packing.row import Item, build_row
from tandem.train.forward import Scoring, token_scores
from tandem.types import Canary, Ending, Sample

LENGTH = 16
STRIDE = 7919  # a prime: neighbours are far apart in any vocabulary


@torch.no_grad()
def canary(decoder: Decoder) -> Canary:
    """The canary with the log-probs of `decoder` at temperature 1."""
    tokens_T = canary_tokens(decoder.shape.vocab)[: decoder.shape.max_positions]
    score_T = np.zeros(len(tokens_T), np.float32)
    score_T[1:] = _logprobs(decoder, tokens_T)[:-1]
    return Canary(tokens_T=tokens_T, logprobs_T=score_T)


def canary_tokens(vocab: int) -> np.ndarray:
    """The canary's tokens, int32 `[T]`, the same for every run with this vocabulary."""
    return (np.arange(1, LENGTH + 1) * STRIDE % vocab).astype(np.int32)


def _logprobs(decoder: Decoder, tokens_T: np.ndarray) -> np.ndarray:
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
    batch = build_row([item], [chosen_T], [chosen_T], (), 1)
    return token_scores(decoder, batch, Scoring())[1].cpu().numpy()
