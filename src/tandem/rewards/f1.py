"""The `f1` grader: overlap of words with the label, as for SQuAD and HotpotQA."""

import re
import string
from collections import Counter
from typing import Any

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
