"""A trainer from a configuration."""

from functools import partial

import torch
import torch.distributed as dist

from tandem.algo import NO_HOOKS, Hooks
from tandem.checkpoint.background import BackgroundSaves
from tandem.config import AlgoConfig, BatchConfig, Config, OptimConfig, ParallelConfig
from tandem.config.roles import optim_of
from tandem.errors import ConfigError
from tandem.models.build import dtype_of
from tandem.models.decoder import Decoder, Recompute
from tandem.models.part import parts_of
from tandem.models.shape import Shape, forward_flops
from tandem.parallel import Layout, Mesh, row_multiple
from tandem.train.critic import Critic, ValueModel
from tandem.train.descent import Descent
from tandem.train.freeze import freeze
from tandem.train.learning import Beside, Learning, Parts
from tandem.train.lora import Adapters
from tandem.train.schedule import Schedule, schedule_of
from tandem.train.trainer import LocalTrainer


def build_trainer(
    cfg: Config,
    decoder: Parts,
    reference: Parts | None,
    *,
    num_rollout: int,
    teacher: Parts | None = None,
    hooks: Hooks = NO_HOOKS,
) -> LocalTrainer:
    """A trainer of `decoder`, whose weights the caller has put there.

    On a mesh of several processes each calls this with the parts that it holds (`build_parts`), of
    the policy and of every other model. `num_rollout` is the run's, known by now where it was given
    in epochs. `reference` and `teacher` are there exactly if the algorithm wants them; the critic
    begins as a copy of the policy. Raises ConfigError.
    """
    optim = optim_of(cfg, "actor")
    parts = [decoder] if isinstance(decoder, Decoder) else decoder
    first = parts[0]
    freeze(parts, optim)
    _check_experts(cfg.algo, first.shape)
    learning = Learning(
        algo=cfg.algo,
        batch=cfg.batch,
        optim=optim,
        schedule=_schedule(cfg, optim, num_rollout),
        step_size=_step_size(cfg),
        layout=layout_of(first, cfg.batch),
        temperature=cfg.rollout.rollout_temperature,
        recompute=recompute_of(cfg.parallel, first.shape.num_layers),
        hooks=hooks,
    )
    beside = Beside(
        reference=reference,
        teacher=teacher,
        critic=_critic(cfg, first, num_rollout),
        adapters=_adapters(cfg, first),
    )
    saves = _background(first.part.mesh) if cfg.checkpoint.async_save else None
    return LocalTrainer(parts, learning, beside=beside, saves=saves)


def build_parts(cfg: Config, shape: Shape, mesh: Mesh, device: torch.device) -> tuple[Decoder, ...]:
    """What this process holds of a decoder of the run's model, a part for each of its stages.

    Its weights are not filled yet. Raises ConfigError when the model cannot be divided so.
    """
    dtype = dtype_of(cfg.model.dtype, device)
    return tuple(
        Decoder(shape, dtype, device, part) for part in parts_of(shape, mesh, cfg.parallel)
    )


def layout_of(decoder: Decoder, cfg: BatchConfig) -> Layout:
    """This process's place on the mesh; on CUDA rows are padded more, so that few shapes occur."""
    mesh = decoder.part.mesh
    padding = cfg.data_pad_size_multiplier if decoder.device.type == "cuda" else 1
    return Layout(
        data_rank=mesh.data.rank,
        data_size=mesh.data.size,
        context_size=mesh.context.size,
        row_multiple=padding * row_multiple(mesh),
        sequence_cost=partial(forward_flops, decoder.shape),
    )


def recompute_of(cfg: ParallelConfig, num_layers: int) -> Recompute | None:
    """What the recompute flags ask of the decoder; None: nothing."""
    if cfg.recompute_granularity is None:
        return None
    return Recompute(
        granularity=cfg.recompute_granularity,
        method=cfg.recompute_method or "uniform",
        num_layers=min(cfg.recompute_num_layers or 1, num_layers),
    )


def _background(mesh: Mesh) -> BackgroundSaves:
    """Saves in the background, on a group of their own where there are several processes."""
    if mesh.world.size == 1:
        return BackgroundSaves()
    return BackgroundSaves(dist.new_group(mesh.world.ranks, backend="gloo"))


def _check_experts(algo: AlgoConfig, shape: Shape) -> None:
    """Passes if the model has the experts that settings speak of; else ConfigError."""
    told = {
        "--use-routing-replay": algo.use_routing_replay,
        f"--moe-aux-loss-coeff {algo.moe_aux_loss_coeff}": algo.moe_aux_loss_coeff,
    }
    failures = [f"{flag}: this model has no experts; leave it out" for flag in told if told[flag]]
    if failures and shape.mixture is None:
        raise ConfigError(failures)


def _critic(cfg: Config, policy: Decoder, num_rollout: int) -> Critic | None:
    if not cfg.algo.has_critic:
        return None
    optim = optim_of(cfg, "critic")
    model = ValueModel(policy)
    schedule = _schedule(cfg, optim, num_rollout)
    descent = Descent(
        model.named_parameters(),
        optim,
        schedule,
        _step_size(cfg),
        spreads=model.spreads(),
        mesh=policy.part.mesh,
        of="the critic's ",
    )
    return Critic(model, descent, recompute_of(cfg.parallel, policy.shape.num_layers))


def _adapters(cfg: Config, decoder: Decoder) -> Adapters | None:
    if not cfg.algo.lora_rank:
        return None
    return Adapters(
        decoder,
        rank=cfg.algo.lora_rank,
        alpha=cfg.algo.lora_alpha,
        targets=cfg.algo.lora_target_modules,
        seed=cfg.debug.seed,
        origin=cfg.model.hf_checkpoint or "",
    )


def _rollout_size(cfg: Config) -> int:
    assert cfg.data.rollout_batch_size is not None, "resolve fills the rollout's size"
    return cfg.data.rollout_batch_size * cfg.data.n_samples_per_prompt


def _step_size(cfg: Config) -> int:
    return cfg.batch.global_batch_size or _rollout_size(cfg)


def _schedule(cfg: Config, optim: OptimConfig, num_rollout: int) -> Schedule:
    num_rollouts = num_rollout * _rollout_size(cfg)
    return schedule_of(optim, step_size=_step_size(cfg), num_rollouts=num_rollouts)
