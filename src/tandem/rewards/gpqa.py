"""The `gpqa` grader: the letter of a choice, or else the text of the choice itself."""

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

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
