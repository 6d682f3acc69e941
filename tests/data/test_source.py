import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.config import DataConfig, EvalSet
from tandem.data import PromptSource, load_eval_prompts
from tandem.errors import ConfigError, DataError


class Letters:
    """One token a character: enough of a tokenizer for questions of order and length."""

    chat_template = None

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def data(folder, rows):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(folder, count):
    return data(folder, [{"input": f"question {n}", "label": n} for n in range(count)])


def source_of(path, **settings):
    return PromptSource(DataConfig(prompt_data=path, label_key="label", **settings), Letters())


def labels(prompts):
    return [prompt.label for prompt in prompts]


def test_prompts_come_in_order_with_running_indices_and_wrap_as_often_as_needed(tmp_path):
    source = source_of(numbered(tmp_path, 3))
    assert source.prompts_per_epoch == 3
    prompts = source.take(2) + source.take(8)
    assert labels(prompts) == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert [prompt.index for prompt in prompts] == list(range(10))
    assert prompts[0].text == "question 0"
    assert prompts[0].tokens_T.tolist() == [ord(letter) for letter in "question 0"]


def test_each_epoch_shuffles_the_original_order_with_seed_plus_epoch(tmp_path):
    source = source_of(numbered(tmp_path, 20), rollout_shuffle=True, rollout_seed=7)
    for epoch in range(3):
        wanted = list(range(20))
        random.seed(7 + epoch)  # the dialect's own words
        random.shuffle(wanted)
        assert labels(source.take(20)) == wanted


def test_taking_prompts_leaves_the_global_random_state_alone(tmp_path):
    before = random.getstate()
    source_of(numbered(tmp_path, 5), rollout_shuffle=True).take(12)
    assert random.getstate() == before


@given(taken=st.lists(st.integers(0, 9), max_size=5), then=st.integers(1, 12))
def test_a_restored_source_goes_on_as_the_one_that_was_not_stopped(tmp_path_factory, taken, then):
    path = numbered(tmp_path_factory.mktemp("resume"), 4)
    first = source_of(path, rollout_shuffle=True)
    for count in taken:
        first.take(count)
    second = source_of(path, rollout_shuffle=True)
    second.restore(json.loads(json.dumps(first.state())))
    ours, theirs = second.take(then), first.take(then)
    assert labels(ours) == labels(theirs)
    assert [prompt.index for prompt in ours] == [prompt.index for prompt in theirs]


def test_restoring_onto_other_data_says_what_changed(tmp_path):
    state = source_of(numbered(tmp_path, 4), rollout_shuffle=True).state()
    with pytest.raises(DataError, match="prompts was 4 and is 5"):
        source_of(numbered(tmp_path, 5), rollout_shuffle=True).restore(state)
    with pytest.raises(DataError, match="shuffle seed was 42 and is None"):
        source_of(numbered(tmp_path, 4)).restore(state)
    edited = data(tmp_path, [{"input": f"question {n}", "label": -n} for n in range(4)])
    with pytest.raises(DataError, match="content was"):
        source_of(edited, rollout_shuffle=True).restore(state)


def test_the_same_data_at_another_path_may_be_restored(tmp_path):
    state = source_of(numbered(tmp_path, 4)).state()
    (tmp_path / "moved").mkdir()
    source_of(numbered(tmp_path / "moved", 4)).restore(state)


def test_long_prompts_are_dropped_and_counted_in_order(tmp_path):
    rows = [{"input": "x" * length, "label": length} for length in (3, 9, 5, 6, 4)]
    source = source_of(data(tmp_path, rows), rollout_max_prompt_len=5)
    assert source.prompts_per_epoch == 3
    assert labels(source.take(4)) == [3, 5, 4, 3]
    with pytest.raises(DataError, match="the shortest has 3"):
        source_of(data(tmp_path, rows), rollout_max_prompt_len=2)


def test_long_message_lists_are_dropped_too(tmp_path, tokenizer):
    rows = [
        {"input": [{"role": "user", "content": "dogs " * repeat}], "label": repeat}
        for repeat in (1, 200)
    ]
    cfg = DataConfig(
        prompt_data=data(tmp_path, rows),
        label_key="label",
        apply_chat_template=True,
        rollout_max_prompt_len=100,
    )
    source = PromptSource(cfg, tokenizer)
    assert labels(source.take(2)) == [1, 1]


def test_lines_that_cannot_be_read_are_left_out_when_asked(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"input": "a", "label": 1}\nbroken\n{"label": 2}\n')
    assert source_of(str(path), skip_bad_lines=True).prompts_per_epoch == 1


def test_messages_without_a_template_stop_at_the_start(tmp_path):
    rows = [{"input": [{"role": "user", "content": "a"}], "label": 1}]
    with pytest.raises(ConfigError, match="--apply-chat-template"):
        source_of(data(tmp_path, rows))


def test_no_data_says_what_to_set():
    with pytest.raises(ConfigError, match="--prompt-data"):
        PromptSource(DataConfig(), Letters())


def test_supervised_prompts_keep_their_messages_unrendered(tmp_path):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    cfg = DataConfig(prompt_data=data(tmp_path, [{"input": messages}]))
    prompt = PromptSource(cfg, Letters(), is_sft=True).take(1)[0]
    assert prompt.content == messages
    assert len(prompt.tokens_T) == 0


def test_an_evaluation_set_reads_its_own_keys_and_lays_its_settings_over_the_metadata(tmp_path):
    rows = [
        {"ask": "short", "gold": "1", "about": {"level": 1}},
        {"ask": "much too long", "gold": "2", "about": {}},
    ]
    cfg = EvalSet(
        name="mine",
        path=data(tmp_path, rows),
        input_key="ask",
        label_key="gold",
        metadata_key="about",
        rm_type="math",
        custom_rm_path="pkg.fn",
        metadata_overrides={"level": 2},
        max_prompt_len=6,
    )
    held_out = load_eval_prompts(cfg, Letters())
    assert [prompt.index for prompt in held_out] == [0]
    assert held_out[0].label == "1"
    assert held_out[0].metadata == {
        "level": 2,
        "rm_type": "math",
        "custom_rm_path": "pkg.fn",
    }
