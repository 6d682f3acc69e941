"""When sequences end, and what ends them."""

from dataclasses import replace

import numpy as np
import pytest

from tandem.engine.torch.stops import Stops
from tandem.errors import EngineError
from tandem.types import Ending, Sampling


class Letters:
    """A tokenizer of pieces; token 9 is special, and 7 and 8 are the halves of one character."""

    pieces = ("a", "b", "ab", "STO", "P", "OP now", "ST", "<first half>", "<second half>", "<end>")

    def decode(self, token_ids, *, skip_special_tokens=False):
        kept = [i for i in token_ids if not (skip_special_tokens and i % 10 == 9)]
        text = "".join(self.pieces[i % 10] for i in kept)
        text = text.replace("<first half><second half>", "\u00e9")
        return text.replace("<first half>", "\ufffd").replace("<second half>", "\ufffd")


def matched(tokens, stop, **sampling):
    stops = Stops(Letters(), (9,))
    tokens_C = np.array(tokens, dtype=np.int32)
    return stops.matched(Sampling(max_new_tokens=99, stop=stop, **sampling), tokens_C)


@pytest.mark.parametrize(
    ("tokens", "stop"),
    [
        ([0, 3, 4], "STOP"),
        ([0, 6, 5], "STOP"),
        ([0, 1, 5], "OP"),
        ([7, 8], "\u00e9"),
        ([0] * 50 + [3, 9, 4], "STO<end>P"),
    ],
    ids=str,
)
def test_a_stop_string_is_found_across_tokens_and_inside_the_newest(tokens, stop):
    assert matched(tokens, ("zzz", stop)) == stop
    assert matched(tokens[:-1], (stop,)) is None


def test_special_tokens_are_part_of_the_text_unless_skipped():
    assert matched([3, 9, 4], ("STOP",)) is None
    assert matched([3, 9, 4], ("STOP",), skip_special_tokens=True) == "STOP"


def test_a_stop_string_wants_a_tokenizer():
    with pytest.raises(EngineError, match="without a tokenizer"):
        Stops(None, ()).check(Sampling(max_new_tokens=1, stop=("x",)))


def test_an_end_token_stops_and_is_kept_and_named(engine_of, ask):
    free = engine_of().generate([ask(1, max_new_tokens=30)])[0]
    end = int(free.tokens_C[12])
    (completion,) = engine_of(eos_token_ids=(end,)).generate(
        [ask(1, max_new_tokens=30, ignore_eos=False)]
    )
    first = free.tokens_C.tolist().index(end)
    assert completion.tokens_C.tolist() == free.tokens_C[: first + 1].tolist()
    assert completion.ending is Ending.STOP
    assert completion.matched == end


def test_ignored_end_tokens_do_not_stop_but_own_stop_tokens_do(engine_of, ask):
    free = engine_of().generate([ask(1, max_new_tokens=30)])[0]
    assert free.ending is Ending.LENGTH
    assert free.matched is None
    end = int(free.tokens_C[12])
    (completion,) = engine_of(eos_token_ids=(end,)).generate(
        [ask(1, max_new_tokens=30, stop_token_ids=(end,))]
    )
    assert len(completion.tokens_C) == free.tokens_C.tolist().index(end) + 1
    assert completion.matched == end


def test_a_stop_string_ends_a_sequence_among_others_that_go_on(engine_of, ask):
    tokenizer = Letters()
    free = engine_of().generate([ask(n, max_new_tokens=40) for n in range(4)])
    stop = tokenizer.decode(free[2].tokens_C[10:13].tolist())
    done = engine_of(tokenizer=tokenizer).generate(
        [ask(n, max_new_tokens=40, stop=(stop,) if n == 2 else ()) for n in range(4)]
    )
    assert [len(d.tokens_C) for n, d in enumerate(done) if n != 2] == [40] * 3
    assert done[2].matched == stop
    assert done[2].ending is Ending.STOP
    length = len(done[2].tokens_C)
    assert length <= 13
    assert stop in tokenizer.decode(done[2].tokens_C.tolist())
    assert stop not in tokenizer.decode(done[2].tokens_C[:-1].tolist())


def test_a_stop_string_that_began_before_an_interruption_is_found(engine_of, ask):
    tokenizer = Letters()
    (free,) = engine_of().generate([ask(2, max_new_tokens=40)])
    stop = tokenizer.decode(free.tokens_C[10:13].tolist())
    (whole,) = engine_of(tokenizer=tokenizer).generate([ask(2, max_new_tokens=40, stop=(stop,))])
    length = len(whole.tokens_C)
    first = ask(2, max_new_tokens=40)
    begun_T = np.concatenate([first.tokens_T, whole.tokens_C[:-1]])
    later = ask(2, max_new_tokens=40 - length + 1, stop=(stop,))
    later = replace(later, tokens_T=begun_T, num_written=length - 1)
    (rest,) = engine_of(tokenizer=tokenizer).generate([later])
    assert rest.tokens_C.tolist() == whole.tokens_C[-1:].tolist()
    assert rest.matched == stop and rest.ending is Ending.STOP


def test_no_sequence_ends_before_its_least_length(engine_of, ask):
    ends = tuple(range(0, 60, 2))
    asked = {"max_new_tokens": 30, "ignore_eos": False, "stop_token_ids": (1, 3)}
    early = engine_of(eos_token_ids=ends).generate([ask(n, **asked) for n in range(8)])
    assert max(len(done.tokens_C) for done in early) < 17
    late = engine_of(eos_token_ids=ends).generate(
        [ask(n, min_new_tokens=17, **asked) for n in range(8)]
    )
    for done in late:
        assert len(done.tokens_C) > 17
        assert not set(done.tokens_C[:17].tolist()) & {*ends, 1, 3}


def test_forbidden_tokens_do_not_change_the_reported_distribution(engine_of, ask, decoder):
    engine = engine_of(eos_token_ids=tuple(range(0, 60, 2)))
    request = ask(4, max_new_tokens=6, min_new_tokens=6, ignore_eos=False, temperature=1.0)
    (done,) = engine.generate([request])
    whole_T = np.concatenate([request.tokens_T, done.tokens_C])
    np.testing.assert_allclose(done.logprobs_C, engine.canary(whole_T)[-6:], atol=1e-4)
