"""The inference engine and its memory."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Engine"""

    rollout_engine: Literal["auto", "torch", "sglang"] = "auto"
    """Embedded engine (`torch`) or SGLang servers; `auto`: torch in one process."""
    engine_max_running: int = 256
    """Sequences that one engine decodes together."""
    engine_block_size: int = 16
    """Tokens per block of the paged KV cache."""
    engine_cache_tokens: int | None = None
    """Tokens that the KV cache holds; from free memory when unset."""
    engine_prefill_tokens: int = 4096
    """Prompt tokens that one engine step computes at most; longer prompts go in chunks."""
    deterministic_mode: bool = False
    """Bit-equal results whatever is batched together, at the cost of some speed."""
    sglang_server_concurrency: int = 512
    """Requests in flight per engine."""
    sglang_mem_fraction_static: float | None = None
    """Share of device memory for weights and KV cache; the engine's own choice when unset."""
    sglang_python: str | None = None
    """Interpreter that runs SGLang's servers and router; this one when unset."""
    sglang_router_ip: str | None = None
    """Host of a router that runs already; `--sglang-router-port` goes with it."""
    sglang_router_port: int | None = None
    """Port of the router that runs already."""
    sglang_router_request_timeout_secs: int = 14400
    """Seconds that one answer of a server may take."""
