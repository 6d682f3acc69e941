from dataclasses import dataclass

from tandem.loop import is_due


@dataclass
class Plan:
    num_rollout: int
    rollouts_per_epoch: int = 0


def test_nothing_is_due_without_an_interval():
    assert not any(is_due(None, step, Plan(5)) for step in range(5))


def test_intervals_the_end_and_epochs_are_due():
    due = [step for step in range(10) if is_due(4, step, Plan(10, rollouts_per_epoch=6))]
    assert due == [3, 5, 7, 9]
