"""Grading processes: hostile answers, limits, replacement."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from tandem.errors import ConfigError
from tandem.rewards.grade import Answer
from tandem.rewards.pool import GraderPool, Worker, grade_at_once

SLOW = r"\boxed{\binom{10000000}{5000000}}"
"""math-verify computes it in full, for longer than any test waits."""


def asked(rm_type, response, label):
    return Answer(rm_type=rm_type, response=response, label=label)


@pytest.fixture(scope="module")
def pool():
    pool = GraderPool(num_workers=1, limit_s=60.0)
    yield pool
    pool.close()


def test_what_strings_decide_starts_no_process():
    assert grade_at_once(asked("math", r"\boxed{5}", "5")).value == 1
    assert grade_at_once(asked("math", r"\boxed{6}", "5")).value == 0
    assert grade_at_once(asked("gpqa", "The answer is B", "B")).value == 1.0
    assert grade_at_once(asked("math", r"\boxed{x+1}", "1+x")) is None


def test_a_label_that_does_not_fit_is_an_error_and_no_verdict():
    said = grade_at_once(asked("dapo", "Answer: 5", "five"))
    assert said.value is None
    assert "must be a number" in said.error


def test_a_reward_that_does_not_exist_is_the_callers_error():
    with pytest.raises(ConfigError, match="not known"):
        grade_at_once(asked("maths_", "5", "5"))


def test_an_expression_is_judged_in_a_worker(pool):
    assert pool.submit(asked("math", r"\boxed{x+1}", "1+x")).result().value == 1
    assert pool.submit(asked("math_verify", r"\boxed{2/4}", "1/2")).result().value == 1.0


NESTED = "{" * 100_000 + "5" + "}" * 100_000
HUGE = "7" * 10_000_000


@pytest.mark.parametrize("rm_type", ["math", "math_verify"])
@pytest.mark.parametrize(
    "content",
    [
        "9^9^9^9",
        "10^{10^{10}}",
        "9**9**9**9",
        "((((9^9)^9)^9)^9)^9",
        "99999999!",
        NESTED + "1",
        "(" * 100_000 + "x" + ")" * 100_000,
        HUGE,
        "x\x00+1",
        "\ud800+x",
        "\\frac" * 5000 + "1",
        "__import__('os')",
    ],
    ids=lambda content: content[:12].encode("unicode_escape").decode(),
)
def test_a_hostile_answer_is_wrong_and_harms_nothing(pool, rm_type, content):
    verdict = pool.submit(asked(rm_type, rf"\boxed{{{content}}}", "x+2")).result()
    assert verdict.error is None
    assert verdict.value == 0


def test_ten_megabytes_before_the_box_do_not_matter(pool):
    assert pool.submit(asked("math", HUGE + r" \boxed{5}", "5")).result().value == 1


def test_a_stuck_worker_is_killed_and_the_next_answer_is_judged():
    pool = GraderPool(num_workers=1, limit_s=0.5)
    try:
        late = pool.submit(asked("math_verify", SLOW, "3"))
        after = pool.submit(asked("math", r"\boxed{x+1}", "1+x"))
        assert "no verdict within 0.5 s" in late.result().error
        assert after.result().value == 1
    finally:
        pool.close()


def test_a_worker_that_died_while_idle_is_replaced():
    pool = GraderPool(num_workers=1, limit_s=60.0)
    expression = asked("math", r"\boxed{x+1}", "1+x")
    assert pool.submit(expression).result().value == 1
    idle = pool._idle.get()
    idle.interrupt()
    idle._process.wait()
    pool._idle.put(idle)
    assert pool.submit(expression).result().value == 1
    pool.close()


def test_a_worker_that_dies_over_an_answer_gives_no_verdict():
    worker = Worker()
    os.kill(worker._process.pid, signal.SIGKILL)
    verdict = worker.ask(asked("math", r"\boxed{x+1}", "1+x"), 10.0)
    assert "died with status -9" in verdict.error
    assert not worker.is_alive


def test_closing_does_not_wait_for_an_answer_under_way():
    pool = GraderPool(num_workers=1, limit_s=300.0)
    late = pool.submit(asked("math_verify", SLOW, "3"))
    waiting = pool.submit(asked("math_verify", SLOW, "3"))
    while not pool._working and not late.done():
        time.sleep(0.01)
    pool.close()
    assert late.result().value is None
    assert waiting.cancelled() or waiting.result().value is None


async def test_the_pool_serves_an_event_loop(pool):
    answers = [asked("math", rf"\boxed{{x+{nth}}}", "x+3*1") for nth in range(5)]
    verdicts = await asyncio.gather(*(pool.grade(answer) for answer in answers))
    assert [verdict.value for verdict in verdicts] == [0, 0, 0, 1, 0]


def test_a_worker_ends_when_its_owner_does():
    script = (
        "import os, sys\n"
        "from tandem.rewards.pool import Worker\n"
        "from tandem.rewards.grade import Answer\n"
        "worker = Worker()\n"
        "worker.ask(Answer(rm_type='f1', response='a', label='a'), 10.0)\n"
        "print(worker._process.pid, flush=True)\n"
        "os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    pid = int(done.stdout)
    for _ in range(500):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().split()[2] == "Z":  # nobody reaped it, but it has ended
                    return
        except FileNotFoundError:
            return
        time.sleep(0.02)
    raise AssertionError("the worker lives on without its owner")


def test_grading_needs_no_torch():
    script = "import sys, tandem.rewards.worker, tandem.rewards.algebra as a; "
    script += "a.warm_up(uses_math_verify=True); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
