"""The values that travel between rooms. Nobody edits what another stage made.

Shape legend (names end in their axes, in order; a shard keeps its letters):

    T tokens along a row    S sequences in a row    G samples of a group    P prompts
    V vocabulary            D width                 N query heads           K key heads
    H head size             F feed-forward width    E experts               B cache blocks
    L layers                R rows of a decode step (one sequence each)
    k experts that a token takes

Every `_T` field of one object has the same length. Host values are numpy arrays, values for the
device are torch tensors (`Batch`, `Weights`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

NO_VERSION = -1
"""In `version_T`: the policy did not choose this token."""


class Ending(StrEnum):
    """Why a sample ended."""

    STOP = "stop"  # a stop token or stop string
    LENGTH = "length"  # the token limit
    ABORT = "abort"  # we stopped it; it may go on later
    ERROR = "error"  # it could not be sampled; it is never trained


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prompt:
    """One line of a data set, rendered and tokenised, at one place in a run.

    `index` counts prompts over the whole run (the dialect's `group_index`), so the same line in
    the next epoch is another prompt. `content` is what the data set said: a string or messages.
    """

    index: int
    tokens_T: np.ndarray  # int32
    text: str
    content: str | Sequence[Mapping[str, Any]]
    label: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """One sequence: prompt, everything the policy wrote, and whatever the world replied.

    `index` counts samples over the run (prompt index x G + position for plain rollouts).
    `rollout` is the attempt it belongs to: samples that one attempt fanned out into share it and
    count once in the loss; it equals `index` otherwise.
    """

    index: int
    position: int  # within its group
    tokens_T: np.ndarray  # int32
    sampled_T: np.ndarray  # bool: the policy chose this token; these are trained
    logprobs_T: np.ndarray  # float32: the engine's, at the sampling temperature; 0 elsewhere
    version_T: np.ndarray  # int32: the weight version that chose it, or NO_VERSION
    ending: Ending
    text: str  # what follows the prompt, decoded
    rollout: int = -1
    # int16: what the layers with experts chose when token t passed through them, -1 unknown
    experts_TLk: np.ndarray | None = None
    reward: float | None = None  # filled once, by the reward stage; None: no verdict came
    verdict: Any = None  # what the reward function said, whole; `reward` is its scalar
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # without a loop: thousands of samples are made while a round ends
        is_even = (
            len(self.tokens_T) == len(self.sampled_T) == len(self.logprobs_T) == len(self.version_T)
        )
        assert is_even, f"columns of sample {self.index} differ in length"
        experts = self.experts_TLk
        assert experts is None or len(experts) == len(self.tokens_T), "experts of other tokens"
        if self.rollout < 0:
            object.__setattr__(self, "rollout", self.index)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens_T)

    @property
    def num_sampled(self) -> int:
        return int(self.sampled_T.sum())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """One prompt, its samples, and the columns that later stages add about them.

    A column is a tuple with one array a sample, each as long as that sample's `tokens_T`; entry t
    speaks of token t (packing shifts, nobody else does). Entries where `sampled_T` is False are 0.
    """

    prompt: Prompt
    samples: tuple[Sample, ...]
    old_logprobs: tuple[np.ndarray, ...] | None = None  # by the trainer, before its first step
    reference_logprobs: tuple[np.ndarray, ...] | None = None
    teacher_logprobs: tuple[np.ndarray, ...] | None = None
    values: tuple[np.ndarray, ...] | None = None
    advantages: tuple[np.ndarray, ...] | None = None
    returns: tuple[np.ndarray, ...] | None = None
    scores: tuple[float, ...] | None = None  # rewards that advantages started from, one a sample
    stays: tuple[np.ndarray, ...] | None = None
    """Bool: tokens that a hook left in the loss. Its denominators count the others, too."""

    def __post_init__(self) -> None:
        for name in (*COLUMNS, "stays"):
            column = getattr(self, name)
            if column is None:
                continue
            assert len(column) == len(self.samples), f"{name} has not one array a sample"
            for sample, array_T in zip(self.samples, column, strict=True):
                assert len(array_T) == sample.num_tokens, f"{name} is not as long as its sample"

    @property
    def rewards_G(self) -> tuple[float | None, ...]:
        return tuple(sample.reward for sample in self.samples)

    @property
    def responses_G(self) -> tuple[int, ...]:
        """How many tokens of each sample follow the prompt, replies of the world included."""
        return tuple(sample.num_tokens - len(self.prompt.tokens_T) for sample in self.samples)


COLUMNS: Mapping[str, str] = {
    "old_logprobs": "log_probs",
    "reference_logprobs": "ref_log_probs",
    "teacher_logprobs": "teacher_log_probs",
    "values": "values",
    "advantages": "advantages",
    "returns": "returns",
}
"""The fields of `Group` that are columns, and the dialect's names for them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """One packed row of T tokens from S sequences: what one forward and backward pass takes.

    Shifted once, here: entry t of every column speaks of `targets_T[t]`, the token that position t
    predicts; the last position of a sequence predicts nothing (mask and weight 0). Padding is a
    sequence of its own at the end, with mask 0.

    `weight_T` carries the whole loss reduction: mask / denominator, where the denominator is that
    of the chosen reduction over the *whole optimizer step* (all batches, all ranks). So a loss is
    `(weight_T * x_T).sum()`, summed over batches, whatever the packing.
    """

    tokens_T: "torch.Tensor"  # int64
    targets_T: "torch.Tensor"  # int64
    positions_T: "torch.Tensor"  # int64, from 0 in each sequence
    mask_T: "torch.Tensor"  # float32, 1 where the target is trained
    weight_T: "torch.Tensor"  # float32
    bounds_S: "torch.Tensor"  # int32, S + 1 cumulative lengths
    longest: int  # tokens of the longest sequence
    advantages_T: "torch.Tensor | None" = None  # float32
    engine_logprobs_T: "torch.Tensor | None" = None
    old_logprobs_T: "torch.Tensor | None" = None  # None: the training forward's own, detached
    reference_logprobs_T: "torch.Tensor | None" = None
    teacher_logprobs_T: "torch.Tensor | None" = None
    values_T: "torch.Tensor | None" = None
    returns_T: "torch.Tensor | None" = None
    # int16, not shifted: the experts that token t passes through; -1 where routers choose
    experts_TLk: "torch.Tensor | None" = None
    num_tokens: int = 0  # without padding
    denominator: float = 1.0  # attempts of the step, or its trained tokens with a per-token loss


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Canary:
    """A short fixed sequence and what the trainer says of it: what wrong weights cannot fake."""

    tokens_T: np.ndarray  # int32
    read: Callable[[], np.ndarray]
    """Gives `logprobs_T`; waits for them if a device is still computing them."""

    @property
    def logprobs_T(self) -> np.ndarray:
        """float32, of token t given the tokens before it; 0 at t = 0."""
        return self.read()

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process gets: the log-probs as they are."""
        return partial(Canary, tokens_T=self.tokens_T, read=self.logprobs_T.copy), ()


class Digests(Mapping[str, int]):
    """Checksums of tensors by name, which somebody is still computing; whoever looks waits."""

    def __init__(self, read: Callable[[], Mapping[str, int]]) -> None:
        """`read` gives them; it is asked once."""
        self._read = cache(read)

    def __getitem__(self, name: str) -> int:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process gets: the checksums as they are."""
        return dict, (dict(self),)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Weights:
    """A stream of named tensors under Hugging Face names, at one version, with its proofs.

    `named` may be walked once. `is_shared` says that the receiver already reads this storage, so
    nothing has to be copied. An engine that took the weights must show the same digests and, up
    to the precision it computes in, the same canary. Digests go by Hugging Face names, or, of
    shared storage, by the names that its owner gives the tensors as they lie. `stored` are those
    tensors, by the same names: an engine of this process that reads the storage shows that it
    does, and its digests are the trainer's. Where processes gather `named` from parts, the digests
    are of what was gathered, and known after the walk; engines that read the parts where they lie
    show `parts` instead, digests of what each process stores, for which nothing is gathered.
    """

    version: int
    named: "Iterable[tuple[str, torch.Tensor]]"
    is_shared: bool = False
    stored: "Mapping[str, torch.Tensor] | None" = None
    digests: Mapping[str, int] | None = None
    parts: Mapping[str, int] | None = None
    canary: Canary | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to choose tokens. `max_new_tokens` counts what is still to come."""

    max_new_tokens: int
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = -1
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()  # besides the model's own end tokens
    ignore_eos: bool = False
    skip_special_tokens: bool = False
    want_logprobs: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleKey:
    """What the randomness of a sequence is a function of, with the token's place in it.

    The token at absolute place t of the sequence is drawn with `uniform(seed, prompt, sample, t)`,
    so it does not depend on batching, order, timing, or on an interruption before it.
    """

    seed: int
    prompt: int
    sample: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Request:
    """A sequence to be continued. Requests with one `group` begin with the same prompt."""

    id: str
    tokens_T: np.ndarray  # int32: the prompt, and what was written before an interruption
    sampling: Sampling
    key: SampleKey
    group: str | None = None
    num_written: int = 0  # of its last tokens: written before; a stop string may begin there


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Completion:
    """What an engine added to a request. C is the number of new tokens."""

    id: str
    tokens_C: np.ndarray  # int32, the stop token included where one was chosen
    logprobs_C: np.ndarray  # float32
    version_C: np.ndarray  # int32
    ending: Ending
    # as a sample's, of the request's tokens and the new ones; None: it was not asked to record
    experts_TLk: np.ndarray | None = None
    matched: str | int | None = None  # the stop string or stop token that ended it
    num_cached: int = 0  # tokens of the request whose keys and values were there already
    error: str | None = None

    @classmethod
    def empty(cls, id: str, ending: Ending, error: str | None = None) -> "Completion":
        """One with nothing new."""
        return cls(
            id=id,
            tokens_C=np.zeros(0, np.int32),
            logprobs_C=np.zeros(0, np.float32),
            version_C=np.zeros(0, np.int32),
            ending=ending,
            error=error,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """What an engine is doing now."""

    version: int
    num_running: int = 0
    num_waiting: int = 0
    num_cache_blocks: int = 0
    num_free_blocks: int = 0
    num_generated_tokens: int = 0  # since the start
    num_prefill_tokens: int = 0
    num_cached_tokens: int = 0
    is_asleep: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rollout:
    """What one round of sampling gave: the groups to train on, in order of their prompts."""

    step: int
    groups: tuple[Group, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    dropped: tuple[Group, ...] = ()  # judged, and not kept


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluation:
    """What one evaluation gave: numbers, and the answers behind them by set name."""

    metrics: Mapping[str, float]
    groups: Mapping[str, tuple[Group, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepStats:
    """What the trainer reports of one rollout: a row of metrics for each optimizer step."""

    rows: tuple[Mapping[str, float], ...]
    num_tokens: int
    seconds: Mapping[str, float] = field(default_factory=dict)
