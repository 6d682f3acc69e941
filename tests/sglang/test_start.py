"""What starts when: servers, and the trainer beside them."""

import logging
import sys
import time
from contextlib import ExitStack

import pytest

from tandem.config.load import load_config
from tandem.engine.sglang.launch import Place, Spot
from tandem.errors import ConfigError, EngineError
from tandem.runtime.servers import with_servers


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


def settings(folder, python, *more):
    words = f"""
        --hf-checkpoint {folder} --prompt-data p.jsonl --num-rollout 1 --rollout-batch-size 1
        --rollout-max-response-len 8 --rollout-engine sglang --sglang-python {python}
        --run-dir {folder}/run --rollout-num-gpus 2
    """
    return load_config([*words.split(), *more])


def test_an_interpreter_without_a_server_is_refused_before_anything_is_built(tmp_path, stack):
    for python, wanted in ((sys.executable, "has no SGLang"), ("/no/python", "does not run")):
        with pytest.raises(ConfigError, match=wanted):
            with_servers(
                settings(tmp_path, python), place_of(shares_device=True), stack, pytest.fail
            )
    assert not started(tmp_path)


def test_servers_of_somebody_else_are_found_by_their_addresses(tmp_path, hosted, stack):
    server = hosted()
    where = ("--rollout-external-engine-addrs", server.url.removeprefix("http://"))
    cfg, place = settings(tmp_path, sys.executable, *where), place_of(shares_device=False)
    _, engine = with_servers(cfg, place, stack, lambda: "a trainer")
    (member,) = engine.fleet.members
    assert member.server.url == server.url and member.process is None
    nobody = ("--rollout-external-engine-addrs", "127.0.0.1:1")
    with pytest.raises(EngineError, match=r"--rollout-external-engine-addrs 127.0.0.1:1 is no"):
        with_servers(settings(tmp_path, sys.executable, *nobody), place, stack, pytest.fail)


def place_of(*, shares_device):
    return Place(
        dtype="float32",
        is_cpu=True,
        engines=((Spot(),), (Spot(),)),
        shares_device=shares_device,
        largest_batch=8,
    )


def until(holds, timeout_s=60.0):
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it never came to hold"
        time.sleep(0.02)


def started(folder):
    """The logs of servers that were started: their command line comes first."""
    return [log for log in sorted(folder.glob("run/logs/*.log")) if log.read_text()]


def test_all_servers_start_before_the_trainer_is_built_and_are_waited_for_after_it(
    tmp_path, ways, stack
):
    is_built = tmp_path / "built"
    cfg = settings(tmp_path, ways.fake.interpreter(tmp_path, "--after", str(is_built)))
    seen = []

    def build_trainer():
        seen.extend(log.name for log in started(tmp_path))
        is_built.touch()  # servers answer from now on: who waits for them earlier waits forever
        return "a trainer"

    trainer, engine = with_servers(cfg, place_of(shares_device=False), stack, build_trainer)
    assert seen == ["sglang_0.log", "sglang_1.log"]
    assert trainer == "a trainer"
    assert all(member.is_up for member in engine.fleet.members)


def test_servers_that_share_the_trainers_device_start_when_it_has_its_memory(tmp_path, ways, stack):
    cfg = settings(tmp_path, ways.fake.interpreter(tmp_path))
    with_servers(
        cfg, place_of(shares_device=True), stack, lambda: started(tmp_path) == [] or pytest.fail()
    )
    assert len(started(tmp_path)) == 2


def test_a_server_that_ends_while_the_trainer_is_built_is_told_at_once(
    tmp_path, ways, stack, caplog
):
    python = ways.fake.interpreter(tmp_path, "--fail", "this graphics card is made of wood")
    caplog.set_level(logging.ERROR)
    told = []

    def build_trainer():
        until(lambda: "made of wood" in caplog.text)
        told.append(caplog.text)

    cfg = settings(tmp_path, python)
    with pytest.raises(EngineError, match=r"(?s)did not start.*made of wood"):
        with_servers(cfg, place_of(shares_device=False), stack, build_trainer)
    assert "SGLang server" in told[0]
