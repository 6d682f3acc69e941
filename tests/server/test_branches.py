"""Which request goes on where, and what of it is trained."""

import numpy as np
import pytest

from tandem.server import Recorder
from tandem.server.branches import Pins, Session
from tandem.server.words import Words
from tandem.types import Completion, Ending, Prompt, SampleKey, Sampling

KEY = SampleKey(seed=11, prompt=4, sample=1)


def session_of(realign_tokens=4, prompt=(1, 2, 3), key=KEY):
    prompt_T = np.asarray(prompt, np.int32)
    return Session(key=key, prompt_T=prompt_T, pins=Pins(), way=None, realign_tokens=realign_tokens)


def completion_of(*tokens, ending=Ending.STOP):
    return Completion(
        id="",
        tokens_C=np.asarray(tokens, np.int32),
        logprobs_C=-np.arange(1, len(tokens) + 1, dtype=np.float32),
        version_C=np.full(len(tokens), 7, np.int32),
        ending=ending,
    )


def play(session, prompt, *tokens):
    turn = session.begin(np.asarray(prompt, np.int32))
    turn.finish(completion_of(*tokens))
    return turn


def test_a_prompt_that_extends_what_is_held_goes_on_there():
    session = session_of()
    play(session, [1, 2, 3], 10, 11)
    play(session, [1, 2, 3, 10, 11, 20, 21], 12)
    [branch] = session.branches
    assert branch.tokens_T.tolist() == [1, 2, 3, 10, 11, 20, 21, 12]
    assert branch.sampled_T.astype(int).tolist() == [0, 0, 0, 1, 1, 0, 0, 1]
    assert branch.logprobs_T.tolist() == [0, 0, 0, -1, -2, 0, 0, -1]
    assert branch.version_T.tolist() == [-1, -1, -1, 7, 7, -1, -1, 7]
    assert (branch.prompt_length, branch.num_turns) == (3, 2)


def test_a_prompt_that_departs_early_begins_a_branch_with_nothing_trained_twice():
    session = session_of()
    play(session, [1, 2, 3], 10, 11)
    play(session, [1, 2, 9, 10, 11, 20], 12)
    first, second = session.branches
    assert first.tokens_T.tolist() == [1, 2, 3, 10, 11]
    assert second.tokens_T.tolist() == [1, 2, 9, 10, 11, 20, 12]
    assert second.sampled_T.astype(int).tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_drift_at_the_end_of_the_last_reply_is_taken_over_and_counted():
    session = session_of(realign_tokens=2)
    play(session, [1, 2, 3], 10, 11, 12, 13)
    play(session, [1, 2, 3, 10, 11, 55, 20], 14)
    [branch] = session.branches
    assert branch.tokens_T.tolist() == [1, 2, 3, 10, 11, 55, 20, 14]
    assert branch.sampled_T.astype(int).tolist() == [0, 0, 0, 1, 1, 0, 0, 1]
    assert branch.num_realigned == 2


@pytest.mark.parametrize("realign_tokens", [0, 1])
def test_drift_over_more_tokens_than_allowed_begins_a_branch(realign_tokens):
    session = session_of(realign_tokens=realign_tokens)
    play(session, [1, 2, 3], 10, 11, 12, 13)
    play(session, [1, 2, 3, 10, 11, 55, 20], 14)
    assert [branch.num_realigned for branch in session.branches] == [0, 0]
    assert session.branches[0].tokens_T.tolist() == [1, 2, 3, 10, 11, 12, 13]


def test_asking_again_is_no_drift():
    session = session_of(realign_tokens=100)
    play(session, [1, 2, 3], 10, 11)
    play(session, [1, 2, 3], 12)
    play(session, [1, 2, 3, 10], 13)
    assert [branch.tokens_T.tolist() for branch in session.branches] == [
        [1, 2, 3, 10, 11],
        [1, 2, 3, 12],
        [1, 2, 3, 10, 13],
    ]


def test_a_reply_that_was_replaced_whole_begins_a_branch():
    session = session_of(realign_tokens=100)
    play(session, [1, 2, 3], 10, 11)
    play(session, [1, 2, 3, 50, 51, 20], 12)
    assert len(session.branches) == 2


def test_two_requests_at_once_do_not_write_into_each_other():
    session = session_of()
    play(session, [1, 2, 3], 10)
    longer = np.asarray([1, 2, 3, 10, 20], np.int32)
    first, second = session.begin(longer), session.begin(longer)
    second.finish(completion_of(12))
    first.finish(completion_of(11))
    assert [branch.tokens_T.tolist() for branch in session.branches] == [
        [1, 2, 3, 10, 20, 11],
        [1, 2, 3, 10, 20, 12],
    ]
    assert session.branches[1].sampled_T.sum() == 1


def test_a_turn_that_brought_nothing_leaves_no_trace():
    session = session_of()
    session.begin(np.asarray([1, 2, 3], np.int32)).drop()
    assert session.branches == []
    play(session, [1, 2, 3], 10)
    session.begin(np.asarray([1, 2, 3, 10, 20], np.int32)).drop()
    assert session.branches[0].tokens_T.tolist() == [1, 2, 3, 10]
    play(session, [1, 2, 3, 10, 30], 11)
    assert len(session.branches) == 1


def test_the_first_answer_to_the_tasks_prompt_has_the_key_of_a_plain_rollout():
    session = session_of()
    first = play(session, [1, 2, 3], 10)
    assert first.key == KEY
    assert play(session, [1, 2, 3, 10, 20], 11).key == KEY  # other places of one sequence
    again = play(session, [1, 2, 3], 12)
    assert again.key.seed != KEY.seed
    assert (again.key.prompt, again.key.sample) == (4, 1)


def test_keys_do_not_depend_on_the_order_of_different_requests():
    def keys(*prompts):
        session = session_of()
        return {prompt: session.begin(np.asarray(prompt)).key for prompt in prompts}

    one, other = (1, 2, 3), (7, 8)
    assert keys(one, other) == keys(other, one)
    assert len(set(keys(one, other).values())) == 2


def test_a_session_fixes_what_the_trainer_must_know():
    asked = Sampling(max_new_tokens=5, temperature=0.2, top_p=0.5)
    assert Pins(temperature=1.0, top_p=1.0).applied(asked) == Sampling(max_new_tokens=5)


def test_the_sequences_of_a_session_are_samples_of_one_attempt():
    recorder, prompt = (
        Recorder(),
        Prompt(index=0, tokens_T=np.asarray([1], np.int32), text="", content=""),
    )
    session = recorder.open("s")
    play(session, [1], 5)
    how = {"index": 0, "position": 0, "decode": str}
    play(session, [9], 6)
    samples = recorder.samples_of("s", prompt, **how)
    assert [one.tokens_T.tolist() for one in samples] == [[1, 5], [9, 6]]
    assert [one.rollout for one in samples] == [0, 0]


class Shouting:
    """A tokenizer whose template writes replies otherwise than they were sampled."""

    chat_template = "there is one"

    def __call__(self, text, *, add_special_tokens):
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, token_ids, *, skip_special_tokens=False):
        return "".join(map(chr, token_ids))

    def apply_chat_template(self, conversation, *, tools, tokenize, add_generation_prompt):
        turns = [f"<{one['role'][0]}>{one['content'].upper()}|" for one in conversation]
        return "".join(turns) + "<a>"


def test_what_the_policy_wrote_is_never_tokenised_again():
    words, session = Words(Shouting()), session_of(key=None)
    messages = [{"role": "user", "content": "hi"}]
    tokens_T, said = words.chat(messages, {}, session=session)
    assert words.decode(tokens_T) == "<u>HI|<a>"
    session.begin(tokens_T).finish(
        completion_of(*map(ord, "low|")), (*said, '{"content": "low", "role": "assistant"}')
    )
    messages += [{"role": "assistant", "content": " low"}, {"role": "user", "content": "more"}]
    tokens_T, _ = words.chat(messages, {}, session=session)
    assert words.decode(tokens_T) == "<u>HI|<a>low|<u>MORE|<a>"
    play(session, tokens_T, 65)
    assert len(session.branches) == 1


def test_a_reply_without_its_end_is_closed_by_the_template():
    words, session = Words(Shouting()), session_of(key=None)
    messages = [{"role": "user", "content": "hi"}]
    tokens_T, said = words.chat(messages, {}, session=session)
    session.begin(tokens_T).finish(
        completion_of(*map(ord, "lo"), ending=Ending.LENGTH),
        (*said, '{"content": "lo", "role": "assistant"}'),
    )
    messages += [{"role": "assistant", "content": "lo"}, {"role": "user", "content": "x"}]
    tokens_T, _ = words.chat(messages, {}, session=session)
    assert words.decode(tokens_T) == "<u>HI|<a>lo|<u>X|<a>"


def test_going_back_in_a_conversation_keeps_what_was_sampled_before():
    words, session = Words(Shouting()), session_of(key=None)
    first = [{"role": "user", "content": "hi"}]
    tokens_T, said = words.chat(first, {}, session=session)
    session.begin(tokens_T).finish(
        completion_of(*map(ord, "a|")), (*said, '{"content": "a", "role": "assistant"}')
    )
    told = [*first, {"role": "assistant", "content": "a"}]
    for word in ("one", "two"):
        asked = [*told, {"role": "user", "content": word}]
        tokens_T, said = words.chat(asked, {}, session=session)
        assert words.decode(tokens_T) == f"<u>HI|<a>a|<u>{word.upper()}|<a>"
        play(session, tokens_T, 66)
    first_branch, second_branch = session.branches
    assert first_branch.sampled_T.sum() == 3
    assert second_branch.sampled_T.sum() == 1


def test_an_edited_reply_is_not_taken_for_the_policys():
    words, session = Words(Shouting()), session_of(key=None)
    messages = [{"role": "user", "content": "hi"}]
    tokens_T, said = words.chat(messages, {}, session=session)
    session.begin(tokens_T).finish(
        completion_of(*map(ord, "low|")), (*said, '{"content": "low", "role": "assistant"}')
    )
    messages += [{"role": "assistant", "content": "other"}, {"role": "user", "content": "x"}]
    tokens_T, _ = words.chat(messages, {}, session=session)
    assert words.decode(tokens_T) == "<u>HI|<a>OTHER|<u>X|<a>"
