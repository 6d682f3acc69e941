"""What one agent wrote: its turns, kept as token ids exactly as they were sampled.

A *session* is one attempt at a task. A *branch* of it is one sequence of tokens that grew turn by
turn; most sessions have one. A later request either goes on where a branch ends (clean), replaces
the last few tokens of its latest reply (realigned), or begins a branch of its own (fork).
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tandem.server.faults import Refusal
from tandem.types import NO_VERSION, Completion, Ending, Request, SampleKey, Sampling

Way = Callable[[Request], Awaitable[Completion]]
"""Takes a request to an engine and gives what it added."""

Conversation = tuple[str, ...]
"""Messages as they are compared with one another, after the settings that render them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pins:
    """What a session fixes, whatever its requests say: a trainer knows one temperature.

    `max_new_tokens` counts over the whole session.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None

    def applied(self, sampling: Sampling) -> Sampling:
        """The sampling with these values in the place of the request's."""
        values = {
            name: value
            for name in ("temperature", "top_p", "top_k")
            if (value := getattr(self, name)) is not None
        }
        return replace(sampling, **values)


@dataclass(kw_only=True, slots=True, eq=False)
class Branch:
    """One sequence that grows; only turns change it. Columns are as those of a Sample."""

    salt: int  # sets its randomness apart from that of other branches of the session
    tokens_T: np.ndarray
    sampled_T: np.ndarray
    logprobs_T: np.ndarray
    version_T: np.ndarray
    prompt_length: int  # tokens of its first request
    reply_start: int  # where the latest reply begins
    ending: Ending = Ending.ABORT
    num_turns: int = 0
    num_realigned: int = 0  # sampled tokens that drift took away
    is_busy: bool = False  # a turn that goes on where it ends is under way
    marks: list[tuple[Conversation, int]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens_T)

    @property
    def record(self) -> dict[str, int]:
        """How it came about, for whoever reads the sample."""
        return {"turns": self.num_turns, "realigned_tokens": self.num_realigned}

    def common_with(self, tokens_T: np.ndarray) -> int:
        """How many tokens both begin with."""
        length = min(self.num_tokens, len(tokens_T))
        differs_T = self.tokens_T[:length] != tokens_T[:length]
        return int(differs_T.argmax()) if differs_T.any() else length

    def cut(self, length: int) -> None:
        """Forgets the tokens from place `length` on."""
        self.num_realigned += int(self.sampled_T[length:].sum())
        for name in ("tokens_T", "sampled_T", "logprobs_T", "version_T"):
            setattr(self, name, getattr(self, name)[:length])
        self.marks = [mark for mark in self.marks if mark[1] <= length]

    def append(self, tokens_C, logprobs_C, version_C, *, is_sampled: bool) -> None:
        """Adds tokens of the policy, or of the world."""
        flags_C = np.full(len(tokens_C), is_sampled)
        self.tokens_T = np.concatenate([self.tokens_T, tokens_C]).astype(np.int32)
        self.sampled_T = np.concatenate([self.sampled_T, flags_C])
        self.logprobs_T = np.concatenate([self.logprobs_T, logprobs_C]).astype(np.float32)
        self.version_T = np.concatenate([self.version_T, version_C]).astype(np.int32)

    def append_world(self, tokens_C: np.ndarray) -> None:
        """Adds tokens that the policy did not choose."""
        length = len(tokens_C)
        self.append(tokens_C, np.zeros(length), np.full(length, NO_VERSION), is_sampled=False)


class Turn:
    """One request of a session, from its arrival to its reply.

    The place where it goes is decided when it arrives, so that it does not depend on which of
    several requests is answered first. Nothing is written before the reply is there.
    """

    def __init__(self, session: "Session", branch: Branch, prompt_T: np.ndarray, at: int) -> None:
        """`at` is where the branch's tokens end and the prompt's new ones begin."""
        self._session, self._branch, self._prompt_T, self._at = session, branch, prompt_T, at
        self.is_over = False
        branch.is_busy = True

    @property
    def key(self) -> SampleKey | None:
        """What its randomness is a function of; None where the session has no key."""
        key = self._session.key
        return key and replace(key, seed=key.seed ^ self._branch.salt)

    @property
    def pins(self) -> Pins:
        return self._session.pins

    @property
    def way(self) -> Way | None:
        return self._session.way

    def finish(self, completion: Completion, said: Conversation | None = None) -> None:
        """Writes the turn down. `said` is the conversation with the reply that the client reads.

        A turn in which nothing was sampled leaves no trace.
        """
        if self.is_over:
            return
        self.is_over, branch = True, self._branch
        branch.is_busy = False
        if len(completion.tokens_C) == 0:
            if branch.num_turns == 0:
                self._session.branches.remove(branch)
            return
        branch.cut(self._at)
        branch.append_world(self._prompt_T[self._at :])
        branch.reply_start = branch.num_tokens
        branch.append(
            completion.tokens_C, completion.logprobs_C, completion.version_C, is_sampled=True
        )
        branch.ending = completion.ending
        branch.num_turns += 1
        if said is not None:
            branch.marks.append((said, branch.num_tokens))

    def drop(self) -> None:
        """Ends a turn that brought nothing."""
        self.finish(Completion.empty("", Ending.ERROR))


class Session:
    """One attempt: its branches in the order of their first requests."""

    def __init__(
        self,
        *,
        key: SampleKey | None,
        prompt_T: np.ndarray | None,
        pins: Pins,
        way: Way | None,
        realign_tokens: int,
    ) -> None:
        """`prompt_T` is the prompt whose first answer is sampled as a plain rollout samples it;
        `way` is where its requests go, None: to the server's engine."""
        self.key, self.pins, self.way = key, pins, way
        self.branches: list[Branch] = []
        self._prompt_T, self._realign_tokens = prompt_T, realign_tokens
        self._num_begun: dict[bytes, int] = {}

    @property
    def num_sampled(self) -> int:
        """Tokens that the policy chose, over all branches."""
        return sum(int(branch.sampled_T.sum()) for branch in self.branches)

    def begin(self, prompt_T: np.ndarray) -> Turn:
        """The turn of a request that asks to continue `prompt_T`."""
        if len(prompt_T) == 0:
            raise Refusal("the prompt has no tokens; there must be one to continue from")
        common = {branch: branch.common_with(prompt_T) for branch in self._idle()}
        clean = [branch for branch, length in common.items() if length == branch.num_tokens]
        if clean:
            branch = max(clean, key=lambda one: one.num_tokens)
            return Turn(self, branch, prompt_T, branch.num_tokens)
        for branch, length in common.items():
            if self._has_drifted(branch, length, prompt_T):
                return Turn(self, branch, prompt_T, length)
        branch = self._fork(prompt_T)
        return Turn(self, branch, prompt_T, branch.num_tokens)

    def mark_of(self, messages: Sequence[str]) -> tuple[np.ndarray, int] | None:
        """Tokens that are held of the longest beginning of these messages, and its length."""
        best: tuple[np.ndarray, int] | None = None
        for branch in self.branches:
            for said, length in branch.marks:
                is_longer = best is None or len(said) > best[1]
                if is_longer and tuple(messages[: len(said)]) == said:
                    best = branch.tokens_T[:length], len(said)
        return best

    def _idle(self) -> list[Branch]:
        return [branch for branch in self.branches if not branch.is_busy]

    def _has_drifted(self, branch: Branch, common: int, prompt_T: np.ndarray) -> bool:
        """Whether the prompt is this branch's text with the end of its latest reply re-tokenised.

        A prompt that is a beginning of the branch asks for another answer, which is no drift.
        """
        if not branch.reply_start < common < len(prompt_T):
            return False
        return int(branch.sampled_T[common:].sum()) <= self._realign_tokens

    def _fork(self, prompt_T: np.ndarray) -> Branch:
        """A branch that holds the prompt, none of it trained: its turns are trained elsewhere."""
        branch = Branch(
            salt=self._salt(prompt_T),
            tokens_T=np.zeros(0, np.int32),
            sampled_T=np.zeros(0, bool),
            logprobs_T=np.zeros(0, np.float32),
            version_T=np.zeros(0, np.int32),
            prompt_length=len(prompt_T),
            reply_start=len(prompt_T),
        )
        branch.append_world(prompt_T)
        self.branches.append(branch)
        return branch

    def _salt(self, prompt_T: np.ndarray) -> int:
        """A number of 63 bits for a new branch: a function of its prompt and of how many began with
        it, not of the order in which different ones came. 0 for the first of the task's prompt."""
        content = np.ascontiguousarray(prompt_T, dtype="<i4").tobytes()
        count = self._num_begun.get(content, 0)
        self._num_begun[content] = count + 1
        if count == 0 and self._prompt_T is not None and np.array_equal(prompt_T, self._prompt_T):
            return 0
        digest = hashlib.blake2b(content + b"%d" % count, digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1


def settings_and_messages(settings: Mapping[str, object], messages: Sequence[str]) -> Conversation:
    """A conversation as sessions compare it: how it is rendered, then what was said."""
    return (repr(sorted(settings.items())), *messages)
