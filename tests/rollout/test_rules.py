"""The rules of a round, under every order of finishing and judging."""

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from tandem.rollout.rules import KEEP, Round, Ruling

NO = Ruling(reason="no")
FALLBACK = Ruling(reason="no", is_fallback=True)


@strategies.composite
def rounds(draw):
    """Settings of a round, and a source of choices for what happens in it."""
    return (
        draw(strategies.integers(1, 6)),
        draw(strategies.integers(1, 9)),
        draw(strategies.sampled_from(["finished", "prompts"])),
        draw(strategies.booleans()),
        draw(strategies.booleans()),
        draw(strategies.randoms(use_true_random=False)),
    )


def play(wanted, fetch, order, filters, saves, random, ruling_of):
    """A round played to its end: events in any order; judging is late by any amount."""
    rules = Round(wanted, order=order, filters=filters, saves=saves)
    sampling, judging, finished = [], [], []
    num_started = 0
    while not rules.is_full:
        while rules.wants_more:
            new = range(num_started, num_started + fetch)
            rules.start(new)
            sampling += new
            num_started += fetch
        if sampling and (not judging or random.random() < 0.6):
            group = sampling.pop(random.randrange(len(sampling)))
            finished.append(group)
            rules.finish(group)
            if filters:
                judging.append(group)
        else:
            group = judging.pop(random.randrange(len(judging)))
            rules.rule(group, ruling_of(group))
    return rules, finished, num_started


def ruled(group):
    return (KEEP, NO, FALLBACK)[hash((group, 7)) % 3] if group < 60 else KEEP


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rounds())
def test_a_full_round_keeps_just_what_is_wanted_and_accounts_for_every_group(case):
    wanted, fetch, order, filters, saves, random = case
    rules, finished, num_started = play(wanted, fetch, order, filters, saves, random, ruled)
    kept, dropped = rules.kept, set(rules.dropped)
    assert len(kept) == len(set(kept)) == wanted
    assert list(kept) == sorted(kept)
    assert not dropped & set(kept)
    assert dropped | set(kept) <= set(finished) <= set(range(num_started))
    assert not rules.wants_more and not rules.hangs_on_judges
    assert num_started - len(dropped) >= wanted
    assert num_started - len(dropped) < wanted + fetch or num_started == fetch


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rounds())
def test_prompt_order_keeps_the_first_accepted_prompts(case):
    wanted, fetch, _, _, saves, random = case
    plain = lambda group: NO if group % 3 == 1 else KEEP  # noqa: E731
    rules, _, _ = play(wanted, fetch, "prompts", True, saves, random, plain)
    assert list(rules.kept) == [n for n in range(4 * wanted + 3) if n % 3 != 1][:wanted]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rounds())
def test_without_hold_ups_judges_do_not_change_what_is_kept(case):
    """The engine finishes groups in one order; judges are early or late. Sampling stands still
    while the rules say that it hangs on judges."""
    wanted, fetch, order, _, _, random = case
    given_by = []
    for judge_share in (0.0, 0.5, 1.0):
        rules = Round(wanted, order=order, filters=True, saves=True)
        sampling, judging, log, num_started = [], [], [], 0
        while not rules.is_full:
            while rules.wants_more:
                rules.start(range(num_started, num_started + fetch))
                sampling += range(num_started, num_started + fetch)
                num_started += fetch
                log.append(("fetch", len([one for one in log if one[0] == "finish"])))
            waits = rules.hangs_on_judges or not sampling
            if waits or (judging and random.random() < judge_share):
                group = judging.pop(random.randrange(len(judging)))
                rules.rule(group, ruled(group))
            else:  # the engine's own order: a function of what was started, and when
                group = min(sampling, key=lambda group: (group * 7919) % 31)
                sampling.remove(group)
                log.append(("finish", group))
                rules.finish(group)
                judging.append(group)
        given_by.append((rules.kept, dict(rules.dropped), log))
    assert given_by[0] == given_by[1] == given_by[2]


def test_refill_starts_as_soon_as_the_rest_cannot_reach_what_is_wanted():
    rules = Round(3, filters=True)
    assert rules.wants_more
    rules.start(range(4))
    assert not rules.wants_more
    for group in (0, 1):
        rules.finish(group)
    rules.rule(0, NO)
    assert not rules.wants_more
    rules.rule(1, NO)
    assert rules.wants_more


def test_fallback_is_kept_only_where_others_would_have_to_be_sampled():
    rules = Round(2, filters=True)
    rules.start(range(3))
    for group in range(3):
        rules.finish(group)
        rules.rule(group, FALLBACK)
    assert rules.kept == (1, 2)
    assert dict(rules.dropped) == {0: "no"}


def test_rulings_count_in_the_order_of_finishing():
    rules = Round(1, filters=True)
    rules.start(range(2))
    rules.finish(1)
    rules.finish(0)
    rules.rule(0, KEEP)
    assert not rules.is_full
    rules.rule(1, KEEP)
    assert rules.kept == (1,)


def test_slack_lets_the_engine_go_on_while_judges_think():
    rules = Round(2, filters=True)
    rules.start(range(4))
    rules.finish(0)
    rules.finish(1)
    assert not rules.hangs_on_judges
    rules.finish(2)
    assert rules.hangs_on_judges
    rules.rule(0, NO)
    assert rules.hangs_on_judges
    rules.rule(1, KEEP)
    assert not rules.hangs_on_judges


def test_asking_for_the_kept_before_the_end_is_our_fault():
    with pytest.raises(AssertionError, match="before the round was full"):
        _ = Round(1, filters=False).kept
