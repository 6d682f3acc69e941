import numpy as np

from tandem.hooks.view import DialectSample, view_of
from tandem.types import Ending, Prompt, Sample


def example():
    prompt = Prompt(
        index=7,
        tokens_T=np.array([1, 2], np.int32),
        text="<user>ask",
        content=[{"role": "user", "content": "ask"}],
        label="5",
        metadata={"level": [1]},
    )
    sample = Sample(
        index=29,
        position=1,
        tokens_T=np.array([1, 2, 3, 4, 5], np.int32),
        sampled_T=np.array([False, False, True, False, True]),
        logprobs_T=np.array([0, 0, -1, 0, -2], np.float32),
        version_T=np.array([-1, -1, 4, -1, 5], np.int32),
        ending=Ending.LENGTH,
        text="wrote",
        metadata={"turns": 2},
    )
    return prompt, sample


def test_a_hook_sees_the_dialects_names():
    view = view_of(*example())
    assert (view.group_index, view.index, view.prompt, view.label) == (7, 29, "<user>ask", "5")
    assert view.tokens == [1, 2, 3, 4, 5]
    assert (view.response, view.response_length) == ("wrote", 3)
    assert view.loss_mask == [1, 0, 1]
    assert view.effective_response_length == 2
    assert view.rollout_log_probs == [-1.0, 0.0, -2.0]
    assert view.weight_versions == ["4", "5"]
    assert view.metadata == {"level": [1], "turns": 2}
    assert view.status == DialectSample.Status.TRUNCATED == "truncated"
    assert view.reward is None


def test_a_hook_may_change_its_copy_and_nothing_else():
    prompt, sample = example()
    view = view_of(prompt, sample)
    view.metadata["level"].append(2)
    view.tokens.append(6)
    view.anything = "of its own"
    assert prompt.metadata == {"level": [1]}
    assert sample.num_tokens == 5


def test_the_reward_value_follows_the_key():
    class Args:
        reward_key = "score"

    view = DialectSample(reward={"score": 2.0})
    assert view.get_reward_value(Args) == 2.0
