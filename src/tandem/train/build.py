"""A trainer from a configuration."""

from functools import partial

from tandem.config import BatchConfig, Config, ParallelConfig
from tandem.models.decoder import Decoder, Recompute
from tandem.models.shape import forward_flops
from tandem.parallel import Layout
from tandem.train.schedule import schedule_of
from tandem.train.trainer import Learning, LocalTrainer


def build_trainer(
    cfg: Config, decoder: Decoder, reference: Decoder | None, *, num_rollout: int
) -> LocalTrainer:
    """A trainer of `decoder`, whose weights the caller has put there.

    `num_rollout` is the run's, known by now where it was given in epochs. `reference` is another
    decoder, there exactly if the algorithm wants one. Raises ConfigError.
    """
    assert cfg.data.rollout_batch_size is not None, "resolve fills the rollout's size"
    rollout_size = cfg.data.rollout_batch_size * cfg.data.n_samples_per_prompt
    step_size = cfg.batch.global_batch_size or rollout_size
    schedule = schedule_of(cfg.optim, step_size=step_size, num_rollouts=num_rollout * rollout_size)
    learning = Learning(
        algo=cfg.algo,
        batch=cfg.batch,
        optim=cfg.optim,
        schedule=schedule,
        step_size=step_size,
        layout=layout_of(decoder, cfg.batch),
        temperature=cfg.rollout.rollout_temperature,
        recompute=recompute_of(cfg.parallel, decoder.shape.num_layers),
    )
    return LocalTrainer(decoder, learning, reference)


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
