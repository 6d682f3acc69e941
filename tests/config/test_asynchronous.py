"""What asynchronous training refuses and derives."""

import pytest

from tandem.config.overlap import uncorrected


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--update-weights-interval 2", "--update-weights-interval is for asynchronous training"),
        ("--max-staleness 2", "--max-staleness is for asynchronous training"),
        ("--asynchronous one-step --colocate", "--colocate and asynchronous training exclude"),
        ("--asynchronous full --colocate", "--colocate and asynchronous training exclude"),
        ("--asynchronous one-step --debug-rollout-only", "half a run cannot be asynchronous"),
        (
            "--asynchronous one-step --update-weights-interval 3 --max-staleness 1",
            "can never be kept with --update-weights-interval 3; set at least 2",
        ),
        ("--asynchronous full --max-staleness -1", "--max-staleness -1: wanted 0 or more"),
        ("--asynchronous full --partial-rollout", "no place for --partial-rollout"),
        ("--asynchronous full --rollout-function-path a.b", "no place for --rollout-function-path"),
        ("--asynchronous full --loss-type sft_loss", "no place for --loss-type sft_loss"),
        ("--asynchronous full --keep-old-actor", "--keep-old-actor keeps two versions"),
    ],
)
def test_what_cannot_overlap_is_refused(line, wanted, read):
    _, failures = read(line)
    assert [failure for failure in failures if wanted in failure], failures


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--asynchronous one-step --partial-rollout --keep-old-actor",
        "--asynchronous one-step --update-weights-interval 3 --max-staleness 2",
        "--asynchronous full --dynamic-sampling-filter-path a.b --max-staleness 0",
    ],
)
def test_the_rest_is_not(line, read):
    assert read(line)[1] == ()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", None),
        ("--asynchronous one-step", 1),
        ("--asynchronous one-step --update-weights-interval 3", 3),
        ("--asynchronous full", 2),
        ("--asynchronous full --max-staleness 5", 5),
    ],
)
def test_the_staleness_limit_follows_from_the_mode_and_the_interval(line, wanted, settings):
    assert settings(line).sync.max_staleness == wanted


def test_the_dialects_endless_rollout_function_is_a_mode(settings):
    path = "fully_async_rollout.generate_rollout_fully_async"
    cfg = settings(f"--asynchronous one-step --rollout-function-path {path}")
    assert cfg.sync.asynchronous == "full" and cfg.rollout.rollout_function_path is None
    assert cfg.eval.eval_function_path is None


@pytest.mark.parametrize(
    ("line", "is_said"),
    [
        ("", False),
        ("--asynchronous one-step", True),
        ("--asynchronous full --max-staleness 0", False),
        ("--asynchronous full --get-mismatch-metrics", True),
        ("--asynchronous full --use-tis", False),
        ("--asynchronous full --use-rollout-logprobs", False),
        ("--asynchronous full --use-rs --tis-function mis", False),
        ("--asynchronous full --use-opsm", False),
        ("--asynchronous one-step --keep-old-actor", False),
    ],
)
def test_stale_samples_that_nothing_corrects_for_are_warned_of(line, is_said, settings):
    said = uncorrected(settings(line))
    assert (said is not None) == is_said
    assert said is None or "--use-tis" in said
