"""A judge's own final verdict, read from its reply, or None: never a guess.

A reply may quote an answer that spells a verdict. So: what follows the model's reasoning block counts; a verdict
that ends the reply is final; else verdicts inside quotation marks, code or block quotes are set aside, and what is
left must agree. The official parsers take the first match (FastChat) or refuse any two that differ (Arena-Hard).
"""

import re
from collections.abc import Callable
from typing import TypeVar

from sso.untrusted import after_reasoning

VerdictT = TypeVar("VerdictT")

_QUOTED = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\"[^\"\n]*\"|“[^”\n]*”|(?<!\w)'[^'\n]*'(?!\w)|^\s*>[^\n]*$", re.S | re.M
)
_END = r"[\s.!*_)\]}]*\Z"
_RATING = re.compile(r"\[\[\s*(\d{1,2}(?:\.\d{1,4})?)\s*(?:/\s*10)?\s*\]\]")
_LONE_RATING = re.compile(rf"(?:rating\W{{0,9}}|^\s*)\[\s*(\d{{1,2}}(?:\.\d{{1,4}})?)\s*\]{_END}", re.I | re.M)


def rating(reply: str) -> float | None:
    """A grade of 1 to 10 as `[[7]]`.

    FastChat's second form, `[7]`, counts where it ends the reply, after `Rating:` or on a line of its own.
    """
    found = _final(reply, _RATING, float)
    if found is None and not _RATING.search(reply) and (match := _LONE_RATING.search(after_reasoning(reply))):
        found = float(match[1])
    return found if found is not None and 1 <= found <= 10 else None


def choice(reply: str, labels: tuple[str, ...]) -> str | None:
    """One of ``labels`` in double brackets."""
    either = "|".join(map(re.escape, labels))
    return _final(reply, re.compile(rf"\[\[\s*({either})\s*\]\]"), str)


def _final(reply: str, pattern: re.Pattern[str], convert: Callable[[str], VerdictT]) -> VerdictT | None:
    reply = after_reasoning(reply)
    own = _QUOTED.sub(" ", reply)
    if not pattern.search(own):
        own = reply  # a judge that puts its verdict itself in quotation marks
    elif match := re.search(pattern.pattern + _END, own):
        return convert(match[1])
    found = {convert(match[1]) for match in pattern.finditer(own)}
    return found.pop() if len(found) == 1 else None
