"""All ranks of the trainer as one."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from tandem.engine.sglang.launch import Place
from tandem.engine.sglang.server import Address
from tandem.errors import TandemError
from tandem.parallel import Layout
from tandem.runtime.ray.calls import gather
from tandem.runtime.ray.rank import Proofs, Recipe, Seat
from tandem.runtime.ray.watch import Watch
from tandem.runtime.ray.worker import RankFacts
from tandem.runtime.room import Room
from tandem.runtime.turns import Memory
from tandem.sync.check import of_ranks
from tandem.types import Batch, Digests, Group, StepStats, Weights


class TrainerFleet:
    """Implements `contracts.Trainer` over a process for each rank.

    Every rank gets every call; of a step's batches each gets those of its data rank. A rank that
    dies or fails ends the run with an error that names it.
    """

    def __init__(
        self,
        workers: Sequence[Any],
        names: Sequence[str],
        recipe: Recipe,
        watch: Watch,
    ) -> None:
        """Ranks in these processes, once all have met."""
        self.workers, self._names, self._watch = tuple(workers), list(names), watch
        self.by_name = dict(zip(names, self.workers, strict=True))
        self._version: int | None = None  # of the weights as they are, once that was said
        self._num_learned = 0  # rollouts behind the weights, once every call so far is done
        # ranks that work together want their calls in one order, and a repair of engines exports
        self._order = threading.Lock()
        self.is_asleep = False  # the optimizers' state waits in host memory
        self._is_lost = False  # a rank died or failed: the others may wait for it forever
        address = ray.get(workers[0].free_address.remote())
        seats = [
            Seat(rank=rank, size=len(workers), address=address) for rank in range(len(workers))
        ]
        refs = [
            worker.open_rank.remote(recipe, seat)
            for worker, seat in zip(workers, seats, strict=True)
        ]
        facts: list[RankFacts] = self.answers(refs, "start")
        self._data_ranks = [one.layout.data_rank or 0 for one in facts]
        self.layout: Layout = replace(facts[0].layout, data_rank=None)
        self.is_whole = facts[0].is_whole
        self.lends = facts[0].lends
        self._num_parts = recipe.cfg.cluster.rollout_num_gpus_per_engine  # that it lends

    def annotate(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """The groups with the log-probs and values that the algorithm asks for, no more."""
        columns = self._call("annotate", ray.put(tuple(groups)))[0]
        return tuple(
            replace(group, **{name: column[place] for name, column in columns.items()})
            for place, group in enumerate(groups)
        )

    def step_on(self, steps: Sequence[Sequence[Batch]]) -> StepStats:
        """One optimizer step for each inner list of batches, those of data rank 0 first."""
        size = self.layout.data_size
        shares = [
            ray.put([list(batches[_share(len(batches), size, rank)]) for batches in steps])
            for rank in range(size)
        ]
        with self._order:
            self._version = None
            self._num_learned += 1
            refs = [
                worker.learn.remote("step_on", shares[data_rank])
                for worker, data_rank in zip(self.workers, self._data_ranks, strict=True)
            ]
        stats: StepStats = self.answers(refs, "step_on")[0]
        num_tokens = sum(batch.num_tokens for batches in steps for batch in batches)
        return replace(stats, num_tokens=num_tokens)

    def weights(self, version: int) -> Weights:
        """The proofs of weights that lie in the ranks; `sync` fetches the tensors themselves.

        Digests of weights that ranks gather are to be read when engines have the weights, so that
        they are gathered once; those of parts are of the ranks whose weights make a whole model.
        """
        proofs: Proofs = self._call("prove", version)[0]
        self._version = self._num_learned = version
        if proofs.digests is not None:
            return Weights(
                version=version,
                named=(),
                is_shared=True,
                digests=proofs.digests,
                canary=proofs.canary,
            )
        return Weights(
            version=version,
            named=(),
            digests=Digests(lambda: self._call("digests", version)[0]),
            parts=Digests(lambda: of_ranks(self._parts(version))),
            canary=proofs.canary,
        )

    def _parts(self, version: int) -> list[Mapping[str, int]]:
        """What the ranks of the first engine among them say of what they store."""
        ranks = self.workers[: self._num_parts]
        return self.answers(
            [rank.learn.remote("parts_digests", version) for rank in ranks], "digests"
        )

    def export(self, version: int, bucket_bytes: int) -> list[Any] | None:
        """References to buckets of all weights; None if they are not `version` any more."""
        with self._order:
            if version != self._version:
                return None
            refs = self._export(version, bucket_bytes)
        return self.answers(refs, "export weights")[0]

    def newest(self, bucket_bytes: int) -> tuple[int, list[Any]]:
        """The version of the weights after the step under way, if there is one, and references to
        buckets of them; may be called while another thread waits for that step."""
        with self._order:
            version = self._num_learned
            proofs = [worker.learn.remote("prove", version) for worker in self.workers]
            refs = self._export(version, bucket_bytes)
        self.answers(proofs, "prove")
        return version, self.answers(refs, "export weights")[0]

    def _export(self, version: int, bucket_bytes: int) -> list[Any]:
        return [self.workers[0].export_rank.remote(version, bucket_bytes), *self._walks(version)]

    def start_export(self, verb: str, version: int, *arguments: Any) -> list[Any]:
        """Calls to the first rank, which sends the weights so, and to those that give it parts."""
        with self._order:
            return [
                self.workers[0].learn.remote(verb, version, *arguments),
                *self._walks(version),
            ]

    def first(self, verb: str, *arguments: Any) -> Any:
        """What the first rank says."""
        return self.answers([self.workers[0].learn.remote(verb, *arguments)], verb)[0]

    def _walks(self, version: int) -> list[Any]:
        if self.is_whole:
            return []
        return [worker.learn.remote("walk", version) for worker in self.workers[1:]]

    def send(self, shares: Mapping[int, Sequence[Address]], version: int, place: Place) -> None:
        """Sends the weights of this version to SGLang servers, each rank to its share of them;
        raises EngineError."""
        self._call("send", dict(shares), version, place)

    def save(
        self, root: Any, iteration: int, extra: Mapping[str, Any], *, with_optimizer: bool = True
    ) -> Path:
        """The folder that all ranks wrote; every host must see it under the same path."""
        return self._call("save", str(root), iteration, dict(extra), with_optimizer)[0]

    def finish_saves(self) -> None:
        """Returns when every save of every rank is on the disk, if all ranks are alive."""
        if not self._is_lost and not self._watch.dead().keys() & self.by_name.keys():
            self._call("finish_saves")

    def save_hugging_face(self, folder: Any, origin: Any) -> None:
        """Has the first rank write the policy, of which all give their parts."""
        self._call("save_hugging_face", str(folder), str(origin))

    def load(self, root: Any, iteration: int | None = None) -> Mapping[str, Any]:
        """The other rooms' `extra`, after everything that `save` wrote is back in place."""
        return self._call("load", str(root), iteration)[0]

    def load_weights(self, root: Any, iteration: int | None = None) -> Mapping[str, Any]:
        """The same where the models alone are taken."""
        return self._call("load_weights", str(root), iteration)[0]

    def state_digests(self) -> list[Mapping[str, int]]:
        """Of each rank, the digest of every tensor that it saves."""
        return self._call("state_digest")

    def rooms(self) -> list[Room]:
        """What each rank sees of its device and host."""
        return self._call("room")

    def least_memories(self) -> list[Memory]:
        """What was free of each rank's device when the rank held most of it."""
        return self._call("least_memory")

    def trim(self) -> None:
        """Gives back what the ranks hold of their devices and do not use."""
        self._call("trim")

    def sleep(self) -> None:
        """Has the optimizers' state wait in host memory."""
        self._call("sleep")
        self.is_asleep = True

    def wake(self) -> None:
        """Has it come back."""
        self._call("wake")
        self.is_asleep = False

    def _call(self, verb: str, *arguments: Any) -> list[Any]:
        with self._order:
            refs = [worker.learn.remote(verb, *arguments) for worker in self.workers]
        return self.answers(refs, verb)

    def answers(self, refs: Sequence[Any], verb: str) -> list[Any]:
        """What the ranks said; raises the fault that explains the others."""
        try:
            return gather(refs, self._names, verb, self._watch)
        except TandemError:
            self._is_lost = True
            raise


def _share(count: int, size: int, rank: int) -> slice:
    """Where one data rank's batches lie among those of all."""
    assert count % size == 0, f"{count} batches do not divide over {size} data ranks"
    each = count // size
    return slice(rank * each, (rank + 1) * each)
