"""What cannot work is refused, with what to do."""

import pytest

from tandem.config import (
    AlgoConfig,
    Config,
    EngineConfig,
    check,
    check_files,
)
from tandem.config.fields import knobs
from tandem.config.not_yet import ROWS
from tandem.config.ranges import RANGES
from tandem.errors import ConfigError


@pytest.fixture
def refusals(read):
    return lambda line: read(line)[1]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--rollout-temperature 0", "--rollout-temperature 0.0: wanted a number above 0"),
        ("--rollout-temperature nan", "--rollout-temperature"),
        ("--rollout-top-p 0", "--rollout-top-p 0.0: wanted above 0 and at most 1"),
        ("--rollout-top-k 0", "--rollout-top-k 0: wanted -1 (all) or 1 or more"),
        ("--rollout-batch-size 0", "--rollout-batch-size 0: wanted 1 or more"),
        ("--n-samples-per-prompt -3", "--n-samples-per-prompt -3: wanted 1 or more"),
        ("--lr nan", "--lr nan: wanted 0 or more"),
        ("--lr inf", "--lr inf: wanted 0 or more"),
        ("--adam-beta2 1", "--adam-beta2 1.0: wanted 0 or more and below 1"),
        ("--num-rollout -1", "--num-rollout -1: wanted 0 or more"),
        ("--global-batch-size 5", "--global-batch-size 5 does not divide"),
        ("--global-batch-size 5", "try 4"),
        ("--num-steps-per-rollout 5", "--num-steps-per-rollout 5 does not divide"),
        (
            "--num-steps-per-rollout 2 --global-batch-size 8",
            "--num-steps-per-rollout 2 x --global-batch-size 8 is not --rollout-batch-size 4",
        ),
        ("--use-dynamic-batch-size", "--use-dynamic-batch-size needs --max-tokens-per-gpu"),
        ("--balance-by-flops", "--balance-by-flops needs --use-dynamic-batch-size"),
        ("--over-sampling-batch-size 2", "is less than --rollout-batch-size 4; set at least 4"),
        (
            "--rollout-max-context-len 10 --rollout-max-prompt-len 10",
            "leaves no room for a response",
        ),
        ("--rm-type maths", "--rm-type maths: wanted one of deepscaler, math,"),
        ("--rm-type ifbench", "--custom-rm-path"),
        ("--rm-type remote_rm", "--rm-type remote_rm needs --rm-url"),
        ("--group-rm", "--group-rm needs --custom-rm-path"),
        ("--kl-coef 0.1 --kl-loss-coef 0.1", "--kl-coef and --kl-loss-coef are both set"),
        ("--eps-clip-c 1", "--eps-clip-c 1.0: wanted a number above 1"),
        ("--advantage-estimator reinforce_plus_plus", "needs --normalize-advantages"),
        ("--use-rollout-logprobs --use-tis", "exclude each other"),
        ("--use-routing-replay --keep-old-actor", "exclude each other"),
        (
            "--use-rollout-routing-replay --custom-generate-function-path a.b",
            "--use-rollout-routing-replay beside --custom-generate-function-path: not yet",
        ),
        (
            "--moe-aux-loss-coeff 0.1 --moe-router-load-balancing-type seq_aux_loss",
            "seq_aux_loss: not yet",
        ),
        ("--moe-aux-loss-coeff -1", "--moe-aux-loss-coeff -1.0: wanted 0 or more"),
        ("--loss-type custom_loss", "needs --custom-loss-function-path"),
        ("--use-opd", "--use-opd needs --opd-type"),
        ("--use-opd --opd-type megatron", "needs --opd-teacher-load"),
        ("--use-opd --opd-type sglang --opd-teacher-load t", "leave --opd-teacher-load out"),
        ("--opd-teacher-load t", "--opd-teacher-load needs --use-opd"),
        ("--eval-interval 5", "--eval-interval needs --eval-prompt-data or --eval-config"),
        ("--num-rollout 0", "--num-rollout 0 evaluates only"),
        ("--eval-prompt-data a.jsonl --eval-temperature -1", "evaluation set aime: temperature -1"),
        ("--eval-prompt-data a b c", "wanted `name path` pairs"),
        ("--eval-prompt-data a b a c", "two evaluation sets are named a"),
        ("--min-lr 1", "--min-lr 1.0 is above --lr"),
        ("--lr-warmup-iters 2 --lr-warmup-fraction 0.1", "leave one out"),
        ("--only-train-params-name-list a --freeze-params-name-list b", "exclude each other"),
        ("--use-stateless-adam", "--use-stateless-adam needs --no-save-optim"),
        ("--exp-avg-dtype bf16", "need --use-precision-aware-optimizer"),
        ("--lora-rank 4 --freeze-params-name-list a", "--lora-rank trains adapters alone"),
        (
            "--lora-rank 4 --actor-num-gpus-per-node 2 --tensor-model-parallel-size 2",
            "--lora-rank trains adapters of whole matrices",
        ),
        (
            "--advantage-estimator ppo --actor-num-gpus-per-node 2 "
            "--pipeline-model-parallel-size 2",
            "has a critic, which is not divided into stages",
        ),
        ("--save-interval 5", "--save-interval needs --save"),
        ("--update-weight-transport disk", "needs --update-weight-disk-dir"),
        ("--update-weight-mode delta", "--update-weight-mode delta needs"),
        ("--release-train", "--release-train needs --save"),
        (
            "--debug-rollout-only --debug-train-only --load-debug-rollout-data a",
            "exclude each other",
        ),
        ("--debug-train-only", "starts no engine"),
        ("--save-debug-rollout-data a --save-debug-train-data a", "name the same files"),
        ("--runtime local --actor-num-gpus-per-node 2", "one process on one device"),
        ("--runtime local --rollout-num-gpus 1", "add --colocate"),
        ("--runtime ray", "--runtime ray needs --rollout-num-gpus"),
        ("--heartbeat-timeout 0", "wanted above 0"),
        ("--load-debug-rollout-data a --load-forge-rollout-data a", "leave one of them out"),
        ("--load-debug-rollout-data-subsample 0.5", "needs --load-debug-rollout-data"),
        ("--custom-model-provider-path a.b", "the model is that of --hf-checkpoint"),
        ("--custom-megatron-init-path a.b", "Megatron's model, optimizer or process groups"),
    ],
)
def test_what_cannot_work_is_refused(line, wanted, refusals):
    assert any(wanted in failure for failure in refusals(line))


@pytest.mark.parametrize(
    "line",
    [
        "--rollout-top-p 0.9",
        "--prefill-num-servers 2",
        "--fp8-format e4m3",
        "--multi-latent-attention",
    ],
)
def test_what_is_to_come_is_refused_with_not_yet(line, refusals):
    (failure,) = refusals(line)
    assert failure.startswith(line.split()[0]) and "not yet" in failure


def test_sglang_servers_are_not_sent_changes_yet(refusals):
    line = (
        "--rollout-engine sglang --update-weight-transport disk --update-weight-disk-dir a "
        "--update-weight-local-checkpoint-dir b --update-weight-mode delta"
    )
    assert ["not yet" in failure for failure in refusals(line)] == [True, True]


def test_every_default_of_ours_is_fine():
    assert not any("not yet" in failure for failure in check(Config()))


def test_every_row_to_come_names_settings():
    for row in ROWS:
        assert set(row.names.split()) <= set(knobs())


def test_every_range_names_settings_and_each_setting_has_one_range():
    ranged = [name for _, names in RANGES for name in names.split()]
    assert set(ranged) <= set(knobs())
    assert len(set(ranged)) == len(ranged)


def test_sections_stand_alone():
    assert AlgoConfig(eps_clip=0.1).eps_clip == 0.1
    assert EngineConfig().engine_block_size > 0


def test_a_custom_reward_may_have_any_name(refusals):
    assert refusals("--rm-type mine --custom-rm-path a.b") == ()
    assert refusals("--rm-type boxed_f1") == ()


def test_files_are_looked_for_apart(settings):
    cfg = settings("--eval-prompt-data x no.jsonl --use-kl-loss")
    with pytest.raises(ConfigError) as error:
        check_files(cfg)
    found = "\n".join(error.value.failures)
    for part in (
        "--hf-checkpoint model is no Hugging Face folder",
        "--prompt-data train.jsonl is not there",
        "evaluation set x: no.jsonl is not there",
        "--ref-load model is no folder",
    ):
        assert part in found


def test_files_that_are_there_pass(tmp_path, settings):
    (tmp_path / "config.json").write_text("{}")
    data = tmp_path / "a.jsonl"
    data.write_text("{}\n")
    check_files(settings(f"--hf-checkpoint {tmp_path} --prompt-data {data}@[0:4] --use-kl-loss"))


def test_a_table_of_another_kind_is_refused(tmp_path, settings):
    (tmp_path / "config.json").write_text("{}")
    data = tmp_path / "a.csv"
    data.write_text("")
    cfg = settings(f"--hf-checkpoint {tmp_path} --prompt-data {data}")
    with pytest.raises(ConfigError, match=r"wanted a \.jsonl or \.parquet file"):
        check_files(cfg)
