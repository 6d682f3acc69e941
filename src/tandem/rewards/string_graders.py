"""Graders that compare text: dapo, gpqa and f1."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
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


DEFAULT_LETTERS = string.ascii_uppercase[:10]
# Each takes the first match only, and the word "is" can be taken for the letter I ("answer is: B"):
# that is the dialect's rule, which reports scores by it.
SPOKEN = (
    re.compile(r"(?:answer|option|choice)\s*(?:(?:is|:)\s*)?([A-Z])", re.IGNORECASE),
    re.compile(r"([A-Z])\s*is\s*(?:the\s*)?correct", re.IGNORECASE),
    re.compile(r"final\s*(?:answer|option)\s*(?:(?:is|:)\s*)?([A-Z])", re.IGNORECASE),
)
LONE_CAPITAL = re.compile(r"\b([A-Z])\b")
BETWEEN_WORDS = re.compile(r"[^a-z0-9]+")


def grade_gpqa(response: str | None, label: Any, metadata: Mapping[str, Any]) -> float:
    """1.0 if the response names the right choice, else 0.0.

    The right letter is `metadata["correct_letter"]`, a label that is a letter or a place, or the
    place of the label's text among `metadata["choices"]`. Where no letter can be decided, the text
    of the right choice (or `correct_answer`, `answer_text`, the label) must occur in the response.
    """
    if response is None:
        return 0.0
    choices = _choices(metadata)
    letters = _letters(metadata, choices)
    label_text = label.strip() if isinstance(label, str) else ""
    is_letter = len(label_text) == 1 and label_text.upper() in letters
    texts = [metadata.get("correct_answer"), metadata.get("answer_text")]
    correct = _correct_letter(metadata, label, label_text if is_letter else "", letters)
    if not correct and choices and label_text:
        place = _place_of(label_text, choices)
        if place is not None and place < len(letters):
            correct = letters[place]

    said = response.rpartition("</think>")[2]
    chosen = _chosen_letter(said, letters)
    if chosen and correct:
        return float(chosen == correct)
    if correct in letters and letters.index(correct) < len(choices):
        texts.append(choices[letters.index(correct)])
    if label_text and not is_letter:
        texts.append(label_text)
    words = f" {_words(said)} "
    wanted = {_words(str(text)) for text in texts if text} - {""}
    if any(f" {text} " in words for text in wanted):
        return 1.0
    return float(bool(chosen) and not correct and chosen == label_text.upper())


def _choices(metadata: Mapping[str, Any]) -> list[Any]:
    choices = metadata.get("choices") or ()
    return list(choices.values() if isinstance(choices, Mapping) else choices)


def _letters(metadata: Mapping[str, Any], choices: Sequence[Any]) -> list[str]:
    if metadata.get("valid_letters"):
        return [str(letter).upper() for letter in metadata["valid_letters"]]
    return list(string.ascii_uppercase[: len(choices)] if choices else DEFAULT_LETTERS)


def _correct_letter(
    metadata: Mapping[str, Any], label: Any, label_letter: str, letters: Sequence[str]
) -> str:
    """The right letter, empty when neither the metadata nor the label says it."""
    told = metadata.get("correct_letter")
    correct = told.strip().upper() if isinstance(told, str) else ""
    if isinstance(label, (int, float)) and 0 <= int(label) < len(letters):
        return letters[int(label)]
    return correct or label_letter.upper()


def _place_of(text: str, choices: Sequence[Any]) -> int | None:
    words = _words(text)
    places = (place for place, choice in enumerate(choices) if _words(str(choice)) == words)
    return next(places, None)


def _chosen_letter(said: str, letters: Sequence[str]) -> str:
    """The letter that the response settles on, empty when it names none."""
    for pattern in SPOKEN:
        match = pattern.search(said)
        if match is not None and match[1].upper() in letters:
            return match[1].upper()
    named = [letter for letter in LONE_CAPITAL.findall(said) if letter in letters]
    return named[-1] if named else ""


def _words(text: str) -> str:
    return BETWEEN_WORDS.sub(" ", text.lower()).strip()


ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
WHOLE_ANSWERS = {"yes", "no", "noanswer"}
"""Answers that have no overlap with any other."""


def grade_f1(response: str | None, label: Any) -> float:
    """The F1 score of the response's words against the label's, 0.0 to 1.0."""
    if response is None:
        return 0.0
    if not isinstance(label, (str, int, float)):
        raise ValueError(f"the label of an f1 prompt must be a string, not {type(label).__name__}")
    given, wanted = plain_words(response), plain_words(str(label))
    if given != wanted and not WHOLE_ANSWERS.isdisjoint((" ".join(given), " ".join(wanted))):
        return 0.0
    num_common = (Counter(given) & Counter(wanted)).total()
    if num_common == 0:
        return 0.0
    precision, recall = num_common / len(given), num_common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def plain_words(text: str) -> list[str]:
    """The words in lower case, without punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()
