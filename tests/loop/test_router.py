"""Functions that post to the run's own address, as those written for slime do."""

import asyncio
from contextlib import ExitStack

import pytest
import torch

from tandem.config import Config, flat, load_config
from tandem.config.flat import FlatArgs
from tandem.loop import train
from tandem.rollout import EventLoop
from tandem.runtime.local import build
from tandem.runtime.serving import served

POSTS = ("--custom-generate-function-path", "examples.hooks.router.generate")
PARTIAL = (
    "--partial-rollout",
    "--over-sampling-batch-size",
    "8",
    "--sglang-server-concurrency",
    "6",
)


@pytest.fixture
def dumped(tiny, tmp_path):
    """Runs and gives the samples of each rollout's dump."""

    def run(name, *flags, num_rollout=2):
        dump = ("--save-debug-rollout-data", f"{tmp_path}/{name}/{{rollout_id}}.pt")
        argv = tiny.argv(tmp_path / name / "run", *flags, *dump, num_rollout=num_rollout)
        with ExitStack() as stack:
            events = EventLoop()
            stack.callback(events.close)
            stages, cfg = build(load_config(argv), events, stack)
            train(cfg, stages)
        files = [tmp_path / name / f"{step}.pt" for step in range(num_rollout)]
        return [torch.load(file, weights_only=True)["samples"] for file in files]

    return run


def test_what_is_sampled_over_the_router_is_what_the_run_samples_itself(dumped):
    plain, posted = dumped("plain"), dumped("posted", *POSTS)
    for ours, theirs in zip(plain, posted, strict=True):
        for name in ("tokens", "rollout_log_probs", "status", "reward", "loss_mask"):
            assert [one[name] for one in ours] == [one[name] for one in theirs], name
        assert all(
            torch.equal(one["exact"]["version_T"], other["exact"]["version_T"])
            for one, other in zip(ours, theirs, strict=True)
        )


def test_what_was_cut_off_over_the_router_goes_on_with_a_version_for_each_token(dumped):
    rollouts = dumped("partial", *POSTS, *PARTIAL, num_rollout=4)
    mixed = 0
    for step, samples in enumerate(rollouts):
        for sample in samples:
            assert sample["status"] in ("completed", "truncated")
            versions = sample["exact"]["version_T"][-sample["response_length"] :].tolist()
            assert versions == sorted(versions) and set(versions) <= set(range(step + 1))
            mixed += len(set(versions)) > 1
    assert mixed > 0


def test_the_address_answers_while_the_loop_runs_and_is_closed_with_it(tiny, tmp_path):
    cfg = load_config(tiny.argv(tmp_path / "run", *POSTS))
    events = EventLoop()
    args = served(cfg, flat(cfg), engine=None, tokenizer=None, max_context=8, events=events)
    assert args.sglang_router_ip == "127.0.0.1"

    async def ask():
        reader, writer = await asyncio.open_connection("127.0.0.1", args.sglang_router_port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    assert b"200 OK" in events.run(ask())
    events.close()
    with pytest.raises(OSError):
        asyncio.run(ask())


def test_a_router_of_the_users_own_stays():
    cfg, own = Config(), FlatArgs({"sglang_router_ip": "10.0.0.1", "sglang_router_port": 1})
    assert served(cfg, own, None, None, 8, EventLoop()) is own
