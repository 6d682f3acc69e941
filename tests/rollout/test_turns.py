"""Conversations of several turns, and tools in processes of their own."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from tandem.hooks import Sample
from tandem.hooks.asking import Line, connected
from tandem.rollout.custom.samples import fresh_view, sample_of
from tandem.rollout.groups import blank_sample
from tandem.rollout.sandbox import Sandbox
from tandem.rollout.turns import Limits, converse
from tandem.types import Completion, Ending, Prompt

PARAMS = {"max_new_tokens": 100, "temperature": 1.0}
PROMPT = Prompt(index=0, tokens_T=np.array([1, 2], np.int32), text="ask", content="ask")


class Letters:
    """Token n is the letter n."""

    def encode(self, text, *, add_special_tokens):
        return [ord(letter) for letter in text]

    def decode(self, tokens, *, skip_special_tokens=False):
        return "".join(map(chr, tokens))


class Script:
    """An engine that writes these turns, the same wherever it is interrupted."""

    def __init__(self, *turns, cut_after=None):
        self.turns, self.cut_after = turns, cut_after
        self.asked = []

    async def ask(self, tokens, sampling, *, sample, branch):
        self.asked.append(list(tokens))
        said = Letters().decode(tokens[2:])
        turn = next(turn for turn in self.turns if not self.is_done(turn, said))
        begin = max((n for n in range(len(turn) + 1) if said.endswith(turn[:n])), default=0)
        ending, rest = Ending.STOP, turn[begin:]
        if self.cut_after is not None:
            ending, rest = Ending.ABORT, rest[: self.cut_after]
            self.turns = ()
        if len(rest) > sampling.max_new_tokens:
            ending, rest = Ending.LENGTH, rest[: sampling.max_new_tokens]
        count = len(rest)
        return Completion(
            id="",
            tokens_C=np.array([ord(letter) for letter in rest], np.int32),
            logprobs_C=np.full(count, -0.5, np.float32),
            version_C=np.full(count, 3, np.int32),
            ending=ending,
        )

    def is_done(self, turn, said):
        return turn in said


class Echo:
    """Replies with what it heard in brackets, until it hears `stop`."""

    def __init__(self, heard=None):
        self.heard = [] if heard is None else heard

    async def reply(self, text):
        self.heard.append(text)
        return None if text == "stop" else f"[{text}]"


async def played(script, sample=None, limits=None, environment=Echo):
    sample = sample or fresh_view(PROMPT, blank_sample(PROMPT, index=0, position=0))
    with connected(Line(ask=script.ask, tokenizer=Letters())):
        return await converse(None, sample, PARAMS, environment, limits or Limits())


async def test_turns_and_replies_alternate_and_only_turns_are_trained():
    sample = await played(Script("abc", "de", "stop"))
    assert sample.response == "abc[abc]de[de]stop"
    assert sample.status == Sample.Status.COMPLETED
    trained = [letter for letter, one in zip(sample.response, sample.loss_mask, strict=True) if one]
    assert "".join(trained) == "abcdestop"
    assert Letters().decode(sample.tokens[2:]) == sample.response
    assert [p for p, one in zip(sample.rollout_log_probs, sample.loss_mask, strict=True) if not one]
    assert sample.metadata["turns"] == [[2, 5], [10, 12], [16, 20]]


@pytest.mark.parametrize(
    ("limits", "response"),
    [
        (Limits(turns=2), "abc[abc]de"),
        (Limits(tokens=9), "abc[abc]d"),
        (Limits(turn_tokens=2, turns=1), "ab"),
    ],
)
async def test_limits_end_a_conversation(limits, response):
    sample = await played(Script("abc", "de", "stop"), limits=limits)
    assert sample.response == response and sample.status == Sample.Status.TRUNCATED


async def test_a_slow_world_ends_a_conversation():
    class Slow:
        async def reply(self, text):
            await asyncio.Event().wait()

    sample = await played(Script("abc"), limits=Limits(seconds=0.01), environment=Slow)
    assert sample.response == "abc" and sample.status == Sample.Status.TRUNCATED
    assert sample.metadata["out_of_time"]


async def test_a_conversation_that_was_cut_off_goes_on_with_a_new_world():
    whole = await played(Script("abc", "defg", "stop"))
    first = Script("abc", "defg", "stop")
    half = fresh_view(PROMPT, blank_sample(PROMPT, index=0, position=0))

    async def cut(tokens, sampling, *, sample, branch):
        script = Script("abc", "defg", "stop", cut_after=2 if len(tokens) > 2 else None)
        return await script.ask(tokens, sampling, sample=sample, branch=branch)

    first.ask = cut
    half = await played(first, half)
    assert half.status == Sample.Status.ABORTED and half.response == "abc[abc]de"
    before = sample_of(half, blank_sample(PROMPT, index=0, position=0), version=3, reward_key=None)
    heard = []
    again = await played(
        Script("abc", "defg", "stop"), fresh_view(PROMPT, before), environment=lambda: Echo(heard)
    )
    assert again.response == whole.response and again.loss_mask == whole.loss_mask
    assert heard == ["abc", "defg", "stop"]


async def test_a_world_that_answers_otherwise_begins_anew():
    half = await played(Script("abc", "defg", "stop"), limits=Limits(turns=2))

    class Other(Echo):
        async def reply(self, text):
            return None if text == "stop" else "?"

    again = await played(Script("abc", "defg", "stop"), half, environment=Other)
    assert again.response == "abc?defg?stop"


def test_a_hooks_sample_keeps_the_versions_it_had():
    blank = blank_sample(PROMPT, index=0, position=0)
    view = fresh_view(PROMPT, blank)
    view.append_response_tokens(None, [5, 6], [-1.0, -2.0], text="ab")
    first = sample_of(view, blank, version=1, reward_key=None)
    view = fresh_view(PROMPT, replace(first, ending=Ending.ABORT))
    view.append_response_tokens(None, [7], trainable=False)
    view.append_response_tokens(None, [8], [-3.0])
    second = sample_of(view, first, version=2, reward_key=None)
    assert second.version_T.tolist() == [-1, -1, 1, 1, -1, 2]
    assert second.sampled_T.tolist() == [False, False, True, True, False, True]
    assert second.logprobs_T.tolist() == [0, 0, -1, -2, 0, -3]


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "tool.py"
    path.write_text(
        "import json, sys, time\n"
        "for line in sys.stdin:\n"
        "    wish = json.loads(line)\n"
        "    if wish == 'hang': time.sleep(1000)\n"
        "    if wish == 'eat': bytearray(4 << 30)\n"
        "    if wish == 'write': open('there', 'w').write('x')\n"
        "    print(json.dumps(wish), flush=True)\n"
    )
    return path


async def test_a_tool_that_hangs_or_dies_is_replaced(program):
    sandbox = Sandbox(program, num_processes=1, limit_s=0.3, memory_bytes=256 << 20)
    assert (await sandbox.call({"a": 1})).value == {"a": 1}
    assert "no answer" in (await sandbox.call("hang")).error
    assert (await sandbox.call("again")).value == "again"
    assert "died" in (await sandbox.call("eat")).error
    assert (await sandbox.call("and again")).value == "and again"
    sandbox.close()


async def test_the_first_call_of_a_process_has_the_limit_of_every_other(program):
    sandbox = Sandbox(program, num_processes=1, limit_s=0.3, memory_bytes=256 << 20)
    assert (await sandbox.call("hang")).error == "no answer within 0.3 s"
    sandbox.close()
