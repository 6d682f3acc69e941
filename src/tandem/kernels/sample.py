"""Choosing tokens: counter-based randomness, and inverse-CDF sampling with top-k and top-p."""

import torch
from torch import Tensor

from tandem.kernels.device import is_fused

# The finaliser of splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
# Generators", 2014): a bijection of 64-bit words in which every input bit moves every output bit.
_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_ALL = (1 << 64) - 1

_CHUNK_VALUES = 1 << 20  # logits worked on at a time: the temporaries are many times as much
_FEW = 128  # likeliest tokens that are looked at before a whole row is sorted


def uniform(seed_R: Tensor, prompt_R: Tensor, sample_R: Tensor, place_R: Tensor) -> Tensor:
    """One number in [0, 1) a row, float64, a pure function of the row's four int64 words.

    The words are hashed one after the other, 53 bits of the result are kept. Integer arithmetic
    only, so the bits are the same on every device and equal to `uniform_reference`.
    """
    if is_fused(seed_R):
        from tandem.kernels.cuda import sample as fused

        return fused.uniform(seed_R, prompt_R, sample_R, place_R)
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
    logits_RV: Tensor,
    u_R: Tensor,
    temperature_R: Tensor,
    top_p_R: Tensor | None = None,
    top_k_R: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token a row, int64, and its log-prob, fp32.

    The token is the inverse CDF at `u_R` (float64, [0, 1)), in order of token ids, of
    softmax(logits / temperature) restricted to the `top_k_R` likeliest tokens (below 1: all) and
    then to the likeliest of those that together reach `top_p_R`. Equal logits rank by token id.
    Temperature 0 takes the likeliest token. The log-prob is that of the unrestricted distribution
    at the row's temperature (1 for greedy rows). A row's result does not depend on other rows.
    On CUDA, None for a restriction that no row has saves a launch.
    """
    if is_fused(logits_RV):
        from tandem.kernels.cuda import sample as fused

        return fused.choose_tokens(logits_RV, u_R, temperature_R, top_p_R, top_k_R)
    if top_p_R is None:
        top_p_R = torch.ones_like(temperature_R)
    if top_k_R is None:
        top_k_R = torch.full_like(temperature_R, -1, dtype=torch.int64)
    columns = (logits_RV, u_R, temperature_R, top_p_R, top_k_R)
    step = max(1, _CHUNK_VALUES // logits_RV.shape[1])
    parts = [_choose(*piece) for piece in zip(*(x.split(step) for x in columns), strict=True)]
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _choose(logits_RV, u_R, temperature_R, top_p_R, top_k_R) -> tuple[Tensor, Tensor]:
    is_greedy_R = temperature_R <= 0
    inverse_R = 1 / torch.where(is_greedy_R, 1.0, temperature_R.float())
    scaled_RV = logits_RV.float() * inverse_R[:, None]
    logprobs_RV = torch.log_softmax(scaled_RV, dim=-1)
    mass_RV = logprobs_RV.exp()
    is_cut_R = ~is_greedy_R & ((top_p_R < 1) | ((top_k_R > 0) & (top_k_R < logits_RV.shape[1])))
    if is_cut_R.any():
        rows = is_cut_R.nonzero()[:, 0]
        mass_RV[rows] = _cut(mass_RV[rows], top_p_R[rows], top_k_R[rows])
    tokens_R = torch.where(is_greedy_R, scaled_RV.argmax(dim=-1), _invert(mass_RV, u_R))
    return tokens_R, logprobs_RV.gather(1, tokens_R[:, None])[:, 0]


def _cut(mass_RV: Tensor, top_p_R: Tensor, top_k_R: Tensor) -> Tensor:
    """The masses with 0 where top-k, or top-p of what top-k left, removes the token."""
    total_R = mass_RV.double().cumsum(dim=-1)[:, -1]
    bound_R, num_ties_R = _boundary(mass_RV, total_R, top_p_R.double(), top_k_R)
    is_tie_RV = mass_RV == bound_R[:, None]
    is_first_RV = is_tie_RV.cumsum(dim=-1) <= num_ties_R[:, None]
    return mass_RV.where((mass_RV > bound_R[:, None]) | (is_tie_RV & is_first_RV), 0)


def _boundary(mass_RV, total_R, top_p_R, top_k_R) -> tuple[Tensor, Tensor]:
    """The least mass that is kept, and how many tokens of exactly that mass are.

    The likeliest few tokens nearly always decide; a row where they do not is sorted whole, to the
    same result.
    """
    size = mass_RV.shape[1]
    limit_R = torch.where(top_k_R > 0, top_k_R.clamp(max=size), size)
    few = min(size, _FEW)
    ranked_RV = mass_RV.topk(few, dim=-1).values
    bound_R, num_ties_R, is_sure_R = _boundary_of(ranked_RV, total_R, top_p_R, limit_R, size)
    if not is_sure_R.all():
        rows = (~is_sure_R).nonzero()[:, 0]
        columns = (total_R[rows], top_p_R[rows], limit_R[rows])
        ranked = mass_RV[rows].sort(dim=-1, descending=True).values
        bound_R[rows], num_ties_R[rows], _ = _boundary_of(ranked, *columns, size)
    return bound_R, num_ties_R


def _boundary_of(ranked_RV, total_R, top_p_R, limit_R, size) -> tuple[Tensor, Tensor, Tensor]:
    """As `_boundary`, of the largest masses of each row; and whether these are enough to know."""
    few = ranked_RV.shape[1]
    reached_RV = ranked_RV.double().cumsum(dim=-1)
    last_R = limit_R.clamp(max=few) - 1
    left_R = torch.where(limit_R < size, reached_RV.gather(1, last_R[:, None])[:, 0], total_R)
    # kept while the mass before it is short of p, so the first always is
    is_kept_RV = reached_RV - ranked_RV < (top_p_R * left_R)[:, None]
    is_kept_RV &= torch.arange(few, device=ranked_RV.device) <= last_R[:, None]
    num_kept_R = is_kept_RV.sum(dim=-1).clamp(min=1)
    bound_R = ranked_RV.gather(1, num_kept_R[:, None] - 1)
    num_ties_R = num_kept_R - (ranked_RV > bound_R).sum(dim=-1)
    is_sure_R = (limit_R <= few) | ((limit_R == size) & (num_kept_R < few))
    return bound_R[:, 0], num_ties_R, is_sure_R


def _invert(mass_RV: Tensor, u_R: Tensor) -> Tensor:
    """The first token whose cumulative mass exceeds `u_R` of the total."""
    reached_RV = mass_RV.double().cumsum(dim=-1)
    total_R = reached_RV[:, -1]
    # rounding of u * total must not reach the total, beyond which there is no token
    below_R = torch.nextafter(total_R, torch.zeros_like(total_R))
    target_R = torch.minimum(u_R * total_R, below_R)
    return torch.searchsorted(reached_RV, target_R[:, None], right=True)[:, 0]


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
