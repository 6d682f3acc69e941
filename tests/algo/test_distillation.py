from dataclasses import replace

import numpy as np
import pytest

from tandem.algo import advantage
from tandem.config import AlgoConfig
from tandem.errors import RewardError

DISTILLED = {"use_opd": True, "opd_type": "megatron", "opd_kl_coef": 0.5}


def test_distillation_takes_the_gap_to_the_teacher_off_every_advantage(make_group, with_columns):
    group = with_columns(
        make_group(1.0, 0.0, None, responses=[3, 5, 2], masked=[1]),
        "old_logprobs", "teacher_logprobs",
    )  # fmt: skip
    (plain,) = advantage([group], AlgoConfig())
    (done,) = advantage([group], AlgoConfig(**DISTILLED))
    for place, sample in enumerate(group.samples):
        for t in range(sample.num_tokens):
            gap = group.old_logprobs[place][t] - group.teacher_logprobs[place][t]
            wanted = plain.advantages[place][t] - 0.5 * gap
            if not sample.sampled_T[t] or sample.reward is None:
                wanted = 0.0
            assert done.advantages[place][t] == pytest.approx(wanted, abs=1e-6)


def test_a_teacher_that_is_the_student_changes_nothing(make_group, with_columns):
    group = with_columns(make_group(1.0, 0.0), "old_logprobs")
    group = replace(group, teacher_logprobs=group.old_logprobs)
    (plain,) = advantage([group], AlgoConfig())
    (done,) = advantage([group], AlgoConfig(**DISTILLED))
    assert all(map(np.array_equal, plain.advantages, done.advantages))


def with_told(group, told):
    samples = tuple(
        replace(sample, metadata={"teacher_log_probs": one})
        for sample, one in zip(group.samples, told, strict=True)
    )
    return replace(group, samples=samples)


def test_a_servers_logprobs_lie_in_the_samples_metadata(make_group, with_columns):
    base = with_columns(make_group(1.0, 0.0), "old_logprobs", "teacher_logprobs")
    told = [column_T[2:].tolist() for column_T in base.teacher_logprobs]
    by_server = with_told(replace(base, teacher_logprobs=None), told)
    (wanted,) = advantage([base], AlgoConfig(**DISTILLED))
    (got,) = advantage([by_server], AlgoConfig(**{**DISTILLED, "opd_type": "sglang"}))
    assert all(map(np.array_equal, wanted.advantages, got.advantages))


@pytest.mark.parametrize("told", [None, [-1.0]])
def test_a_verdict_without_the_teachers_logprobs_stops_the_run(make_group, with_columns, told):
    group = with_told(with_columns(make_group(0.0), "old_logprobs"), [told])
    with pytest.raises(RewardError, match="came without the teacher's log-probs of its 3 response"):
        advantage([group], AlgoConfig(**{**DISTILLED, "opd_type": "sglang"}))
