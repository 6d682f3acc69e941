"""Equality of answers as strings, after the MATH data set's clean-up (the dialect's `mathd`)."""

import re

TEXT_WRAPPED = re.compile(r"^\\text\{(?P<text>.+?)\}$")

REPLACED = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
)
"""What is rewritten, in this order."""

UNIT_MARK = "\\text{ "
PLAIN_INTEGER = r"(?:-?[1-9][0-9]*|0)"
PLAIN_RATIO = re.compile(rf"({PLAIN_INTEGER})/({PLAIN_INTEGER})")


class Malformed(ValueError):
    """LaTeX that the clean-up cannot finish; the answer is then compared as it stands."""


def is_mathd_equal(given: str, truth: str) -> bool:
    """Whether both clean up to the same string."""
    return mathd_form(given) == mathd_form(truth)


def mathd_form(answer: str) -> str:
    """The cleaned-up answer."""
    answer = answer.strip()
    wrapped = TEXT_WRAPPED.search(answer)
    if wrapped is not None:
        answer = wrapped["text"].strip()
    try:
        return _clean(answer)
    except Malformed:
        return answer


def _clean(text: str) -> str:
    for old, new in REPLACED:
        text = text.replace(old, new)
    if text.count(UNIT_MARK) > 1:
        raise Malformed("two units")
    text = text.partition(UNIT_MARK)[0].replace("\\%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    name, equals, value = text.partition("=")
    if equals and "=" not in value and len(name) <= 2:
        text = value  # "x = 5" says 5
    text = _brace_roots(text).replace(" ", "")
    text = _brace_fractions(text)
    if text == "0.5":
        return "\\frac{1}{2}"
    ratio = PLAIN_RATIO.fullmatch(text)
    return f"\\frac{{{ratio[1]}}}{{{ratio[2]}}}" if ratio else text


def _brace_roots(text: str) -> str:
    """`\\sqrt3` as `\\sqrt{3}`."""
    head, *tails = text.split("\\sqrt")
    for tail in tails:
        if not tail:
            raise Malformed("a root of nothing")
        head += "\\sqrt" + (tail if tail[0] == "{" else f"{{{tail[0]}}}{tail[1:]}")
    return head


def _brace_fractions(text: str) -> str:
    """`\\frac12` and `\\frac1{2}` as `\\frac{1}{2}`."""
    head, *tails = text.split("\\frac")
    for tail in tails:
        if not tail:
            raise Malformed("a fraction of nothing")
        if tail[0] == "{":
            head += "\\frac" + tail
        elif len(tail) < 2:
            return text
        else:
            below = tail[1:] if tail[1] == "{" else f"{{{tail[1]}}}{tail[2:]}"
            head += f"\\frac{{{tail[0]}}}{below}"
    return head
