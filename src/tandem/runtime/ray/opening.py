"""Engines in processes: who is in which, built together, and built again when one is lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from tandem.runtime.ray.calls import gather
from tandem.runtime.ray.carriers import carrier_of
from tandem.runtime.ray.crew import Crew
from tandem.runtime.ray.engine import check_engine
from tandem.runtime.ray.engines import EngineFleet
from tandem.runtime.ray.line import Line
from tandem.runtime.ray.placement import Placement
from tandem.runtime.ray.rank import Recipe, Seat
from tandem.runtime.ray.trainers import TrainerFleet
from tandem.runtime.ray.watch import Watch


@dataclass(frozen=True, slots=True)
class Parts:
    """What the processes of a run are made from."""

    placement: Placement
    recipe: Recipe
    crew: Crew
    watch: Watch


@dataclass(frozen=True, slots=True)
class Opening:
    """Builds engines in processes that are there."""

    recipe: Recipe
    version: int
    watch: Watch

    def open(self, engines: Sequence[Sequence[str]], handles: Mapping[str, Any]) -> None:
        """One engine over the processes of each of these lists of names, all at once."""
        names, refs = [], []
        for members in engines:
            first, size = handles[members[0]], len(members)
            address = ray.get(first.free_address.remote()) if size > 1 else ""
            for rank, name in enumerate(members):
                seat = Seat(rank=rank, size=size, address=address)
                names.append(name)
                refs.append(handles[name].open_engine.remote(self.recipe, self.version, seat))
        gather(refs, names, "start", self.watch)
        for members in engines:
            for name in members[1:]:
                self.watch.bind(name, handles[members[0]])


def build_engines(parts: Parts, trainers: TrainerFleet | None) -> EngineFleet:
    """Engines in the ranks' processes, as far as they share devices, or in their own."""
    recipe, placement = parts.recipe, parts.placement
    cfg = recipe.cfg
    check_engine(recipe.shape, cfg.cluster.rollout_num_gpus_per_engine)
    version = cfg.data.start_rollout_id
    opening = Opening(
        recipe, recipe.found.start_rollout_id if version is None else version, parts.watch
    )
    ranks = {} if trainers is None else trainers.by_name
    shared = _members_among_ranks(placement)
    opening.open(list(shared.values()), ranks)
    own, devices = members_apart(placement)
    workers = dict(zip(devices, parts.crew.start(devices, trains=False), strict=True))
    opening.open(list(own.values()), workers)

    def replaced(name: str) -> Any:
        handles = dict(zip(own[name], parts.crew.replace(own[name]), strict=True))
        opening.open([own[name]], handles)
        return handles[name]

    bucket_bytes = cfg.sync.update_weight_buffer_size

    def newest() -> tuple[int, list[Any]]:
        assert trainers is not None, "newer weights, and nobody who trains"
        return trainers.newest(bucket_bytes)

    by_folder = cfg.sync.update_weight_transport == "disk"
    is_lent = trainers is not None and trainers.lends and not by_folder
    gives = trainers is None or not trainers.lends or trainers.is_whole
    return EngineFleet(
        [
            *(
                Line(name, ranks[name], has_rank=True, shares=is_lent, gives=gives)
                for name in shared
            ),
            *(Line(name, workers[name], has_rank=False, shares=False, gives=True) for name in own),
        ],
        parts.watch,
        replace=replaced,
        carrier=None if trainers is None else carrier_of(cfg, trainers),
        export=lambda v: None if trainers is None else trainers.export(v, bucket_bytes),
        newest=newest,
        bucket_bytes=bucket_bytes,
        version=opening.version,
    )


def _members_among_ranks(placement: Placement) -> dict[str, list[str]]:
    """The ranks that each engine on shared devices runs in, by the first of them."""
    return {
        f"trainer rank {devices.start}": [f"trainer rank {device}" for device in devices]
        for devices in placement.engines
        if devices.start < placement.num_trainers
    }


def members_apart(placement: Placement) -> tuple[dict[str, list[str]], dict[str, int]]:
    """The processes of each engine on devices of its own, by the first one's name, and the device
    of every process."""
    members: dict[str, list[str]] = {}
    at: dict[str, int] = {}
    for number, devices in enumerate(placement.engines):
        if devices.start < placement.num_trainers:
            continue
        first = f"engine {number}"
        members[first] = [first, *(f"{first} rank {rank}" for rank in range(1, len(devices)))]
        at.update(zip(members[first], devices, strict=True))
    return members, at
