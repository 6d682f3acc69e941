"""Groups and samples for the tests."""

import numpy as np

from tandem.types import Ending, Group, Prompt, Sample


def prompt_of(label="5", **metadata):
    return Prompt(
        index=3,
        tokens_T=np.array([1, 2], np.int32),
        text="ask",
        content="ask",
        label=label,
        metadata=metadata,
    )


def sample_of(position, text, *, length=3, ending=Ending.STOP, rollout=-1, **metadata):
    total = 2 + length
    return Sample(
        index=10 + position,
        position=position,
        tokens_T=np.arange(total, dtype=np.int32),
        sampled_T=np.arange(total) >= 2,
        logprobs_T=np.zeros(total, np.float32),
        version_T=np.where(np.arange(total) >= 2, 4, -1).astype(np.int32),
        ending=ending,
        text=text,
        rollout=rollout,
        metadata=metadata,
    )


def group_of(*samples, label="5", **metadata):
    return Group(prompt=prompt_of(label, **metadata), samples=samples)
