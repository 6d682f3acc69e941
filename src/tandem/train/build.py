"""A trainer from a configuration."""

from functools import partial

from tandem.algo import NO_HOOKS, Hooks
from tandem.config import BatchConfig, Config, OptimConfig, ParallelConfig
from tandem.config.roles import optim_of
from tandem.models.decoder import Decoder, Recompute
from tandem.models.shape import forward_flops
from tandem.parallel import Layout
from tandem.train.critic import Critic, ValueModel
from tandem.train.descent import Descent
from tandem.train.lora import Adapters
from tandem.train.schedule import Schedule, schedule_of
from tandem.train.trainer import Beside, Learning, LocalTrainer


def build_trainer(
    cfg: Config,
    decoder: Decoder,
    reference: Decoder | None,
    *,
    num_rollout: int,
    teacher: Decoder | None = None,
    hooks: Hooks = NO_HOOKS,
) -> LocalTrainer:
    """A trainer of `decoder`, whose weights the caller has put there.

    `num_rollout` is the run's, known by now where it was given in epochs. `reference` and `teacher`
    are other decoders, there exactly if the algorithm wants them; the critic begins as a copy of
    the policy. Raises ConfigError.
    """
    optim = optim_of(cfg, "actor")
    learning = Learning(
        algo=cfg.algo,
        batch=cfg.batch,
        optim=optim,
        schedule=_schedule(cfg, optim, num_rollout),
        step_size=_step_size(cfg),
        layout=layout_of(decoder, cfg.batch),
        temperature=cfg.rollout.rollout_temperature,
        recompute=recompute_of(cfg.parallel, decoder.shape.num_layers),
        hooks=hooks,
    )
    beside = Beside(
        reference=reference,
        teacher=teacher,
        critic=_critic(cfg, decoder, num_rollout),
        adapters=_adapters(cfg, decoder),
    )
    return LocalTrainer(decoder, learning, beside=beside)


def layout_of(decoder: Decoder, cfg: BatchConfig) -> Layout:
    """One process's layout; on CUDA rows are padded, so that few shapes occur."""
    is_cuda = decoder.head_weight.is_cuda
    return Layout(
        row_multiple=cfg.data_pad_size_multiplier if is_cuda else 1,
        sequence_cost=partial(forward_flops, decoder.shape),
    )


def recompute_of(cfg: ParallelConfig, num_layers: int) -> Recompute | None:
    """What the recompute flags ask of the decoder; None: nothing.

    `selective` means the attention's scores, which no attention kernel here keeps anyway.
    """
    if cfg.recompute_granularity != "full":
        return None
    return Recompute(
        method=cfg.recompute_method or "uniform",
        num_layers=min(cfg.recompute_num_layers or 1, num_layers),
    )


def _critic(cfg: Config, policy: Decoder, num_rollout: int) -> Critic | None:
    if not cfg.algo.has_critic:
        return None
    optim = optim_of(cfg, "critic")
    model = ValueModel(policy)
    schedule = _schedule(cfg, optim, num_rollout)
    descent = Descent(
        model.named_parameters(), optim, schedule, _step_size(cfg), of="the critic's "
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
