"""What follows from other settings."""

import pytest

from tandem.config import complete, load_config


def test_the_least_that_a_run_needs_passes(settings):
    cfg = settings()
    assert cfg.batch.global_batch_size == 32
    assert cfg.batch.num_steps_per_rollout == 1
    assert cfg.origins["lr_decay_iters"] == "derived from num_rollout and num_steps_per_rollout"
    assert "lr" not in cfg.origins
    assert cfg.origins["rm_type"] == "command line"


def test_steps_and_batch_size_follow_from_each_other(settings):
    assert settings("--num-steps-per-rollout 4").batch.global_batch_size == 8
    assert settings("--global-batch-size 16").batch.num_steps_per_rollout == 2
    assert settings("--num-steps-per-rollout 4").optim.lr_decay_iters == 24


def test_the_upper_clip_is_the_lower_one_unless_given(settings):
    assert settings("--eps-clip 0.3").algo.eps_clip_high == 0.3
    assert settings("--eps-clip-high 0.28").algo.eps_clip_high == 0.28


def test_a_group_of_one_has_no_standard_deviation(settings):
    assert settings("--n-samples-per-prompt 1").algo.disable_grpo_std_normalization
    assert not settings().algo.disable_grpo_std_normalization


def test_evaluation_inherits_from_training(settings):
    cfg = settings("--rollout-top-k 5 --eval-prompt-data x a.jsonl --eval-top-p=.7")
    (held_out,) = cfg.eval.eval_sets
    assert (held_out.top_k, held_out.top_p, held_out.max_response_len) == (5, 0.7, 64)
    assert held_out.rm_type is None  # a prompt's own metadata may still choose
    assert cfg.origins["eval_top_k"] == "derived from rollout_top_k"


def test_a_context_length_bounds_prompt_and_response(settings):
    cfg = settings("--rollout-max-context-len 100", without="--rollout-max-response-len 64")
    assert cfg.data.rollout_max_prompt_len == 99
    assert cfg.rollout.rollout_max_response_len == 99
    assert cfg.eval.eval_max_context_len == 100


def test_the_run_folder_is_the_save_folder_or_stable(settings):
    assert settings("--save out").observe.run_dir == "out"
    one, same, other = settings(), settings(), settings("--seed 5")
    assert one.observe.run_dir == same.observe.run_dir
    assert one.observe.run_dir.startswith("runs/model-")
    assert one.observe.run_dir != other.observe.run_dir


def test_the_reference_is_the_checkpoint_unless_given(settings):
    assert settings().checkpoint.ref_load == "model"
    assert settings("--ref-load r").checkpoint.ref_load == "r"


def test_full_recomputation_covers_every_layer_unless_told(settings):
    parallel = settings("--recompute-granularity full").parallel
    assert (parallel.recompute_method, parallel.recompute_num_layers) == ("uniform", 1)


def test_colocation_turns_both_offloads_on_unless_told(settings):
    cluster = settings("--colocate --no-offload-train").cluster
    assert (cluster.offload_train, cluster.offload_rollout) == (False, True)
    assert settings().cluster.offload_rollout is False


def test_slimes_own_defaults_are_what_runs_anyway(settings):
    cfg = settings("--rollout-function-path slime.rollout.sglang_rollout.generate_rollout")
    assert cfg.rollout.rollout_function_path is None


def test_supervised_training_needs_no_rewards_and_no_advantages(settings):
    cfg = settings(
        "--loss-type sft_loss --rollout-function-path slime.rollout.sft_rollout.generate_rollout",
        without="--rollout-max-response-len 64 --rm-type math",
    )
    assert cfg.rollout.rollout_function_path is None
    assert cfg.algo.disable_compute_advantages_and_returns


def test_an_evaluation_alone_needs_no_training_prompts():
    line = "--hf-checkpoint m --num-rollout 0 --eval-prompt-data a --eval-max-response-len 9"
    cfg = load_config(line.split())
    assert cfg.data.rollout_batch_size == 1
    assert cfg.eval.eval_sets[0].max_response_len == 9


def test_epochs_become_rollouts_once_prompts_are_counted(settings):
    cfg = settings("--num-epoch 3 --num-steps-per-rollout 2", without="--num-rollout 6")
    assert cfg.data.num_rollout is None and cfg.optim.lr_decay_iters is None
    done = complete(cfg, num_prompts=11)
    assert done.data.num_rollout == 6
    assert done.optim.lr_decay_iters == 12
    assert "num_epoch" in done.origins["num_rollout"]
    assert complete(settings(), num_prompts=3).data.num_rollout == 6


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("--num-epoch 2", "--num-epoch 2"),
        ("--colocate", "--colocate"),
        ("--sequence-parallel", "--sequence-parallel"),
        ("--tb-project-name x", "--tb-project-name x"),
        ("--kl-loss-coef 0.1", "--kl-loss-coef 0.1"),
        ("--sglang-attention-backend fa3", "--sglang-attention-backend fa3"),
        ("--router-policy cache_aware", "--router-policy cache_aware"),
        ("--balance-data", "--balance-data"),
        ("--use-fault-tolerance", "--use-fault-tolerance"),
        ("--distributed-backend nccl", "--distributed-backend nccl"),
        ("--rollout-num-gpus 1 --num-gpus-per-node 4", "--num-gpus-per-node 4"),
        ("--wandb-key s3cret", "--wandb-key"),
        ("--swiglu --group-query-attention", "--group-query-attention"),
    ],
)
def test_what_has_no_effect_is_said(words, flag, read):
    cfg, failures = read(words)
    assert not failures
    notes = [note for note in cfg.notes if flag in note]
    assert notes and "no effect, because" in notes[0]
    assert "s3cret" not in "".join(cfg.notes)


def test_asking_for_nothing_needs_no_remark(settings):
    assert settings("--kl-loss-coef 0.0").notes == ()


def test_functions_of_slime_that_are_shipped_here_become_ours(read):
    path = "slime.backends.megatron_utils.loss.icepop_function"
    cfg, _ = read(f"--use-tis --custom-tis-function-path {path}")
    assert cfg.algo.tis_function == "icepop" and cfg.algo.custom_tis_function_path is None
    folder = "slime.rollout.on_policy_distillation"
    cfg, _ = read(
        f"--custom-rm-path {folder}.reward_func "
        f"--custom-reward-post-process-path {folder}.post_process_rewards"
    )
    assert cfg.reward.custom_rm_path == "tandem.algo.teacher.ask_teacher"
    assert cfg.reward.custom_reward_post_process_path is None
