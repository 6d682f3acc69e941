"""Blocks are never lost, never held by two that do not share them, and found by what they hold."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.engine.torch.blocks import BlockPool, chain, content

NUM_BLOCKS = 6


def test_equal_prefixes_have_equal_digests_and_others_do_not():
    a = chain(np.arange(10), 4)
    b = chain(np.concatenate([np.arange(8), [99, 98, 97, 96]]), 4)
    c = chain(np.concatenate([[50], np.arange(1, 12)]), 4)
    assert len(a) == 2
    assert a == b[:2]
    assert not set(b) & set(c)


def test_a_chain_goes_on_from_what_is_known():
    tokens_T = np.arange(23)
    assert chain(tokens_T, 4, chain(tokens_T[:9], 4)) == chain(tokens_T, 4)


def test_the_content_of_a_sequence_is_no_block():
    tokens_T = np.arange(8)
    full = chain(tokens_T, 4)
    assert content(tokens_T, 4, full) not in full
    assert content(tokens_T, 4, full) != content(tokens_T[:7], 4, full[:1])


def test_a_named_block_is_found_after_its_holder_left():
    pool = BlockPool(4)
    blocks = pool.take(2)
    for block, digest in zip(blocks, (b"a", b"b"), strict=True):
        pool.name(block, digest)
    pool.give(blocks)
    assert pool.num_available == 4
    assert pool.find([b"a", b"b", b"c"]) == blocks
    assert pool.find([b"x", b"b"]) == []


def test_the_block_unused_for_longest_is_taken_first_and_tails_before_heads():
    pool = BlockPool(3)
    blocks = pool.take(3)
    for block, digest in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.name(block, digest)
    pool.give(blocks)
    assert pool.take(1) == [blocks[2]]
    assert pool.find([b"a", b"b", b"c"]) == blocks[:2]


def test_a_forgetful_idle_pool_is_as_new():
    pool = BlockPool(5)
    blocks = pool.take(4)
    pool.name(blocks[1], b"a")
    pool.give(blocks[::-1])
    pool.forget()
    assert pool.find([b"a"]) == []
    assert pool.take(5) == BlockPool(5).take(5)


CALLS = st.sampled_from(["take", "share", "give", "name", "forget"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(CALLS, st.integers(0, 7))))
def test_no_sequence_of_calls_loses_a_block_or_gives_it_twice(calls):
    pool = BlockPool(NUM_BLOCKS)
    holders: list[list[int]] = []  # what each holder holds
    for what, number in calls:
        held = {block for blocks in holders for block in blocks}
        if what == "take":
            count = min(number, pool.num_available)
            taken = pool.take(count)
            assert len(set(taken)) == count
            assert not held & set(taken)
            holders.append(taken)
        elif what == "share":
            found = pool.find([bytes([number])])
            pool.share(found)
            holders.append(found)
        elif what == "give" and holders:
            pool.give(holders.pop(number % len(holders)))
        elif what == "name" and held:
            pool.name(sorted(held)[number % len(held)], bytes([number]))
        elif what == "forget":
            pool.forget()
        held = {block for blocks in holders for block in blocks}
        assert pool.num_held == len(held)
        assert pool.num_available == NUM_BLOCKS - len(held)
    for blocks in holders:
        pool.give(blocks)
    assert sorted(pool.take(NUM_BLOCKS)) == list(range(NUM_BLOCKS))
