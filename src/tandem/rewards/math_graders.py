"""Graders of boxed mathematical answers: `deepscaler`, `math` and `math_verify`."""

from typing import Any, Protocol

from tandem.rewards.boxes import last_box
from tandem.rewards.expressions import WRITTEN_INTEGER, is_expression_equal
from tandem.rewards.mathd import is_mathd_equal

END_OF_THOUGHT = "</think>"
RESPONSE_HEADER = "###Response"


class Algebra(Protocol):
    """What may be slow: `tandem.rewards.algebra` in a worker."""

    def is_zero(self, expression: str) -> bool: ...

    def is_verified(self, answer: str, truth: str) -> bool: ...


def grade_deepscaler(response: str, label: Any, algebra: Algebra) -> int:
    """1 if the box after the last `</think>` (or the first `###Response`) holds the label, else 0.

    A response with neither mark gets 0, whatever it says. Raises ValueError for a label that is
    no string or number where there is an answer to compare.
    """
    if END_OF_THOUGHT in response:
        solution = response.rpartition(END_OF_THOUGHT)[2]
    elif RESPONSE_HEADER in response:
        solution = response.split(RESPONSE_HEADER, 2)[1]
    else:
        return 0
    answer = last_box(solution)
    if answer is None or label == "":
        return 0
    if not isinstance(label, (str, int, float)):
        raise ValueError(f"the label must be a string or a number, not {type(label).__name__}")
    truth = str(label)
    if "\\boxed" in truth or "\\fbox" in truth:
        boxed = last_box(truth)
        if boxed is None:
            return 0
        truth = boxed
    return int(is_same_answer(answer, truth, algebra))


def grade_math(response: str, label: Any, algebra: Algebra) -> int:
    """1 if the last box of the whole response holds the label, else 0; a falsy label is never met.

    Falsy are None, an empty string and the number 0, as in the dialect; "0" is a label.
    """
    if not label:
        return 0
    truth = str(label)
    wanted = last_box(truth) if "\\boxed" in truth else truth
    answer = last_box(response)
    if answer is None or wanted is None:
        return 0
    return int(is_same_answer(answer, wanted, algebra))


def is_same_answer(answer: str, truth: str, algebra: Algebra) -> bool:
    """Whether the answer equals the truth by the `mathd` rule or else by the `sympy` rule."""
    return is_mathd_equal(answer, truth) or is_expression_equal(answer, truth, algebra.is_zero)


def grade_math_verify(response: str, label: Any, algebra: Algebra) -> float:
    """1.0 if math-verify finds the last box equal to the label, else 0.0.

    What follows the last `</think>` is judged where there is one. The same text is equal without
    further question. Raises ValueError without a label.
    """
    truth = "" if label is None else str(label).strip()
    truth = last_box(truth) or truth
    if not truth:
        raise ValueError("there is no label to compare with")
    answer = last_box(response.rpartition(END_OF_THOUGHT)[2])
    if answer is None:
        return 0.0
    answer, truth = answer.strip(), truth.strip()
    if answer == truth:
        return 1.0
    if WRITTEN_INTEGER.fullmatch(answer) and WRITTEN_INTEGER.fullmatch(truth):
        return float(int(answer) == int(truth))
    return float(algebra.is_verified(answer, truth))
