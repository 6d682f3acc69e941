"""Refusals of parallel sizes that the number of processes, or each other, rule out.

What the model rules out is said where its shape is known, by `models.part.refusals`.
"""

from collections.abc import Iterator

from tandem.config.config import Config
from tandem.config.fields import flag_of
from tandem.config.sections.learning import ParallelConfig


def splits(cfg: Config) -> Iterator[str]:
    """One sentence for every way in which the processes cannot be shared out as asked."""
    parallel, num_trainers = cfg.parallel, cfg.cluster.num_trainers
    tensor, pipeline = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    context, expert = parallel.context_parallel_size, parallel.expert_model_parallel_size
    expert_tensor = parallel.expert_tensor_parallel_size or tensor
    if min(tensor, pipeline, context, expert, expert_tensor, num_trainers) < 1:
        return  # said by the ranges
    model = tensor * pipeline * context
    if num_trainers % model:
        yield (
            f"--tensor-model-parallel-size {tensor} x --pipeline-model-parallel-size {pipeline} x "
            f"--context-parallel-size {context} = {model} does not divide {num_trainers} training "
            f"processes; set --actor-num-nodes x --actor-num-gpus-per-node to a multiple of {model}"
        )
    elif (num_trainers // pipeline) % (expert * expert_tensor):
        yield (
            f"--expert-model-parallel-size {expert} x --expert-tensor-parallel-size "
            f"{expert_tensor} = {expert * expert_tensor} does not divide the "
            f"{num_trainers // pipeline} training processes of a pipeline stage; set smaller ones"
        )
    if expert > 1 and tensor > 1 and not parallel.sequence_parallel:
        yield (
            "--expert-model-parallel-size beside --tensor-model-parallel-size needs "
            "--sequence-parallel: else every tensor rank would send the same tokens to the experts"
        )
    yield from _stages(parallel)
    if cfg.algo.has_critic and pipeline > 1:
        yield (
            f"--advantage-estimator {cfg.algo.advantage_estimator} has a critic, which is not "
            "divided into stages; set --pipeline-model-parallel-size 1"
        )
    if cfg.algo.lora_rank and max(tensor, pipeline, expert) > 1:
        yield (
            "--lora-rank trains adapters of whole matrices; set --tensor-model-parallel-size, "
            "--pipeline-model-parallel-size and --expert-model-parallel-size 1, and divide rows "
            "with --context-parallel-size"
        )


def _stages(parallel: ParallelConfig) -> Iterator[str]:
    uneven = ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
    virtual = ("num_layers_per_virtual_pipeline_stage", "num_virtual_stages_per_pipeline_rank")
    given = [name for name in (*uneven, *virtual) if getattr(parallel, name) is not None]
    for name in given:
        if parallel.pipeline_model_parallel_size == 1:
            yield f"{flag_of(name)} needs --pipeline-model-parallel-size 2 or more; leave it out"
    if all(name in given for name in virtual):
        yield (
            "--num-layers-per-virtual-pipeline-stage and --num-virtual-stages-per-pipeline-rank "
            "say the same in two ways; leave one of them out"
        )
    if any(name in given for name in uneven) and any(name in given for name in virtual):
        yield (
            "virtual stages are even: leave out --decoder-first-pipeline-num-layers and "
            "--decoder-last-pipeline-num-layers, or the flags of virtual stages"
        )
