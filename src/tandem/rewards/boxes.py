"""Boxed answers: finding the last `\\boxed{...}` of a text."""

import re

BRACE = re.compile(r"[{}]")


def last_box(text: str, mark: str = "\\boxed") -> str | None:
    """The content of the last box, or None where it has no braces or they never close.

    Only the last `mark` counts: an unterminated last box hides the ones before it. `\\fbox` is no
    box. Every brace counts, escaped ones too.
    """
    start = text.rfind(mark)
    if start < 0 or not text.startswith("\\boxed{", start):
        return None
    depth = 0
    for brace in BRACE.finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start + len("\\boxed{") : brace.start()]
    return None
