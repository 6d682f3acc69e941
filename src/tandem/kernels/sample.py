"""Choosing tokens: counter-based randomness, and inverse-CDF sampling with top-k and top-p."""

import torch
from torch import Tensor

# The finaliser of splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
# Generators", 2014): a bijection of 64-bit words in which every input bit moves every output bit.
_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_ALL = (1 << 64) - 1


def uniform(seed_R: Tensor, prompt_R: Tensor, sample_R: Tensor, place_R: Tensor) -> Tensor:
    """One number in [0, 1) a row, float64, a pure function of the row's four int64 words.

    The words are hashed one after the other, 53 bits of the result are kept. Integer arithmetic
    only, so the bits are the same on every device and equal to `uniform_reference`.
    """
    state_R = torch.zeros_like(seed_R)
    for word_R in (seed_R, prompt_R, sample_R, place_R):
        state_R = _mix((state_R ^ word_R) + _signed(_STEP))
    return _shift(state_R, 11).double() * 2.0**-53


def uniform_reference(seed: int, prompt: int, sample: int, place: int) -> float:
    """What `uniform` gives for one row, in Python integers."""
    state = 0
    for word in (seed, prompt, sample, place):
        state = ((state ^ (word & _ALL)) + _STEP) & _ALL
        state = ((state ^ (state >> 30)) * _FIRST) & _ALL
        state = ((state ^ (state >> 27)) * _SECOND) & _ALL
        state ^= state >> 31
    return (state >> 11) * 2.0**-53


def choose_tokens(
    logits_RV: Tensor, u_R: Tensor, temperature_R: Tensor, top_p_R: Tensor, top_k_R: Tensor
) -> tuple[Tensor, Tensor]:
    """One token a row, int64, and its log-prob, fp32.

    The token is the inverse CDF at `u_R` (float64, [0, 1)), in order of token ids, of
    softmax(logits / temperature) restricted to the `top_k_R` likeliest tokens (below 1: all) and
    then to the likeliest of those that together reach `top_p_R`. Equal logits rank by token id.
    Temperature 0 takes the likeliest token. The log-prob is that of the unrestricted distribution
    at the row's temperature (1 for greedy rows). A row's result does not depend on other rows.
    """
    is_greedy_R = temperature_R <= 0
    inverse_R = 1 / torch.where(is_greedy_R, 1.0, temperature_R.float())
    scaled_RV = logits_RV.float() * inverse_R[:, None]
    logprobs_RV = torch.log_softmax(scaled_RV, dim=-1)
    mass_RV = logprobs_RV.exp()
    is_cut_R = ~is_greedy_R & ((top_p_R < 1) | ((top_k_R > 0) & (top_k_R < logits_RV.shape[1])))
    rows = is_cut_R.nonzero()[:, 0]
    if len(rows):
        keep = _nucleus(scaled_RV[rows], mass_RV[rows], top_p_R[rows], top_k_R[rows])
        mass_RV[rows] = mass_RV[rows] * keep
    tokens_R = torch.where(is_greedy_R, scaled_RV.argmax(dim=-1), _invert(mass_RV, u_R))
    return tokens_R, logprobs_RV.gather(1, tokens_R[:, None])[:, 0]


def _nucleus(scaled_RV: Tensor, mass_RV: Tensor, top_p_R: Tensor, top_k_R: Tensor) -> Tensor:
    """True where a token survives top-k and then top-p of what top-k left."""
    order_RV = scaled_RV.sort(dim=-1, descending=True, stable=True).indices
    ranked_RV = mass_RV.gather(1, order_RV).double()
    size = scaled_RV.shape[1]
    limit_R = torch.where(top_k_R > 0, top_k_R.clamp(max=size), size)
    rank_V = torch.arange(size, device=scaled_RV.device)
    ranked_RV = ranked_RV * (rank_V[None] < limit_R[:, None])
    total_RV = ranked_RV.cumsum(dim=-1)
    # kept while the mass before it is short of p, so the first always is
    before_RV = total_RV - ranked_RV
    keep_RV = before_RV < top_p_R.double()[:, None] * total_RV[:, -1:]
    keep_RV &= rank_V[None] < limit_R[:, None]
    keep_RV[:, 0] = True
    return torch.zeros_like(keep_RV).scatter_(1, order_RV, keep_RV)


def _invert(mass_RV: Tensor, u_R: Tensor) -> Tensor:
    """The first token whose cumulative mass exceeds `u_R` of the total."""
    total_RV = mass_RV.double().cumsum(dim=-1)
    last_R = total_RV[:, -1]
    # rounding of u * total must not reach the total, beyond which there is no token
    below_R = torch.nextafter(last_R, torch.zeros_like(last_R))
    target_R = torch.minimum(u_R * last_R, below_R)
    return torch.searchsorted(total_RV, target_R[:, None], right=True)[:, 0]


def _mix(state_R: Tensor) -> Tensor:
    state_R = (state_R ^ _shift(state_R, 30)) * _signed(_FIRST)
    state_R = (state_R ^ _shift(state_R, 27)) * _signed(_SECOND)
    return state_R ^ _shift(state_R, 31)


def _shift(state_R: Tensor, bits: int) -> Tensor:
    """A logical right shift; torch's own keeps the sign."""
    return (state_R >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word."""
    return word - (1 << 64) if word >> 63 else word
