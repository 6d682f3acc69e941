import pytest

from tandem.data.chat import Template, load_tokenizer
from tandem.data.questions import Question
from tandem.errors import ConfigError, DataError

MESSAGES = [{"role": "user", "content": "How many dogs?"}]


def test_messages_are_rendered_with_the_generation_prompt(tokenizer):
    text = Template(tokenizer=tokenizer, apply_chat_template=True).render(
        Question(content=MESSAGES)
    )
    assert text == (
        "<|im_start|>system\nHelp.<|im_end|>\n"
        "<|im_start|>user\nHow many dogs?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_string_becomes_one_user_message_under_the_template(tokenizer):
    template = Template(tokenizer=tokenizer, apply_chat_template=True)
    assert template.render(Question(content="How many dogs?")) == template.render(
        Question(content=MESSAGES)
    )


def test_a_string_without_the_template_is_used_as_it_stands(tokenizer):
    assert Template(tokenizer=tokenizer).render(Question(content=" as is ")) == " as is "


def test_messages_without_the_template_say_what_to_set(tokenizer):
    with pytest.raises(ConfigError, match=r"line 7.*--apply-chat-template"):
        Template(tokenizer=tokenizer).render(Question(content=MESSAGES, where="a.jsonl, line 7"))


def test_template_arguments_and_tools_reach_the_template(tokenizer):
    template = Template(
        tokenizer=tokenizer, apply_chat_template=True, kwargs={"enable_thinking": False}
    )
    tools = [{"type": "function", "function": {"name": "count_dogs"}}]
    text = template.render(Question(content=MESSAGES, tools=tools))
    assert text.endswith("<|im_start|>assistant\n<think></think>\n")
    assert "count_dogs" in text


def test_a_tokenizer_without_a_template_says_so(plain_tokenizer):
    with pytest.raises(ConfigError, match="no chat template"):
        Template(tokenizer=plain_tokenizer, apply_chat_template=True).render(
            Question(content=MESSAGES)
        )


def test_a_template_that_refuses_a_row_names_the_row(tokenizer):
    template = Template(tokenizer=tokenizer, apply_chat_template=True)
    with pytest.raises(DataError, match=r"line 9.*refuses"):
        template.render(
            Question(content=[{"role": "user", "content": None}], where="a.jsonl, line 9")
        )


def test_special_tokens_are_not_added_twice(tokenizer):
    text = "<|im_start|>user\nHow many dogs?<|im_end|>\n"
    tokens_T = Template(tokenizer=tokenizer).tokens([text])[0]
    assert tokenizer.decode(tokens_T.tolist()) == text
    assert (tokens_T == tokenizer.convert_tokens_to_ids("<|im_start|>")).sum() == 1


def test_a_tokenizer_is_loaded_from_a_folder_and_nothing_else(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "model")
    loaded = load_tokenizer(str(tmp_path / "model"))
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded("two dogs")["input_ids"] == tokenizer("two dogs")["input_ids"]
    with pytest.raises(ConfigError, match="is not a folder"):
        load_tokenizer("some-org/some-model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path / "empty"))
