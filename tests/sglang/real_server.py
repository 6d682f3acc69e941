"""The stock server itself, on the CPU: `make test-sglang`.

One server is started by the package, and everything is done to it that a run does: three ways of
weights, updates under running requests, aborts, a kill, whole runs by `train.py`.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tandem.checkpoint.names import to_hugging_face
from tandem.config.load import read_config
from tandem.engine.sglang.launch import Place, Spot, launch
from tandem.engine.sglang.weights import FolderCarrier, GroupCarrier, HandleCarrier, SglangSync
from tandem.kernels.attention import packed_attention
from tandem.kernels.head import token_logprobs
from tandem.models.build import build_decoder
from tandem.sync.check import failures_of
from tandem.types import Canary, Ending, Request, SampleKey, Sampling, Weights

ROOT = Path(__file__).resolve().parents[2]
SIZE = "--hidden-size 64 --ffn-hidden-size 128 --num-heads 4 --num-key-heads 2 --num-layers 2"
BUCKET = 100_000
CANARY_T = np.arange(20, 36, dtype=np.int32)
BOUND = 1e-3


@pytest.fixture(scope="module")
def python():
    told = os.environ.get("TANDEM_SGLANG_PYTHON")
    assert told, "set TANDEM_SGLANG_PYTHON; `make test-sglang` does"
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder and prompts."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("real")
    rows = [
        {"prompt": [{"role": "user", "content": f"Count from {n} to {n * 7}."}], "label": str(n)}
        for n in range(10)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"--texts {folder}/prompts.jsonl --out {folder}/model {SIZE}".split()
    subprocess.run([sys.executable, "examples/small_model.py", *words], cwd=ROOT, check=True)
    return folder


def settings(folder, python, *more):
    words = f"""
        --hf-checkpoint {folder}/model --prompt-data {folder}/prompts.jsonl --input-key prompt
        --label-key label --apply-chat-template --rm-type random --num-rollout 3
        --rollout-batch-size 2 --n-samples-per-prompt 4 --rollout-max-response-len 12 --lr 1e-2
        --progress off --rollout-engine sglang --sglang-python {python}
    """
    return [*words.split(), *more]


@pytest.fixture(scope="module")
def engine(folder, python):
    words = settings(folder, python, "--run-dir", f"{folder}/server")
    cfg, failures = read_config(words)
    assert failures == ()
    place = Place(
        dtype="float32", is_cpu=True, engines=((Spot(),),), shares_device=False, largest_batch=8
    )
    engine = launch(cfg, place)
    engine.fleet.until_up()
    yield engine
    engine.close()


class Policy:
    """A model with weights of its own for every seed, and what it says of tokens."""

    def __init__(self, folder, seed):
        self.decoder = build_decoder(folder / "model", torch.float32, "cpu", seed=seed)
        with torch.no_grad():
            for parameter in self.decoder.parameters():
                if parameter.dim() == 2:
                    parameter *= 6  # the usual random weights make all tokens equally likely

    @torch.no_grad()
    def logprobs(self, tokens):
        """Of each token given those before it, 0 at the first."""
        tokens_T = torch.as_tensor(np.asarray(tokens), dtype=torch.int64)
        bounds_S = torch.tensor([0, len(tokens_T)], dtype=torch.int32)

        def attend(layer, q_TNH, k_TKH, v_TKH):
            return packed_attention(q_TNH, k_TKH, v_TKH, bounds_S, len(tokens_T))

        hidden_TD = self.decoder(tokens_T, torch.arange(len(tokens_T)), attend)
        said = token_logprobs(hidden_TD[:-1], self.decoder.head_weight, tokens_T[1:])
        said_T = said[0] if isinstance(said, tuple) else said
        return np.concatenate([[0.0], said_T.numpy()]).astype(np.float32)

    def weights(self, version):
        named = ((name, one.detach()) for name, one in self.decoder.named_parameters())
        canary = Canary(tokens_T=CANARY_T, read=self.logprobs(CANARY_T).copy)
        shape = self.decoder.shape
        return Weights(version=version, named=to_hugging_face(shape, named), canary=canary)


@pytest.fixture(scope="module")
def policies(folder):
    return {seed: Policy(folder, seed) for seed in (1, 2, 3)}


def request(n, limit, **more):
    return Request(
        id=f"r{n}",
        tokens_T=np.arange(5 + n // 4, 25 + n // 4, dtype=np.int32),
        sampling=Sampling(max_new_tokens=limit, ignore_eos=True, **more),
        key=SampleKey(seed=1, prompt=n // 4, sample=n % 4),
        group=f"g{n // 4}",
    )


def sync_of(engine, policy=None):
    again = None if policy is None else policy.weights
    return SglangSync(engine.fleet, failures_of, dtype="float32", again=again)


def publish(engine, policy):
    """The version under which the server now has the policy's weights."""
    version = engine.stats().version + 1
    sync_of(engine, policy).publish(policy.weights(version))
    return version


def carriers(engine, folder):
    line = engine.fleet.line
    return {
        "handle": HandleCarrier(line, BUCKET),
        "gloo": GroupCarrier(line, BUCKET, backend="gloo", host="127.0.0.1"),
        "folder": FolderCarrier(line, BUCKET, folder / "out", model=folder / "model", keeps=False),
    }


@pytest.mark.parametrize("way", ["handle", "gloo", "folder"])
def test_weights_arrive_and_change_under_running_requests(way, engine, folder, policies):
    engine.fleet._carrier.close()
    engine.fleet._carrier = carriers(engine, folder)[way]
    first = engine.stats().version + 1
    author = {first: policies[1], first + 1: policies[2]}
    sync = sync_of(engine)
    sync.publish(author[first].weights(first))

    async def main():
        futures = [engine.add(request(n, 3000)) for n in range(8)]
        await asyncio.sleep(1.5)
        await asyncio.to_thread(sync.publish, author[first + 1].weights(first + 1))
        await asyncio.sleep(1.5)
        await engine.abort()
        return await asyncio.gather(*futures)

    crossed = []
    for n, done in enumerate(asyncio.run(main())):
        crossed.append(set(done.version_C.tolist()) == {first, first + 1})
        assert done.ending is Ending.ABORT
        assert (np.diff(done.version_C) >= 0).all()
        whole = np.concatenate([request(n, 1).tokens_T, done.tokens_C])
        for version in set(done.version_C.tolist()):
            said_C = author[version].logprobs(whole)[20:]
            of_version_C = done.version_C == version
            assert np.abs(said_C - done.logprobs_C)[of_version_C].max() < BOUND
    assert any(crossed)  # a loaded machine may not have come to all of them


def test_other_weights_than_the_trainers_are_noticed(engine, policies):
    before = publish(engine, policies[2])
    (witness,) = engine.fleet.witnesses()
    assert failures_of(witness, "it", policies[2].weights(before), "float32") == []
    (failure,) = failures_of(witness, "it", policies[3].weights(before), "float32")
    assert "differ by" in failure


def test_abort_keeps_partial_tokens_and_they_are_the_policys(engine, policies):
    publish(engine, policies[2])

    async def main():
        futures = [engine.add(request(n, 3000)) for n in range(8)]
        await asyncio.sleep(1.5)
        await engine.abort()
        return await asyncio.gather(*futures)

    completions = asyncio.run(main())
    assert {done.ending for done in completions} == {Ending.ABORT}
    assert any(len(done.tokens_C) for done in completions)
    for n, done in enumerate(completions):
        whole = np.concatenate([request(n, 1).tokens_T, done.tokens_C])
        said_C = policies[2].logprobs(whole)[20:]
        assert np.abs(said_C - done.logprobs_C).max(initial=0) < BOUND


def test_stop_tokens_and_strings_end_a_request(engine, policies):
    publish(engine, policies[2])

    async def main():
        return await asyncio.gather(
            engine.add(request(0, 400, stop_token_ids=tuple(range(60, 283)))),
            engine.add(request(1, 400, stop=("e", "a", "t", "o"))),
        )

    by_token, by_text = asyncio.run(main())
    assert by_token.ending is Ending.STOP and by_token.tokens_C[-1] == by_token.matched
    assert by_text.ending is Ending.STOP and by_text.matched in ("e", "a", "t", "o")


def test_a_server_killed_in_mid_rollout_comes_back_with_the_weights(engine, policies):
    version = publish(engine, policies[3])
    (member,) = engine.fleet.members

    async def main():
        futures = [engine.add(request(n, 300)) for n in range(4)]
        await asyncio.sleep(0.5)
        os.kill(member.process.pid, signal.SIGKILL)
        return await asyncio.gather(*futures)

    for n, done in enumerate(asyncio.run(main())):
        whole = np.concatenate([request(n, 1).tokens_T, done.tokens_C])
        assert len(done.tokens_C) == 300 and set(done.version_C.tolist()) == {version}
        said_C = policies[3].logprobs(whole)[20:]
        assert np.abs(said_C - done.logprobs_C).max() < BOUND


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--colocate",),
        ("--update-weight-transport", "disk", "--update-weight-disk-dir", "{}/disk"),
        ("--router-policy", "cache_aware"),
        ("--actor-num-gpus-per-node", "2", "--tensor-model-parallel-size", "2", "--device", "cpu"),
        ("--partial-rollout", "--over-sampling-batch-size", "3", "--rollout-temperature", "0.7"),
    ],
    ids=["gloo", "handle", "folder", "router", "ranks", "partial"],
)
def test_a_whole_run_trains_on_what_the_server_samples(more, engine, folder, python, request):
    engine.fleet.until_up()
    run = folder / request.node.callspec.id
    (member,) = engine.fleet.members
    words = settings(
        folder,
        python,
        *("--rollout-external-engine-addrs", member.server.url.removeprefix("http://")),
        *("--run-dir", str(run)),
        *(word.format(folder) for word in more),
    )
    done = subprocess.run(
        [sys.executable, "train.py", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows:
        # tokens of earlier weights are kept by partial rollouts, and differ
        if not row["step"] or "--partial-rollout" not in more:
            assert row["train/train_rollout_logprob_abs_diff"] < BOUND
    assert engine.fleet.line.run(member.server.version()) == "3"
