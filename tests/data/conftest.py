"""A small tokenizer with chat templates, made here from nothing."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CHATML = (
    "{%- if messages[0]['role'] != 'system' or tools %}"
    "{%- set said = messages[0]['content'] if messages[0]['role'] == 'system' else 'Help.' %}"
    "{{ '<|im_start|>system\n' + said }}"
    "{%- if tools %}{{ '\nTools: ' + tools | tojson }}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- for m in messages %}"
    "{%- if m['role'] == 'tool' %}"
    "{%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n[reply]' + m['content'] }}"
    "{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{%- elif not (loop.first and m['role'] == 'system' and tools) %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}"
    "{{ '<think></think>\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)
"""Turns between <|im_start|> and <|im_end|>, a default system prompt, tool replies grouped."""

THINKING = (
    "{%- set ns = namespace(last=-1) %}"
    "{%- for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{%- endfor %}"
    "{%- for m in messages %}"
    "{%- set said = m['content'] %}"
    "{%- if m['role'] == 'assistant' and loop.index0 < ns.last %}"
    "{%- set said = said.split('</think>')[-1] %}"
    "{%- endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + said + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Thoughts of an assistant's turn vanish once another user's turn follows."""

SPECIAL = ["<|im_start|>", "<|im_end|>"]


def make_tokenizer(template: str | None):
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
    model.train_from_iterator(["How many dogs are there? There are two dogs.\n"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer(CHATML)


@pytest.fixture(scope="session")
def thinking_tokenizer():
    return make_tokenizer(THINKING)


@pytest.fixture(scope="session")
def plain_tokenizer():
    return make_tokenizer(None)
