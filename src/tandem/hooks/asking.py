"""How users' functions ask the engine, whichever engine that is: by call, and over HTTP."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from tandem.errors import HookError
from tandem.types import Completion, Ending, Sampling

NAMES = {
    "max_new_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_new_tokens": int,
    "skip_special_tokens": bool,
    "ignore_eos": bool,
}
TUPLES = ("stop", "stop_token_ids")
SETTLED = {"no_stop_trim": True, "spaces_between_special_tokens": False, "n": 1}
"""Names that are understood, with the one value that holds here."""
SEED = "sampling_seed"
"""Names the sample over HTTP; here the sample is known."""


class Ask(Protocol):
    """Sends tokens to the engine on behalf of one sample: that of the call, where it has one."""

    async def __call__(
        self,
        tokens: Sequence[int],
        sampling: Sampling,
        *,
        sample: Any,
        branch: int,
        id: str | None = None,
    ) -> Completion: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """What a generate, rollout or evaluation function is connected to while it runs."""

    ask: Ask
    tokenizer: Any


LINE: ContextVar[Line] = ContextVar("LINE")
"""Set by the rollout stage around every call of a generate function."""


async def generate(
    tokens: Sequence[int],
    sampling_params: Mapping[str, Any],
    *,
    sample: Any = None,
    branch: int = 0,
) -> dict[str, Any]:
    """What the engine makes of the tokens, in the form that SGLang's `/generate` answers in.

    For use inside a generate function, and inside rollout and evaluation functions, which say for
    which `sample` they ask. `output_ids` and `meta_info["output_token_logprobs"]` (pairs
    of log-prob and token) are exactly what was sampled; `meta_info["finish_reason"]["type"]` is
    stop, length or abort. Randomness is a function of the sample and of each token's place; a
    fan-out passes another `branch` for each of its samples. Raises HookError for a setting that
    is not known.
    """
    line = _line()
    sampling = sampling_of(sampling_params)
    completion = await line.ask(tokens, sampling, sample=sample, branch=branch)
    output = completion.tokens_C.tolist()
    logprobs = completion.logprobs_C.tolist()
    reason: dict[str, Any] = {"type": completion.ending.value}
    if completion.ending is Ending.STOP:
        reason["matched"] = completion.matched
    version = int(completion.version_C[-1]) if len(output) else None
    return {
        "text": line.tokenizer.decode(output, skip_special_tokens=sampling.skip_special_tokens),
        "output_ids": output,
        "meta_info": {
            "finish_reason": reason,
            "output_token_logprobs": list(zip(logprobs, output, strict=True)),
            "prompt_tokens": len(tokens),
            "completion_tokens": len(output),
            "cached_tokens": completion.num_cached,
            "output_versions": completion.version_C.tolist(),
            **({} if version is None else {"weight_version": str(version)}),
        },
    }


def tokenizer() -> Any:
    """The tokenizer of the model, for use where `generate` can be used."""
    return _line().tokenizer


def sampling_of(params: Mapping[str, Any]) -> Sampling:
    """Settings by the names of `/generate`; raises HookError for one that is not known."""
    unknown = [
        f"{name}={value!r}"
        for name, value in params.items()
        if name not in (*NAMES, *TUPLES, SEED) and SETTLED.get(name, ...) != value
    ]
    if unknown or "max_new_tokens" not in params:
        raise HookError(
            f"sampling settings {', '.join(unknown) or 'without max_new_tokens'}: known are "
            f"{', '.join((*NAMES, *TUPLES))}"
        )
    values: dict[str, Any] = {
        name: kind(params[name]) for name, kind in NAMES.items() if params.get(name) is not None
    }
    for name in TUPLES:
        value = params.get(name)
        if value is not None:
            values[name] = (value,) if isinstance(value, str | int) else tuple(value)
    return Sampling(**values)


def params_of(sampling: Sampling, seed: int) -> dict[str, Any]:
    """The settings by the names of `/generate`, as generate functions get them.

    `seed` names the sample to `/generate`.
    """
    params = {name: getattr(sampling, name) for name in NAMES if name != "ignore_eos"}
    params |= {name: list(getattr(sampling, name)) or None for name in TUPLES}
    return params | {"no_stop_trim": True, "spaces_between_special_tokens": False, SEED: seed}


@contextmanager
def connected(line: Line) -> Iterator[None]:
    """What runs inside can use `generate` and `tokenizer`."""
    token = LINE.set(line)
    try:
        yield
    finally:
        LINE.reset(token)


def _line() -> Line:
    line = LINE.get(None)
    if line is None:
        raise HookError(
            "tandem.hooks.generate and tokenizer work inside generate, rollout and evaluation "
            "functions alone"
        )
    return line


async def post(
    url: str, payload: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
) -> Any:
    """What the address answers to this JSON; raises RuntimeError where it refuses.

    For functions that post to `http://{args.sglang_router_ip}:{args.sglang_router_port}/generate`.
    An answer may take as long as it wants.
    """
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(url, json=dict(payload), headers=headers) as response,
    ):
        if response.status >= 400:
            raise RuntimeError(f"{url} answered {response.status}: {(await response.text())[:500]}")
        return await response.json()
