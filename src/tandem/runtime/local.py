"""Every stage in one process: a laptop, one GPU, a test, a debugger."""

from contextlib import ExitStack
from functools import partial

import torch

from tandem.config import Config
from tandem.contracts import Sync
from tandem.engine.torch.engine import TorchEngine
from tandem.errors import ConfigError
from tandem.loop import Stages
from tandem.models.build import dtype_of
from tandem.models.decoder import Decoder
from tandem.parallel import Mesh
from tandem.rollout import EventLoop
from tandem.runtime.algorithm import teacher_parts
from tandem.runtime.building import Halves, Known, build_stages, device_of, dtype_name
from tandem.runtime.devices import build_devices, make_room_on
from tandem.runtime.halves import FirstOnly, IdleTrainer
from tandem.runtime.servers import build_server_sync, place_of, server_devices, with_servers
from tandem.runtime.weights import policy_decoder, reference_parts
from tandem.sync import CopiedSync, SharedSync
from tandem.train import LocalTrainer, build_trainer, layout_of
from tandem.train.build import recompute_of
from tandem.train.fit import check_fit, training_bytes


def build(cfg: Config, events: EventLoop, stack: ExitStack) -> tuple[Stages, Config]:
    """Every stage of a run in this process, and the configuration once the prompts are counted.

    What must be closed at the end is pushed on `stack`.
    """
    return build_stages(cfg, events, stack, partial(build_halves, device_of(cfg)))


def build_halves(device: torch.device, cfg: Config, known: Known, stack: ExitStack) -> Halves:
    """Trainer and engine of one process, which share the policy's weights; raises ConfigError.

    An engine that samples while the trainer learns has weights of its own, so that no token is
    ever chosen by weights that are half moved.
    """
    has_servers = cfg.engine.rollout_engine == "sglang" and not cfg.debug.debug_train_only
    shares_weights = cfg.sync.asynchronous == "off" and not has_servers
    if device.type == "cuda" and cfg.sync.asynchronous != "off" and not has_servers:
        raise ConfigError(
            "train_async.py in one process on a GPU: trainer and engine would take turns on it, "
            "and nothing would be gained; start train.py, or give the engines devices of their "
            "own (--rollout-num-gpus, which takes Ray), or set --device cpu"
        )
    if has_servers:
        return beside_servers(cfg, known, device, stack)
    decoder, trainer = build_policy(cfg, known, device)
    make_room_on(device, cfg, known, trainer)
    sampled = decoder if shares_weights else twin(decoder, device)
    engine = build_engine(cfg, sampled, known, device, stack)
    return Halves(
        trainer=trainer,
        layout=trainer.layout,
        engine=engine,
        holds=engine,
        sync=build_sync(cfg, engine, decoder),
        devices=build_devices(cfg, engine, trainer, device),
        dtype=dtype_name(decoder),
    )


def beside_servers(cfg: Config, known: Known, device: torch.device, stack: ExitStack) -> Halves:
    """The trainer of this process, and SGLang servers that sample."""
    dtype = str(dtype_of(cfg.model.dtype, device)).removeprefix("torch.")
    place = place_of(cfg, device, dtype, known.opened.held_out)

    def built() -> LocalTrainer | IdleTrainer:
        _, trainer = build_policy(cfg, known, device)
        if place.shares_device:
            make_room_on(device, cfg, known, trainer)
        return trainer

    trainer, engine = with_servers(cfg, place, stack, built)
    sync = build_server_sync(cfg, engine, trainer, place.dtype)
    return Halves(
        trainer=trainer,
        layout=trainer.layout,
        engine=engine,
        holds=None,
        sync=FirstOnly(sync) if cfg.debug.debug_rollout_only else sync,
        devices=server_devices(engine, place, trainer),
        dtype=place.dtype,
    )


def build_policy(
    cfg: Config, known: Known, device: torch.device
) -> tuple[Decoder, LocalTrainer | IdleTrainer]:
    """The policy and its trainer, or one that learns nothing."""
    decoder = policy_decoder(cfg, known.opened.shape, known.found, device)
    if cfg.debug.debug_rollout_only:
        return decoder, IdleTrainer(decoder, layout_of(decoder, cfg.batch))
    return decoder, build_learner(cfg, decoder, known, device)


def build_learner(
    cfg: Config, decoder: Decoder, known: Known, device: torch.device
) -> LocalTrainer:
    """The trainer of `decoder`, with the other models that the algorithm wants."""
    shape = known.opened.shape
    if device.type == "cuda" and not cfg.algo.lora_rank:
        recompute = recompute_of(cfg.parallel, shape.num_layers)
        row_tokens = cfg.batch.max_tokens_per_gpu or 0
        needs = training_bytes(shape, cfg.optim, row_tokens=row_tokens, recompute=recompute)
        check_fit(needs, torch.cuda.mem_get_info(device)[1])
    return build_trainer(
        cfg,
        decoder,
        reference_parts(cfg, shape, device, Mesh()),
        num_rollout=known.num_rollout,
        teacher=teacher_parts(cfg, shape, device, Mesh()),
        hooks=known.hooks,
    )


def build_sync(cfg: Config, engine: TorchEngine | None, decoder: Decoder) -> Sync:
    """What publishes weights to the engine, if there is one."""
    carrier = SharedSync if cfg.sync.asynchronous == "off" else CopiedSync
    sync = carrier([] if engine is None else [engine], dtype=dtype_name(decoder))
    return FirstOnly(sync) if cfg.debug.debug_rollout_only else sync


def twin(decoder: Decoder, device: torch.device) -> Decoder:
    """Another decoder of the same shape; the first weight update fills it."""
    return Decoder(decoder.shape, decoder.head_weight.dtype, device).requires_grad_(False)


def build_engine(
    cfg: Config, decoder: Decoder, known: Known, device: torch.device, stack: ExitStack
) -> TorchEngine | None:
    """The embedded engine, which samples with `decoder`; None where none is wanted."""
    if cfg.debug.debug_train_only:
        return None
    shape, tokenizer = known.opened.shape, known.opened.tokenizer
    engine = TorchEngine(
        decoder,
        tokenizer,
        cfg.engine,
        device,
        shape.eos_token_ids,
        records_experts=cfg.algo.use_rollout_routing_replay,
    )
    stack.callback(engine.close)
    return engine
