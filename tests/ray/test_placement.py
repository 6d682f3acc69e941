"""Which devices train and which sample."""

import pytest

from tandem.config import read_config
from tandem.runtime.ray.placement import asked, place

LINE = """--hf-checkpoint model --prompt-data prompts.jsonl --rm-type random --num-rollout 1
    --rollout-batch-size 8 --rollout-max-response-len 8 --runtime ray"""


def config_of(words):
    return read_config([*LINE.split(), *words.split()])[0]


# (flags, devices, trainers, first device of each engine): dialect 1.1
GOLDEN = (
    ("--actor-num-gpus-per-node 4 --rollout-num-gpus 2", 6, 4, [4, 5]),
    ("--actor-num-gpus-per-node 1 --rollout-num-gpus 1", 2, 1, [1]),
    ("--actor-num-nodes 2 --actor-num-gpus-per-node 8 --rollout-num-gpus 2", 18, 16, [16, 17]),
    ("--actor-num-gpus-per-node 4 --colocate", 4, 4, [0, 1, 2, 3]),
    ("--actor-num-gpus-per-node 4 --rollout-num-gpus 6 --colocate", 6, 4, [0, 1, 2, 3, 4, 5]),
    ("--actor-num-gpus-per-node 4 --rollout-num-gpus 2 --colocate", 4, 4, [0, 1]),
    ("--actor-num-gpus-per-node 4 --debug-rollout-only --rollout-num-gpus 3", 3, 0, [0, 1, 2]),
    ("--colocate --debug-rollout-only --rollout-num-gpus 3", 3, 0, [0, 1, 2]),
    ("--actor-num-gpus-per-node 4 --debug-train-only --load-debug-rollout-data x", 4, 4, []),
)  # fmt: skip


@pytest.mark.parametrize(("words", "devices", "trainers", "firsts"), GOLDEN)
def test_devices_of_the_flags(words, devices, trainers, firsts):
    placement = place(config_of(words))
    assert placement.num_devices == devices
    assert placement.num_trainers == trainers
    assert [engine.start for engine in placement.engines] == firsts
    assert placement.is_shared == (0 in firsts and trainers > 0)


def test_the_wish_is_said_in_words_of_the_flags():
    cfg = config_of("--actor-num-nodes 2 --actor-num-gpus-per-node 4 --rollout-num-gpus 2")
    assert asked(place(cfg), cfg) == (
        "10 devices: 8 that train (--actor-num-nodes 2 x --actor-num-gpus-per-node 4) and 2 that "
        "sample, others (--rollout-num-gpus 2)"
    )
