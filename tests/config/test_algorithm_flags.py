"""What is said of algorithm flags that change nothing, or cannot work."""

import pytest


@pytest.fixture
def said(read):
    """Remarks and refusals of a line, as one text."""

    def text(line):
        cfg, failures = read(line)
        return "\n".join((*cfg.notes, *failures))

    return text


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--kl-coef 0.1", "grpo takes no KL off the reward"),
        ("--gamma 0.9", "grpo does not discount"),
        ("--critic-lr 1e-5", "there is no critic"),
        ("--ref-update-interval 2", "there is no KL term, so no reference"),
        ("--tis-clip 3", "--use-tis is not set"),
        ("--use-tis --tis-level sequence", "they steer --tis-function mis"),
        ("--lora-alpha 8", "--lora-rank is not set"),
        ("--overlong-penalty-factor 2", "--overlong-buffer-len is not set"),
        ("--tis-batch-normalize", "there are no weights to normalise"),
        ("--use-rs", "--use-rs needs --tis-function mis"),
        ("--lora-rank -1", "--lora-rank -1: wanted 0 or more"),
        (
            "--loss-type custom_loss --custom-loss-function-path a.b --entropy-coef 0.1",
            "custom_loss is all of the loss",
        ),
    ],
)
def test_what_is_in_vain_or_wrong_is_said(said, line, wanted):
    assert wanted in said(line)


@pytest.mark.parametrize(
    "line",
    [
        "--advantage-estimator reinforce_plus_plus --normalize-advantages --gamma 0.9 --kl-coef 0.1"
        " --kl-loss-type k3 --ref-update-interval 2",
        "--use-tis --tis-function mis --tis-level sequence --tis-mode mask --tis-upper-bound 3 "
        "--use-rs --rs-level token --rs-veto-threshold 1e-4 --tis-batch-normalize",
        "--get-mismatch-metrics --tis-function mis --tis-level geometric",
        "--advantage-estimator ppo --critic-lr 1e-5 --value-clip 0.1 --lambd 0.9",
        "--lora-rank 8 --lora-alpha 8 --lora-target-modules q_proj",
        "--overlong-buffer-len 8 --overlong-penalty-factor 2",
    ],
)
def test_what_takes_effect_is_not_spoken_of(said, line):
    text = said(line)
    flags = [word for word in line.split() if word.startswith("--")]
    assert not [flag for flag in flags if f"{flag} " in text and "no effect" in text]


def test_the_overlong_limit_is_the_responses(read):
    cfg, _ = read("--overlong-buffer-len 8 --rollout-max-response-len 64")
    assert cfg.algo.overlong_max_len == 64
    assert read("--rollout-max-response-len 64")[0].algo.overlong_max_len is None
