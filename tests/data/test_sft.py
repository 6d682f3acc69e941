import numpy as np
import pytest

from tandem.data.sft import mask_conversation, mask_question, mask_response
from tandem.errors import ConfigError, DataError
from tandem.types import Prompt

DIALOGUE = [
    {"role": "system", "content": "Count."},
    {"role": "user", "content": "How many dogs?"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "three"},
]


def learned(tokenizer, masked):
    """The learned spans as text, in order."""
    mask_T = masked.mask_T
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask_T, [0]])))
    return [
        tokenizer.decode(masked.tokens_T[start:stop].tolist())
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
    ]


def whole(tokenizer, messages, **kwargs):
    return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)


@pytest.mark.parametrize("mask_type", ["qwen", "qwen3"])
def test_only_what_the_assistant_says_is_learned(tokenizer, mask_type):
    if mask_type == "qwen3":
        messages = DIALOGUE[1:]
    else:
        messages = DIALOGUE
    masked = mask_conversation(tokenizer, messages, mask_type=mask_type)
    assert learned(tokenizer, masked) == ["two<|im_end|>\n", "three<|im_end|>\n"]
    assert tokenizer.decode(masked.tokens_T.tolist()) == whole(tokenizer, messages)


def test_the_default_system_prompt_is_written_once(tokenizer):
    masked = mask_conversation(tokenizer, DIALOGUE[1:], mask_type="qwen")
    assert tokenizer.decode(masked.tokens_T.tolist()) == whole(tokenizer, DIALOGUE[1:])


def test_tools_are_rendered_once_and_replies_in_a_row_are_one_turn(tokenizer):
    messages = [
        {"role": "user", "content": "Sum?"},
        {"role": "assistant", "content": "calls"},
        {"role": "tool", "content": "4"},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "nine"},
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    for mask_type in ("qwen", "qwen3"):
        masked = mask_conversation(tokenizer, messages, tools=tools, mask_type=mask_type)
        assert learned(tokenizer, masked) == ["calls<|im_end|>\n", "nine<|im_end|>\n"]
        assert tokenizer.decode(masked.tokens_T.tolist()) == whole(tokenizer, messages, tools=tools)


def test_qwen3_keeps_the_thoughts_of_every_turn(thinking_tokenizer):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>one</think>1"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "<think>two</think>2"},
    ]
    masked = mask_conversation(thinking_tokenizer, messages, mask_type="qwen3")
    assert learned(thinking_tokenizer, masked) == [
        "<think>one</think>1<|im_end|>\n",
        "<think>two</think>2<|im_end|>\n",
    ]


def test_the_generation_prompt_of_the_arguments_is_not_learned(tokenizer):
    messages = [DIALOGUE[1], {"role": "assistant", "content": "<think></think>\ntwo"}]
    masked = mask_conversation(tokenizer, messages, kwargs={"enable_thinking": False})
    assert learned(tokenizer, masked) == ["two<|im_end|>\n"]


def test_a_message_whose_step_mask_is_off_is_not_learned(tokenizer):
    messages = [dict(message) for message in DIALOGUE]
    messages[2]["step_loss_mask"] = 0
    masked = mask_conversation(tokenizer, messages)
    assert learned(tokenizer, masked) == ["three<|im_end|>\n"]


def test_distill_qwen_learns_the_raw_last_message(tokenizer):
    masked = mask_conversation(tokenizer, DIALOGUE[1:3], mask_type="distill_qwen")
    assert learned(tokenizer, masked) == ["two"]
    with pytest.raises(DataError, match="wants a question"):
        mask_conversation(tokenizer, DIALOGUE[1:4], mask_type="distill_qwen")


def test_what_cannot_be_masked_is_said(tokenizer, plain_tokenizer):
    with pytest.raises(ConfigError, match="not there yet"):
        mask_conversation(tokenizer, DIALOGUE, mask_type="qwen3_5")
    with pytest.raises(DataError, match="nothing to learn"):
        mask_conversation(tokenizer, DIALOGUE[:2])
    with pytest.raises(ConfigError, match="no chat template"):
        mask_conversation(plain_tokenizer, DIALOGUE)


def test_an_answer_is_learned_with_its_end_token(tokenizer):
    masked = mask_response(tokenizer, "How many dogs?", " two")
    assert learned(tokenizer, masked) == [" two<|im_end|>"]
    assert tokenizer.decode(masked.tokens_T.tolist()) == "How many dogs? two<|im_end|>"
    again = mask_response(tokenizer, "How many dogs?", " two<|im_end|>")
    assert again.tokens_T.tolist() == masked.tokens_T.tolist()


def prompt_of(content, label=None):
    return Prompt(
        index=0, tokens_T=np.zeros(0, np.int32), text="", content=content, label=label, metadata={}
    )


def test_a_prompt_is_masked_as_what_it_is(tokenizer):
    talk = mask_question(tokenizer, prompt_of(DIALOGUE))
    assert learned(tokenizer, talk) == ["two<|im_end|>\n", "three<|im_end|>\n"]
    plain = mask_question(tokenizer, prompt_of("dogs?", " two"))
    assert learned(tokenizer, plain) == [" two<|im_end|>"]
    chat = mask_question(tokenizer, prompt_of("dogs?", "two"), apply_chat_template=True)
    text = tokenizer.decode(chat.tokens_T.tolist())
    assert text.endswith("<|im_start|>assistant\ntwo<|im_end|>")
    with pytest.raises(DataError, match="--label-key"):
        mask_question(tokenizer, prompt_of("dogs?"))
