"""The heavy part of grading: sympy and math-verify. Only the killable workers import this.

Sympy's parser evaluates what it reads as Python, so a text reaches it only after a check of its
characters, its length and the size of the numbers it would make, and with no builtins in reach.
What fails the check is "not equal": nothing that cannot be evaluated safely is an answer.
"""

import re
from functools import cache
from typing import Any

MAX_CHARS = 1000
MAX_DEPTH = 40
MAX_POWER = 1000
"""The product of all exponents in one expression; 9^1000 still has under a thousand digits."""
MAX_FACTORIAL = 100
MAX_LATEX_CHARS = 2000
MAX_LATEX_POWER = 20_000
"""As above, for math-verify, which leaves large powers unevaluated more often."""

ALLOWED_SIGNS = frozenset("0123456789+-*/^()._! \t\n")
REFUSED = re.compile(
    r"__"  # names that Python itself reads
    r"|[^\W\d]\.(?!\d)|\.[^\W\d]"  # an attribute
    r"|!\s*!"  # a factorial of a factorial
    r"|\)\s*!"  # a factorial of what is not a number written out
    r"|\d[eE][+-]?\d{4,}"  # a float too large to print
    r"|\d{2000}"
)
EXPONENT = re.compile(r"(?:\*\*|\^)\s*[+-]?\s*(\d+)")
TOWER = re.compile(r"(?:\*\*|\^)\s*[+-]?\s*\d+\s*(?:\*\*|\^)")
EXPONENT_OF_GROUP = re.compile(r"(?:\*\*|\^)\s*[+-]?\s*\(")
FACTORIAL = re.compile(r"(\d+)\s*!")


def warm_up(*, uses_math_verify: bool) -> None:
    """Imports what grading needs, so that no answer's time limit pays for it."""
    _names()
    if uses_math_verify:
        import math_verify

        assert math_verify.parse("1", parsing_timeout=None), "math-verify reads numbers"


def is_zero(expression: str) -> bool:
    """Whether the expression simplifies to 0; False for anything that cannot be read."""
    if not is_safe(expression):
        return False
    import sympy
    from sympy.parsing import sympy_parser

    readings = (
        *sympy_parser.standard_transformations,
        sympy_parser.implicit_multiplication_application,
    )
    try:
        value = sympy_parser.parse_expr(
            expression.replace("^", "**"), transformations=readings, global_dict=dict(_names())
        )
        return bool(sympy.simplify(value) == 0)
    except MemoryError:
        raise
    except Exception:
        # whatever sympy raises on text that is no expression: the dialect counts it as unequal
        return False


def is_safe(expression: str) -> bool:
    """Whether an expression may be parsed: known signs, short, shallow, and of small numbers."""
    if len(expression) > MAX_CHARS or REFUSED.search(expression):
        return False
    if not all(sign in ALLOWED_SIGNS or sign.isalpha() for sign in expression):
        return False
    depth = deepest = 0
    for sign in expression:
        depth += (sign == "(") - (sign == ")")
        deepest = max(deepest, depth)
    return (
        deepest <= MAX_DEPTH
        and not EXPONENT_OF_GROUP.search(expression)
        and _has_small_numbers(expression, MAX_POWER)
    )


def is_verified(answer: str, truth: str) -> bool:
    """Whether math-verify finds two LaTeX expressions equal; False for numbers without bounds."""
    for latex in (answer, truth):
        flat = latex.replace("{", "").replace("}", "")
        if len(latex) > MAX_LATEX_CHARS or not _has_small_numbers(flat, MAX_LATEX_POWER):
            return False
    from math_verify import parse, verify

    # no time limits of its own: they are alarms of this process, whose limit is the pool's
    wanted, given = (
        parse(f"\\boxed{{{latex}}}", parsing_timeout=None) for latex in (truth, answer)
    )
    return bool(verify(wanted, given, timeout_seconds=None))


def _has_small_numbers(expression: str, max_power: int) -> bool:
    power = 1
    for exponent in EXPONENT.findall(expression):
        power *= max(1, int(exponent[:10]))
    if power > max_power or TOWER.search(expression):
        return False
    return all(int(number[:10]) <= MAX_FACTORIAL for number in FACTORIAL.findall(expression))


@cache
def _names() -> dict[str, Any]:
    """What names mean in an expression: sympy's, and no Python builtins."""
    import sympy

    names = {name: getattr(sympy, name) for name in sympy.__all__}
    return {**names, "__builtins__": {}}
