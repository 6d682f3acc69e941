from dataclasses import replace

import pytest

from tandem.config import BatchConfig, Config, DataConfig, OptimConfig, ParallelConfig
from tandem.models.decoder import Recompute
from tandem.models.shape import forward_flops
from tandem.packing import pack
from tandem.train import build_trainer, layout_of
from tandem.train.build import recompute_of


def rates(decoder, groups, **batch):
    """The learning rate of each step of two rollouts in a run of two."""
    cfg = Config(
        data=DataConfig(rollout_batch_size=2, n_samples_per_prompt=4),
        batch=BatchConfig(**batch),
        optim=OptimConfig(lr=1.0, lr_decay_style="linear"),
    )
    cfg = replace(cfg, algo=replace(cfg.algo, loss_type="sft_loss"))
    trainer = build_trainer(cfg, decoder, None, num_rollout=2)
    found = []
    for _ in range(2):
        rows = trainer.step_on(pack(groups, trainer.layout, cfg.batch, cfg.algo)).rows
        found += [row["lr-pg_0"] for row in rows]
    return found


def test_the_schedule_ends_with_the_run_however_many_steps_that_is(make_decoder, make_groups):
    assert rates(make_decoder(), make_groups(2)) == [1.0, 0.5]
    in_fours = rates(make_decoder(), make_groups(2), global_batch_size=4)
    assert in_fours == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_rows_on_the_cpu_are_not_padded_and_cost_what_the_model_says(make_decoder):
    decoder = make_decoder()
    layout = layout_of(decoder, BatchConfig())
    assert layout.row_multiple == 1
    assert layout.sequence_cost(17) == forward_flops(decoder.shape, 17)


def test_recompute_flags_become_what_the_decoder_takes():
    assert recompute_of(ParallelConfig(), 4) is None
    selective = ParallelConfig(recompute_granularity="selective")
    assert recompute_of(selective, 4) == Recompute(granularity="selective")
    full = ParallelConfig(recompute_granularity="full")
    assert recompute_of(full, 4) == Recompute(method="uniform", num_layers=1)
    block = replace(full, recompute_method="block", recompute_num_layers=9)
    assert recompute_of(block, 4) == Recompute(method="block", num_layers=4)
