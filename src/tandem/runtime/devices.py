"""Whose turn it is on the device of one process."""

from functools import partial

import torch

from tandem.config import Config
from tandem.engine.torch.engine import TorchEngine
from tandem.loop import Devices
from tandem.observe import get_logger
from tandem.runtime.building import Known
from tandem.runtime.halves import IdleTrainer
from tandem.runtime.room import Room, make_room, room_of
from tandem.runtime.turns import Memory, Turns, afresh, least_memory_of, memory_of
from tandem.train import LocalTrainer

log = get_logger("run")


def make_room_on(
    device: torch.device, cfg: Config, known: Known, trainer: LocalTrainer | IdleTrainer
) -> None:
    """Does what `make_room` says, for engines or servers on the trainer's device."""
    if isinstance(trainer, IdleTrainer):
        return
    has_weights = cfg.engine.rollout_engine == "sglang"
    look = partial(_look, trainer, device)
    make_room(cfg, known, trainer, look, device.type, has_weights=has_weights)


def build_devices(
    cfg: Config,
    engine: TorchEngine | None,
    trainer: LocalTrainer | IdleTrainer,
    device: torch.device,
) -> Devices:
    """The turns of a trainer and its engine; caches sleep on a GPU alone."""
    if engine is None:
        return Devices()
    if isinstance(trainer, IdleTrainer):
        return Devices(sampling=partial(afresh, engine))
    is_told = not cfg.origins.get("offload_rollout", "derived").startswith("derived")
    stays = is_told and not cfg.cluster.offload_rollout
    return Turns(
        trainer,
        engine,
        log.info,
        measure=partial(_measure, device),
        least=partial(_least, device),
        caches_sleep=device.type == "cuda" and not stays,
        moves_state=trainer.is_asleep,
    ).devices()


def _look(trainer: LocalTrainer, device: torch.device) -> list[Room]:
    return [room_of(trainer, device)]


def _measure(device: torch.device) -> list[Memory]:
    return [memory_of(device)]


def _least(device: torch.device) -> list[Memory]:
    return [least_memory_of(device)]
