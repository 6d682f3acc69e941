"""The rewards by name, as pure functions of one answer."""

import difflib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tandem.errors import ConfigError
from tandem.rewards.boxes import last_box
from tandem.rewards.math_graders import (
    Algebra,
    grade_deepscaler,
    grade_math,
    grade_math_verify,
)
from tandem.rewards.string_graders import grade_dapo, grade_f1, grade_gpqa

BOXED = "boxed_"
REMOTE = "remote_rm"
REFUSED = {
    "ifbench": "ifbench needs the official checker, which is fetched from the network at import; "
    "write it as a --custom-rm-path, e.g. around a copy that you installed"
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer to be judged; `key` is what a `random` verdict is drawn from."""

    rm_type: str
    response: str | None
    label: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a reward said of an answer, or why it said nothing."""

    value: Any = None
    error: str | None = None


Grader = Callable[[Answer, Algebra], Any]

GRADERS: dict[str, Grader] = {
    "deepscaler": lambda answer, algebra: grade_deepscaler(_text(answer), answer.label, algebra),
    "math": lambda answer, algebra: grade_math(_text(answer), answer.label, algebra),
    "math_verify": lambda answer, algebra: grade_math_verify(_text(answer), answer.label, algebra),
    "dapo": lambda answer, algebra: grade_dapo(
        _text(answer),
        answer.label,
        is_strict_box=bool(answer.metadata.get("strict_box_verify", False)),
    ),
    "f1": lambda answer, algebra: grade_f1(answer.response, answer.label),
    "gpqa": lambda answer, algebra: grade_gpqa(answer.response, answer.label, answer.metadata),
    "random": lambda answer, algebra: draw(answer.key),
}
NEEDS_ALGEBRA = {"deepscaler", "math", "math_verify"}
"""Graders that may take long, and then belong into a worker."""


def check_rm_type(name: str) -> None:
    """Raises ConfigError for a name that no reward has, with the nearest one."""
    plain = name.removeprefix(BOXED)
    if plain in REFUSED:
        raise ConfigError(f"--rm-type {name} is refused: {REFUSED[plain]}")
    known = [*GRADERS, REMOTE]
    if plain in known:
        return
    near = difflib.get_close_matches(plain, known, n=1)
    raise ConfigError(
        f"--rm-type {name} is not known{f'; did you mean {near[0]}?' if near else ''} "
        f"There are: {', '.join(known)}, each also with {BOXED} in front"
    )


def grade(answer: Answer, algebra: Algebra) -> Any:
    """The verdict: a number, or for `dapo` a dictionary.

    Raises ValueError where the label does not fit the reward, and whatever `algebra` raises.
    """
    plain = answer.rm_type.removeprefix(BOXED)
    check_rm_type(plain)
    assert plain != REMOTE, "remote_rm is asked over the network, by the reward stage"
    return GRADERS[plain](unboxed(answer), algebra)


def unboxed(answer: Answer) -> Answer:
    """The answer as its grader sees it: under `boxed_` the response is what the last box holds.

    A response without a box is then empty.
    """
    if not answer.rm_type.startswith(BOXED):
        return answer
    return replace(
        answer,
        rm_type=answer.rm_type.removeprefix(BOXED),
        response=last_box(answer.response or "") or "",
    )


def draw(key: str) -> int:
    """0 or 1 with equal chance, the same for the same key: a repeated run draws the same."""
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=1).digest()[0] & 1


def _text(answer: Answer) -> str:
    if answer.response is None:
        raise ValueError("there is no response to judge")
    return answer.response
