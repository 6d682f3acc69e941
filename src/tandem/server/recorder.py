"""Sessions by name, and the samples that a trainer makes of them."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tandem.server.branches import Branch, Pins, Session, Way
from tandem.server.faults import Refusal
from tandem.types import Prompt, Sample, SampleKey

NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Recorder:
    """Keeps every sampled token of every session until somebody takes it.

    `realign_tokens`: a request whose prompt differs from what is held only within the last reply,
    and there in its last so many sampled tokens, replaces these (they are not trained) instead of
    beginning a sample of its own. 0 never does.
    """

    def __init__(self, *, realign_tokens: int = 16, max_sessions: int = 100_000) -> None:
        self._realign_tokens, self._max_sessions = realign_tokens, max_sessions
        self._sessions: dict[str, Session] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._sessions

    def open(
        self,
        name: str,
        *,
        key: SampleKey | None = None,
        prompt_T: np.ndarray | None = None,
        pins: Pins | None = None,
        way: Way | None = None,
    ) -> Session:
        """A new session; Refusal (409) if there is one of that name, 429 if there are too many."""
        if not NAME.fullmatch(name):
            raise Refusal(f"session {name!r}: a name has 1 to 128 of A-Z a-z 0-9 . _ -")
        if name in self._sessions:
            raise Refusal(f"session {name} is open already; take it first", status=409)
        if len(self._sessions) >= self._max_sessions:
            raise Refusal(f"{self._max_sessions} sessions are open; take some first", status=429)
        session = Session(
            key=key,
            prompt_T=prompt_T,
            pins=pins or Pins(),
            way=way,
            realign_tokens=self._realign_tokens,
        )
        self._sessions[name] = session
        return session

    def find(self, name: str) -> Session:
        """The session of that name, opened now if there is none."""
        return self._sessions.get(name) or self.open(name)

    def get(self, name: str) -> Session:
        """The session of that name; Refusal (404) if there is none."""
        if name not in self._sessions:
            raise Refusal(f"there is no session {name}", status=404)
        return self._sessions[name]

    def close(self, name: str) -> None:
        """Forgets a session; nothing if there is none."""
        self._sessions.pop(name, None)

    def samples_of(
        self,
        name: str,
        prompt: Prompt,
        *,
        index: int,
        position: int,
        decode: Callable[[list[int]], str],
    ) -> tuple[Sample, ...]:
        """One sample for each branch, in the order of their first requests; () where nothing was
        sampled. They share `rollout`, so together they count once in the loss."""
        return tuple(
            Sample(
                index=index,
                position=position,
                rollout=index,
                tokens_T=branch.tokens_T,
                sampled_T=branch.sampled_T,
                logprobs_T=branch.logprobs_T,
                version_T=branch.version_T,
                ending=branch.ending,
                text=decode(branch.tokens_T[branch.prompt_length :].tolist()),
                metadata={**prompt.metadata, "recorded": {"branch": place, **branch.record}},
            )
            for place, branch in enumerate(written(self.get(name)))
        )


def written(session: Session) -> Sequence[Branch]:
    """The branches in which something was sampled."""
    return [branch for branch in session.branches if branch.num_turns]


def session_json(session: Session) -> list[dict[str, Any]]:
    """Every branch as JSON: the columns of a sample, in full."""
    return [
        {
            "tokens": branch.tokens_T.tolist(),
            "sampled": branch.sampled_T.astype(int).tolist(),
            "logprobs": branch.logprobs_T.tolist(),
            "versions": branch.version_T.tolist(),
            "ending": branch.ending.value,
            "prompt_tokens": branch.prompt_length,
            **branch.record,
        }
        for branch in written(session)
    ]
