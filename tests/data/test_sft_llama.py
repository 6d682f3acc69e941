"""Loss masks with a template in the manner of Llama 3: headers, a dated system turn, `ipython`."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tandem.data.sft import mask_conversation

SPECIAL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]

LLAMA = (
    "{{ '<|begin_of_text|>' }}"
    "{%- set said = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday is a day.\n\n' + said }}"
    "{%- if tools %}{{ 'Tools: ' + tools | tojson }}{% endif %}{{ '<|eot_id|>' }}"
    "{%- for m in messages %}"
    "{%- if m['role'] == 'tool' %}"
    "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + m['content'] | tojson + '<|eot_id|>' }}"
    "{%- elif m.get('tool_calls') %}"
    "{%- set call = m['tool_calls'][0]['function'] %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{{ '{\"name\": \"' + call['name'] + '\"}' + '<|eot_id|>' }}"
    "{%- elif not (loop.first and m['role'] == 'system') %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] + '<|eot_id|>' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{%- endif %}"
)

CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add"}}]}
WITH_TOOLS = [
    {"role": "system", "content": "Count."},
    {"role": "user", "content": "How many?"},
    {**CALL, "content": ""},
    {"role": "tool", "content": "seven dogs"},
    {"role": "tool", "content": "eight cats"},
    {"role": "assistant", "content": "fifteen"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "yes"},
]
TOOLS = [{"type": "function", "function": {"name": "add"}}]
LEARNED = ['{"name": "add"}<|eot_id|>', "fifteen<|eot_id|>", "yes<|eot_id|>"]


@pytest.fixture(scope="module")
def llama():
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(["How many dogs? Seven dogs and eight cats."], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token=SPECIAL[0], eos_token=SPECIAL[-1]
    )
    tokenizer.chat_template = LLAMA
    return tokenizer


def learned(tokenizer, masked):
    """The learned spans as text, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], masked.mask_T, [0]])))
    return [
        tokenizer.decode(masked.tokens_T[start:stop].tolist())
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
    ]


@pytest.mark.parametrize("mask_type", ["qwen", "qwen3"])
def test_replies_of_tools_are_not_learned_and_calls_are(llama, mask_type):
    masked = mask_conversation(llama, WITH_TOOLS, tools=TOOLS, mask_type=mask_type)
    assert learned(llama, masked) == LEARNED


def test_the_tokens_are_those_of_the_template_and_the_beginning_comes_once(llama):
    masked = mask_conversation(llama, WITH_TOOLS, tools=TOOLS, mask_type="qwen")
    text = llama.apply_chat_template(WITH_TOOLS, tools=TOOLS, tokenize=False)
    assert llama.decode(masked.tokens_T.tolist()) == text
    assert masked.tokens_T.tolist().count(llama.bos_token_id) == 1
    assert masked.tokens_T.tolist() == llama(text, add_special_tokens=False)["input_ids"]


def test_a_conversation_without_a_system_turn_keeps_the_templates_own(llama):
    messages = WITH_TOOLS[1:2] + WITH_TOOLS[-1:]
    masked = mask_conversation(llama, messages, mask_type="qwen")
    text = llama.apply_chat_template(messages, tokenize=False)
    assert llama.decode(masked.tokens_T.tolist()) == text
    assert learned(llama, masked) == ["yes<|eot_id|>"]
