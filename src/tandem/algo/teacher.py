"""A reward function that asks a teacher's server for log-probs (on-policy distillation).

--use-opd --opd-type sglang --rm-url http://HOST:PORT/generate
--custom-rm-path tandem.algo.teacher.ask_teacher
"""

from collections.abc import Sequence
from typing import Any

from tandem.algo.kl import TEACHER_KEY
from tandem.errors import RewardError
from tandem.hooks.asking import post


async def ask_teacher(args: Any, sample: Any) -> float:
    """0, after the teacher's log-prob of each response token was put into the sample's metadata.

    POSTs to `--rm-url` what SGLang's `/generate` takes: the tokens, no new ones wanted, log-probs
    from the start, at the rollout's temperature. Raises RewardError for an answer about other
    tokens, which leaves the sample without a verdict.
    """
    answer = await post(args.rm_url, request_of(args, sample))
    sample.metadata[TEACHER_KEY] = told_logprobs(answer, sample)
    return 0.0


async def no_reward(args: Any, sample: Any) -> float:
    """0: for distillation from a checkpoint where answers cannot be judged, nor evaluated."""
    return 0.0


def teacher_alone(args: Any, samples: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Rewards as they are, and zeros to learn from (`--custom-reward-post-process-path`).

    The teacher then teaches alone, while reports and evaluations have the reward.
    """
    return [sample.get_reward_value(args) for sample in samples], [0.0] * len(samples)


def request_of(args: Any, sample: Any) -> dict[str, Any]:
    """What is posted."""
    return {
        "input_ids": list(sample.tokens),
        "sampling_params": {
            "temperature": args.rollout_temperature,
            "max_new_tokens": 0,
            "skip_special_tokens": False,
        },
        "return_logprob": True,
        "logprob_start_len": 0,
    }


def told_logprobs(answer: dict[str, Any], sample: Any) -> list[float]:
    """The log-probs of the response's tokens in an answer; the first token of all has none."""
    told = answer["meta_info"]["input_token_logprobs"]
    length, tokens = sample.response_length, list(sample.tokens)
    if [entry[1] for entry in told] != tokens[len(tokens) - len(told) :] or len(told) < length + 1:
        raise RewardError(
            f"the teacher answered about {len(told)} tokens that are not the last of the "
            f"{len(tokens)} that it was asked about; student and teacher must share a tokenizer, "
            "and the server must give log-probs from the start (logprob_start_len 0)"
        )
    return [float(entry[0]) for entry in told[len(told) - length :]]
