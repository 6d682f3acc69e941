"""The `dapo` grader: an integer after `Answer:`, compared after the Minerva clean-up."""

import re
from typing import Any

from tandem.rewards.boxes import last_box

LAST_CHARS = 300
STRICT_BOX_CHARS = 100
ANSWER = re.compile(r"(?i)Answer\s*:\s*([^\n]+)")
NO_ANSWER = "[INVALID]"

REPLACED = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
# fmt: off
REMOVED = (
    "square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "\\ldots",
    "sue", "points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds",
    "meters", "meals", "edges", "students", "childrentickets", "multiples", "\\text{s}",
    "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}",
    "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots", "<|im_end|>",
    "<|endoftext|>",
)
# fmt: on
"""Removed one after the other, in this order: the published Minerva list."""

REWRITTEN = (
    (re.compile(r".*?\$(.*?)\$.*"), r"$\1$"),
    (re.compile(r"\\text\{(.*?)\}"), r"\1"),
    (re.compile(r"\\textbf\{(.*?)\}"), r"\1"),
    (re.compile(r"\\overline\{(.*?)\}"), r"\1"),
    (re.compile(r"\\boxed\{(.*)\}"), r"\1"),
    (re.compile(r"frac([^{])(.)"), r"frac{\1}{\2}"),
    (re.compile(r"sqrt([^{])"), r"sqrt{\1}"),
)


def grade_dapo(response: str, label: Any, *, is_strict_box: bool = False) -> dict[str, Any]:
    """`score` 1.0 or -1.0, `acc`, and `pred`, the cleaned-up answer of the last 300 characters.

    Labels are integers: raises ValueError for one that is not a finite number. `is_strict_box`
    compares the last box of the last 100 characters with the label as it is written.
    """
    ending = response[-LAST_CHARS:]
    prediction: str | None
    if is_strict_box:
        prediction = last_box(ending[-STRICT_BOX_CHARS:], "\\boxed{")
        is_correct = prediction == label
    else:
        answers = ANSWER.findall(ending)
        prediction = minerva_form(answers[-1] if answers else NO_ANSWER)
        is_correct = prediction == _integer(label)
    return {"score": 1.0 if is_correct else -1.0, "acc": is_correct, "pred": prediction}


def minerva_form(answer: str) -> str:
    """The answer after the Minerva clean-up: what follows the last `=`, without units and LaTeX."""
    text = answer.rpartition("=")[2]
    for old, new in REPLACED:
        text = text.replace(old, new)
    for word in REMOVED:
        text = text.replace(word, "")
    for pattern, plain in REWRITTEN:
        text = pattern.sub(plain, text)
    text = text.replace("$", "")
    digits = text.replace(",", "")
    return (digits if digits.isdigit() else text).strip()


def _integer(label: Any) -> str:
    try:
        return str(int(float(minerva_form(str(label)))))
    except (ValueError, OverflowError):
        raise ValueError(f"the label of a dapo prompt must be a number, not {label!r}") from None
