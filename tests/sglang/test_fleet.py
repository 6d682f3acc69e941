"""Weights, memory, and the life of servers."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tandem.engine.sglang.client import SglangEngine
from tandem.engine.sglang.fleet import Fleet, Health
from tandem.engine.sglang.line import Line
from tandem.engine.sglang.members import Member
from tandem.engine.sglang.ports import Ports
from tandem.engine.sglang.process import TETHER, LoggedProcess
from tandem.engine.sglang.server import Server
from tandem.engine.sglang.weights import HandleCarrier, SglangSync
from tandem.errors import EngineError, SyncError
from tandem.sync.check import failures_of
from tandem.types import Ending

FAKE = Path(__file__).with_name("fake.py")


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


async def until(holds, timeout_s=60.0):
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it never came to hold"
        await asyncio.sleep(0.01)


def sync_of(engine, again=None):
    return SglangSync(engine.fleet, failures_of, dtype="float32", again=again)


def test_published_weights_arrive_in_full_and_under_their_version(one, ways):
    state, engine = one
    numbers = sync_of(engine).publish(ways.weights(3))
    assert numbers["perf/update_weights_time"] > numbers["perf/update_weights_check_time"] > 0
    assert state.version == "3" and engine.stats().version == 3
    sent = state.buckets[-1]
    (entry,) = sent["metadata"]
    assert entry.name == "model.embed_tokens.weight" and tuple(entry.shape) == (4, 2)
    assert sent["flattened_tensor"].view(entry.dtype).tolist() == [3.0] * 8
    assert not state.is_paused


def test_weights_that_a_server_refuses_end_all_sampling(one, ways):
    state, engine = one
    state.update_fails = True
    with pytest.raises(SyncError, match=r"weight update 1 failed.*no such tensor"):
        engine.update(ways.weights(1))

    async def ask():
        await engine.add(ways.request())

    with pytest.raises(SyncError, match="No server samples any more"):
        asyncio.run(ask())
    assert not state.asked


def test_a_wrong_canary_names_the_server_that_missed_the_update(hosted, engine_over, ways):
    servers = [hosted(), hosted()]
    engine = engine_over(*(server.url for server in servers))
    servers[1].state.canary = [0.0, -1.0, -2.0, -4.0]
    with pytest.raises(SyncError, match=r"server 1 gives the canary log-probs that differ"):
        sync_of(engine).publish(ways.weights(1))


@pytest.mark.parametrize(
    ("canary", "wanted"), [([0.0, -1.0], "2 log-probs of 4 tokens"), ([None] * 4, "differ by nan")]
)
def test_a_malformed_canary_ends_the_update(canary, wanted, one, ways):
    state, engine = one
    state.canary = canary
    with pytest.raises(SyncError, match=wanted):
        sync_of(engine).publish(ways.weights(1))


def test_memory_comes_back_for_weights_first_and_for_the_cache_after_them(
    hosted, engine_over, ways
):
    server = hosted()
    engine = engine_over(server.url, can_sleep=True)
    engine.sleep()
    assert engine.stats().is_asleep and server.state.released
    server.state.calls.clear()
    engine.update(ways.weights(1))
    assert not engine.stats().is_asleep
    calls = [call for call in server.state.calls if "memory" in call or "tensor" in call]
    assert calls == [
        "/resume_memory_occupation weights",
        "/update_weights_from_tensor",
        "/resume_memory_occupation kv_cache cuda_graph",
    ]


def test_servers_that_cannot_give_memory_back_are_not_asked(one):
    state, engine = one
    engine.sleep()
    assert not engine.stats().is_asleep and not state.released


def test_an_engine_does_not_sleep_while_it_samples(hosted, engine_over, ways):
    server = hosted()
    engine = engine_over(server.url, can_sleep=True)

    async def main():
        future = engine.add(ways.request(limit=5000))
        await until(lambda: server.state.running)
        with pytest.raises(EngineError, match="abort them first"):
            engine.sleep()
        await engine.abort()
        assert (await future).ending is Ending.ABORT

    asyncio.run(main())


def test_two_claims_of_ports_never_meet():
    with Ports() as first, Ports() as second:
        assert first.first != second.first
        with pytest.raises(OSError):
            socket.create_server(("127.0.0.1", first.first))


# --- with processes


def process_of(folder, *more, first=()):
    """`first`: words of the first start alone."""
    once = [first]

    def words(ports):
        begin = once.pop() if once else ()
        return [sys.executable, str(FAKE), "--port", str(ports[1]), *more, *begin]

    return LoggedProcess("server 0", words, folder / "logs" / "server_0.log")


@pytest.fixture
def started(tmp_path):
    """Makes engines over one fake server that is a process of its own."""
    made = []

    def make(*more, health=None, first=()):
        process = process_of(tmp_path, *more, first=first)
        process.start()
        line = Line()
        member = Member(Server(line, process.url, name=process.name), process)
        fleet = Fleet(line, [member], HandleCarrier(line, 1 << 20), health=health)
        made.append(SglangEngine(line, fleet, patience_s=0.02))
        return made[-1], process

    yield make
    for engine in made:
        engine.close()


def test_a_server_that_does_not_start_shows_its_last_lines(started):
    usage = "usage: server\n        [--flag FLAG]\n"
    engine, process = started("--fail", usage + "this graphics card is made of wood")
    with pytest.raises(EngineError, match="this graphics card is made of wood") as told:
        engine.fleet.until_up()
    assert "[--flag" not in str(told.value)
    assert process.log.read_text().startswith("\n$ ")  # the command line comes first


def test_a_port_that_somebody_took_meanwhile_is_exchanged_for_another(started):
    engine, process = started(first=("--fail", "[Errno 98] Address already in use"))
    engine.fleet.until_up()
    commands = [line for line in process.log.read_text().splitlines() if line.startswith("$ ")]
    assert len(commands) == 2
    (member,) = engine.fleet.members
    assert member.server.url == process.url


def test_a_server_that_is_killed_comes_back_with_the_weights_and_its_requests(started, ways):
    engine, process = started()
    engine.fleet.until_up()
    sync_of(engine, again=ways.weights).publish(ways.weights(4))

    async def main():
        futures = [engine.add(ways.request(str(n), limit=300)) for n in range(4)]
        await until(lambda: engine.stats().num_running == 4)
        first = process.pid
        os.kill(first, signal.SIGKILL)
        for done in await asyncio.gather(*futures):
            assert ways.is_whole(done, limit=300)
            assert set(done.version_C.tolist()) == {4}
            assert set(done.logprobs_C.tolist()) == {ways.fake.logprob_of(4)}
        assert process.pid != first

    asyncio.run(main())


def test_without_weights_to_give_it_a_restarted_server_stops_the_run(started, ways):
    engine, process = started()
    engine.fleet.until_up()
    sync_of(engine).publish(ways.weights(4))

    async def main():
        future = engine.add(ways.request(limit=100_000))
        await until(lambda: engine.stats().num_running == 1)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="back without weights"):
            await future

    asyncio.run(main())


def test_a_server_that_hangs_is_ended_and_comes_back(started, ways):
    health = Health(interval_s=0.05, timeout_s=0.5, first_wait_s=0.0)
    engine, process = started(health=health)
    engine.fleet.until_up()
    sync_of(engine, again=ways.weights).publish(ways.weights(1))
    first = process.pid
    os.kill(first, signal.SIGSTOP)

    async def main():
        assert ways.is_whole(await engine.add(ways.request()))

    asyncio.run(main())
    assert process.pid != first and not is_alive(first)


def test_closing_leaves_no_process_and_no_port_behind(started):
    engine, process = started()
    engine.fleet.until_up()
    pid = process.pid
    engine.close()
    assert not is_alive(pid)


def test_a_server_ends_with_the_run_that_started_it(tmp_path):
    """The run is killed; what it had started, tied to it, is gone soon."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    program = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, {str(TETHER)!r}, str(os.getpid()), *{sleep!r}])"
        "\nprint(child.pid, flush=True)\ntime.sleep(600)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    child = int(run.stdout.readline())
    assert is_alive(child)
    run.kill()
    run.communicate()
    asyncio.run(until(lambda: not Path(f"/proc/{child}").exists() or not is_alive(child)))
