"""Equality of answers as expressions: the dialect's normalisation and its rules of comparison.

Strings settle most answers. Only when they differ and the rules allow it is the difference of two
expressions given to `is_zero`, which may be slow and belongs into a killable process
(`tandem.rewards.algebra`).
"""

import re
from collections.abc import Callable

from tandem.rewards.latex_text import Unreadable, latex_to_text
from tandem.rewards.mathd import TEXT_WRAPPED

IsZero = Callable[[str], bool]
"""Whether an expression simplifies to 0."""

# fmt: off
UNITS = (
    "degree", "cm", "centimeter", "meter", "mile", "second", "minute", "hour", "day", "week",
    "month", "year", "foot", "feet", "inch", "yard",
)
# fmt: on
UNIT_PATTERNS = tuple(re.compile(rf"{unit}(?:es)?s? *(?:\^[0-9]+)?") for unit in UNITS)
DEGREES = re.compile(r"\^ *\\circ")
THIN_COMMA = re.compile(r",\\! *")
MIXED_NUMBER = re.compile(r"([0-9]) +([0-9])")
THOUSANDS = re.compile(r"(?<=\d),(?=\d\d\d(?:,\d\d\d)*(?:$|\D))")
LONGEST_NUMBER = 1000
PLAIN_FRACTION = re.compile(r"^-?[0-9]+.?/0*[1-9][0-9]*.?$")
WRITTEN_INTEGER = re.compile(r"-?[0-9]{1,1000}")
BRACKETS = "()[]"
NEVER_EVALUATED = re.compile(r"\^\{|\^\(|\^[0-9]+\^|\^[0-9][0-9]")
MAX_LETTERS = 2
"""An expression of more unknowns than these is only compared as text."""

WORDS = (
    ("\\%", "%"),
    ("\\$", "$"),
    ("$", ""),
    ("%", ""),
    (" or ", " , "),
    (" and ", " , "),
    ("million", "*10^6"),
    ("billion", "*10^9"),
    ("trillion", "*10^12"),
)
TEXT_SIGNS = {
    "\u221a": "sqrt",
    "\u03c0": "pi",
    "\u221e": "inf",
    "\u222a": "U",
    "\u00b7": "*",
    "\u00d7": "*",
}


def is_expression_equal(given: str, truth: str, is_zero: IsZero) -> bool:
    """Whether two answers are equal as the dialect's `sympy` rule says.

    Equal after normalisation is equal. Tuples and intervals need the same brackets and equal
    elements. Two plain fractions must be the same text (2/4 is not 1/2); an integer equals only
    what reads as an integer (2+2 is not 4); the rest is evaluated where that is allowed.
    """
    truth, given = plain_form(truth), plain_form(given)
    if truth == given:
        return True
    if not given:
        return False
    truths, givens = _elements(truth), _elements(given)
    if len(truths) != len(givens):
        return False
    if len(truths) > 1 and (truth[0] != given[0] or truth[-1] != given[-1]):
        return False
    return all(
        _is_element_equal(one, other, is_zero) for one, other in zip(truths, givens, strict=True)
    )


def _is_element_equal(truth: str, given: str, is_zero: IsZero) -> bool:
    if PLAIN_FRACTION.search(truth) and PLAIN_FRACTION.search(given):
        return truth == given
    if WRITTEN_INTEGER.fullmatch(truth) and WRITTEN_INTEGER.fullmatch(given):
        return int(truth) == int(given)
    if _is_integer(truth) != _is_integer(given):
        return False
    difference = f"({truth})-({given})"
    return _may_be_evaluated(difference) and is_zero(difference)


def plain_form(answer: str) -> str:
    """The answer without units, currency, LaTeX, spaces and capitals."""
    wrapped = TEXT_WRAPPED.search(answer)
    text = wrapped["text"] if wrapped is not None else answer
    for old, new in WORDS:
        text = text.replace(old, new)
    for pattern in UNIT_PATTERNS:
        text = pattern.sub("", text)
    text = DEGREES.sub("", text)
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = THIN_COMMA.sub("", text)
    text = _whole(text)
    if "\\" in text:
        text = _without_latex(text)
    text = re.sub("- *", "-", text)
    text = MIXED_NUMBER.sub(r"\1+\2", text)
    text = text.replace(" ", "").replace("{", "").replace("}", "").lower()
    if not _is_integer(text):
        return text
    digits = text.replace(",", "")
    return _exact(digits) or str(int(float(digits)))


def _whole(text: str) -> str:
    """`5.0` as `5`; any other text as it is."""
    try:
        number = float(text)
        nearest = round(number)
    except (ValueError, OverflowError):
        return text
    return (_exact(text) or str(nearest)) if abs(number - nearest) <= 1e-7 else text


def _exact(text: str) -> str | None:
    """A written-out integer without leading zeros; a float would lose digits past the 15th."""
    return str(int(text)) if WRITTEN_INTEGER.fullmatch(text) else None


def _without_latex(text: str) -> str:
    for name in ("\\tfrac", "\\dfrac"):
        text = text.replace(name, "\\frac")
    try:
        # the space keeps the whole part of a mixed number off its fraction
        text = latex_to_text(text.replace("\\frac", " \\frac"))
    except Unreadable:
        return text
    for sign, word in TEXT_SIGNS.items():
        text = text.replace(sign, word)
    return text.strip()


def _is_integer(text: str) -> bool:
    try:
        number = float(_without_thousands(text))
        return abs(number - round(number)) <= 1e-7
    except (ValueError, OverflowError):
        return False


def _without_thousands(text: str) -> str:
    """The text without the commas that group digits by three."""
    return text if len(text) > LONGEST_NUMBER else THOUSANDS.sub("", text)


def _elements(text: str) -> list[str]:
    """The elements of a tuple or interval, or the text alone."""
    text = _without_thousands(text)
    if not text:
        return []
    inner = text[1:-1]
    if (
        len(text) > 2
        and text[0] in BRACKETS
        and text[-1] in BRACKETS
        and not any(bracket in inner for bracket in BRACKETS)
    ):
        return [element.strip() for element in inner.split(",")]
    return [text]


def _may_be_evaluated(expression: str) -> bool:
    names = expression.replace("sqrt", "").replace("frac", "")
    letters = {sign for sign in names if sign.isalpha()}
    return len(letters) <= MAX_LETTERS and not NEVER_EVALUATED.search(expression)
