"""Replies in the frame of a real chat template, with the model's turns token by token."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tandem.errors import HookError
from tandem.hooks import Sample
from tandem.hooks.asking import LINE, Line
from tandem.rollout.custom.samples import fresh_view
from tandem.rollout.frames import ChatFrame
from tandem.rollout.groups import blank_sample
from tandem.rollout.turns import Limits, converse
from tandem.types import Completion, Ending, Prompt

ROOT = Path(__file__).resolve().parents[2]
ASK = [{"role": "user", "content": "guess a number"}]
PARAMS = {"max_new_tokens": 200, "temperature": 1.0}
TOOL_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}<|im_start|>user\n<reply>{{ m['content'] }}"
    "</reply><|im_end|>\n{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if quiet %}<quiet>{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    path = ROOT / "examples" / "small_model.py"
    spec = importlib.util.spec_from_file_location("small_model", path)
    small_model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small_model)
    return small_model.train_tokenizer(["guess a number", "higher", "seven", "lower"], 300)


class Hints:
    def __init__(self):
        self.hints = iter(("higher", "lower than that", None))

    async def reply(self, text):
        return next(self.hints)


async def played(tokenizer, turns, frame, limits=None, ends_turns=True):
    """A conversation in which the model writes these texts, and its end token where it does."""
    text = tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    prompt = Prompt(index=0, tokens_T=np.array(tokens, np.int32), text=text, content=ASK)
    script = iter(turns)

    async def ask(asked, sampling, *, sample, branch):
        said = tokenizer(next(script), add_special_tokens=False)["input_ids"]
        if ends_turns:
            said = [*said, tokenizer.eos_token_id]
        said = said[: sampling.max_new_tokens]
        return Completion(
            id="",
            tokens_C=np.array(said, np.int32),
            logprobs_C=np.full(len(said), -0.5, np.float32),
            version_C=np.zeros(len(said), np.int32),
            ending=Ending.STOP,
        )

    token = LINE.set(Line(ask=ask, tokenizer=tokenizer))
    try:
        view = fresh_view(prompt, blank_sample(prompt, index=0, position=0))
        return await converse(None, view, PARAMS, Hints, limits or Limits(), frame=frame)
    finally:
        LINE.reset(token)


def rendered(tokenizer, *turns, role="user", **kwargs):
    """The tokens of the same conversation when the template renders all of it."""
    replies = [{"role": role, "content": hint} for hint in ("higher", "lower than that")]
    messages = [*ASK]
    for nth, turn in enumerate(turns):
        messages.append({"role": "assistant", "content": turn})
        messages += replies[nth : nth + 1] if nth + 1 < len(turns) else []
    text = tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


async def test_a_conversation_has_the_tokens_that_the_template_gives(tokenizer):
    turns = ("seven", "a number", "guess")
    sample = await played(tokenizer, turns, ChatFrame())
    whole = rendered(tokenizer, *turns)
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert sample.tokens + newline == whole
    start = len(sample.tokens) - sample.response_length
    trained = [t for t, one in zip(sample.tokens[start:], sample.loss_mask, strict=True) if one]
    ends = [tokenizer.eos_token_id]
    wrote = [tokenizer(turn, add_special_tokens=False)["input_ids"] + ends for turn in turns]
    assert trained == [token for turn in wrote for token in turn]
    assert tokenizer.decode(sample.tokens[start:]) == sample.response
    assert sample.status == Sample.Status.COMPLETED


async def test_a_turn_that_was_not_ended_is_ended_by_the_frame_untrained(tokenizer):
    limits = Limits(turn_tokens=1)
    sample = await played(
        tokenizer, ("seven", "a number", "guess"), ChatFrame(), limits, ends_turns=False
    )
    text = tokenizer.decode(sample.tokens)
    assert text.count("<|im_end|>") == 5  # of the question, two turns and two replies
    first = sample.loss_mask.index(0)
    start = len(sample.tokens) - sample.response_length
    assert first == 1 and sample.tokens[start + first] == tokenizer.eos_token_id


async def test_replies_of_a_tool_and_settings_of_the_template(tokenizer):
    before = tokenizer.chat_template
    tokenizer.chat_template = TOOL_TEMPLATE
    try:
        sample = await played(
            tokenizer, ("seven", "guess"), ChatFrame("tool", quiet=True), Limits(turns=2)
        )
        assert (
            "<reply>higher</reply><|im_end|>\n<|im_start|>assistant\n<quiet>guess"
            in sample.response
        )
        tokenizer.chat_template = "{{ messages[-1]['content'] }}"
        with pytest.raises(HookError, match="does not show what an assistant said"):
            await played(tokenizer, ("seven", "guess"), ChatFrame())
    finally:
        tokenizer.chat_template = before
