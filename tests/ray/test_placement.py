"""Which devices train and which sample."""

import socket

import pytest

from tandem.config import read_config
from tandem.errors import ResourceError
from tandem.runtime.ray.cluster import check_answers, reserved
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


@pytest.mark.parametrize(
    ("count", "is_gpu", "told"),
    [(99, False, "99 devices; the cluster has 4 CPUs"), (2, True, "0 GPUs .* --device cpu")],
)
def test_what_the_cluster_lacks_is_said_at_once(count, is_gpu, told, cluster):
    with (
        pytest.raises(ResourceError, match=told),
        reserved(count, f"{count} devices", is_gpu=is_gpu),
    ):
        pass


def test_a_cluster_that_does_not_answer_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    note = tmp_path / "ray" / "ray_current_cluster"
    check_answers("auto")  # nothing is noted, so Ray looks around
    note.parent.mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = "{}:{}".format(*listener.getsockname())
        note.write_text(address)
        for said in (address, f"ray://{address}"):
            with pytest.raises(ResourceError, match=f"nobody answers at RAY_ADDRESS={said}"):
                check_answers(said)
        with pytest.raises(ResourceError, match=f"RAY_ADDRESS=auto, by {note} {address}"):
            check_answers("auto")
        listener.listen()
        check_answers(address)
        check_answers("auto")
