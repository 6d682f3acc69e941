"""What the loop asks of each stage. Rooms import these protocols, never each other's classes."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tandem.types import (
    Batch,
    Completion,
    EngineStats,
    Evaluation,
    Group,
    Request,
    Rollout,
    StepStats,
    Weights,
)

if TYPE_CHECKING:
    import numpy as np
    import torch


class Attend(Protocol):
    """Attention of one forward pass, handed into the decoder: packed, paged, or what comes next."""

    def __call__(
        self, layer: int, q_TNH: "torch.Tensor", k_TKH: "torch.Tensor", v_TKH: "torch.Tensor", /
    ) -> "torch.Tensor":
        """The attended values, `[T, N, H]`; queries and keys come with position applied."""


class Engine(Protocol):
    """Samples tokens. Rollout code cannot tell which engine it holds."""

    def add(self, request: Request) -> Awaitable[Completion]:
        """A future of the request's completion; the request is queued before this returns."""

    async def abort(self, ids: Sequence[str] | None = None) -> None:
        """Ends the named requests, or all; their futures resolve with ABORT and partial tokens."""

    def update(self, weights: Weights) -> None:
        """Takes new weights; later tokens carry `weights.version`. Raises SyncError."""

    def sleep(self) -> None:
        """Gives its memory back; refuses while requests run."""

    def wake(self) -> None:
        """Makes it ready to sample again."""

    def stats(self) -> EngineStats: ...

    def state_digest(self, *, as_stored: bool = False) -> Mapping[str, int]:
        """A digest of every tensor it samples with, by Hugging Face name, or as it is stored."""

    def canary(self, tokens_T: "np.ndarray") -> "np.ndarray":
        """Log-probs of a fixed sequence through the path that samples, `[T]`, 0 at the first."""

    def close(self) -> None: ...


class EmbeddedEngine(Engine, Protocol):
    """An engine of this process, which can show its tensors themselves."""

    def tensors(self) -> "Mapping[str, torch.Tensor]":
        """Every tensor it samples with, in place, by the name under which it is stored."""


class Reward(Protocol):
    """Judges samples. A verdict that does not come leaves `reward` None."""

    async def score(self, group: Group, *, is_evaluation: bool = False) -> Group:
        """The group with every sample's `reward` and `verdict` filled."""

    def close(self) -> None: ...


class Filter(Protocol):
    """Decides whether a judged group is trained on."""

    def __call__(self, group: Group) -> str | None:
        """None to keep it, else the reason why it is dropped."""


class Source(Protocol):
    """Gives prompts, in an order that a checkpoint can restore."""

    def take(self, count: int) -> "Sequence[Any]":
        """The next `count` prompts (fewer never: it wraps to the next epoch)."""

    def state(self) -> Mapping[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Sampler(Protocol):
    """The rollout stage as the loop sees it."""

    def collect(self, step: int) -> Rollout: ...

    def state(self) -> Mapping[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Evaluator(Protocol):
    """Looks at held-out sets with the weights that the engine has now."""

    def evaluate(self) -> Evaluation: ...


class Trainer(Protocol):
    """Learns from groups and owns the weights."""

    def annotate(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """The groups with the log-probs and values that the algorithm asks for, no more."""

    def step_on(self, steps: Sequence[Sequence[Batch]]) -> StepStats:
        """One optimizer step for each inner list of batches."""

    def weights(self, version: int) -> Weights: ...

    def save(
        self, root: Any, iteration: int, extra: Mapping[str, Any], *, with_optimizer: bool = True
    ) -> Any:
        """The folder with model, optimizer, schedule and the other rooms' `extra`, whole or not."""

    def finish_saves(self) -> None:
        """Returns when every save is on the disk; raises what went wrong with one."""

    def save_hugging_face(self, folder: Any, origin: Any) -> None:
        """Writes the policy as a Hugging Face folder, with config and tokenizer of `origin`."""

    def load(self, root: Any, iteration: int | None = None) -> Mapping[str, Any]:
        """The other rooms' `extra`, after everything that `save` wrote is back in place."""


class Sync(Protocol):
    """Carries weights from the trainer to every engine: all of them or none."""

    def publish(self, weights: Weights) -> Mapping[str, float]:
        """Metrics of the update; raises SyncError naming the engines that missed it."""


class Sink(Protocol):
    """Takes numbers out of the run."""

    def write(self, row: Mapping[str, Any], *, step: int) -> None: ...

    def close(self) -> None: ...
