"""Sampling settings, from the configuration to what an engine is asked for."""

import zlib
from dataclasses import dataclass, replace

from tandem.config import EvalSet, RolloutConfig
from tandem.types import Prompt, Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What the samples of a round are asked with."""

    sampling: Sampling
    seed: int
    max_context: int | None = None
    rollout_id: int = 0
    is_evaluation: bool = False
    generate_path: str | None = None  # an evaluation set's own generate function


def training_sampling(cfg: RolloutConfig) -> Sampling:
    """How training rollouts choose tokens."""
    assert cfg.rollout_max_response_len is not None, "resolve leaves no response limit unset"
    return Sampling(
        max_new_tokens=cfg.rollout_max_response_len,
        temperature=cfg.rollout_temperature,
        top_p=cfg.rollout_top_p,
        top_k=cfg.rollout_top_k,
        min_new_tokens=cfg.rollout_min_new_tokens,
        stop=tuple(cfg.rollout_stop or ()),
        stop_token_ids=tuple(cfg.rollout_stop_token_ids or ()),
        skip_special_tokens=cfg.rollout_skip_special_tokens,
    )


def evaluation_sampling(cfg: EvalSet) -> Sampling:
    """How the answers of one evaluation set are chosen; `resolve` did the inheriting."""
    assert cfg.max_response_len is not None, "rules refuse a set without a response limit"
    return Sampling(
        max_new_tokens=cfg.max_response_len,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        top_k=cfg.top_k,
        min_new_tokens=cfg.min_new_tokens or 0,
        stop=tuple(cfg.stop or ()),
        stop_token_ids=tuple(cfg.stop_token_ids or ()),
        skip_special_tokens=cfg.skip_special_tokens,
    )


def within_context(sampling: Sampling, prompt: Prompt, max_context: int | None) -> Sampling:
    """The settings with a token limit that keeps prompt and answer within the context."""
    if max_context is None:
        return sampling
    room = max_context - len(prompt.tokens_T)
    return replace(sampling, max_new_tokens=max(0, min(sampling.max_new_tokens, room)))


def evaluation_seed(seed: int, name: str) -> int:
    """The sampling seed of an evaluation set: its own stream, the same at every evaluation."""
    return seed ^ (zlib.crc32(name.encode()) << 16)
