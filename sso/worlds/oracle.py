"""What every world's oracle gives: an exact verdict on an answer."""

from dataclasses import dataclass
from typing import Protocol

from sso.records import Message


@dataclass(frozen=True)
class Verdict:
    """``total``, in [0, 1], and the ``features`` that it is made of, each in [0, 1]."""

    total: float
    features: dict[str, float]


class Oracle(Protocol):
    """``score`` is pure: same prompt and response, same verdict."""

    def score(self, prompt: list[Message], response: str) -> Verdict:
        """Verdict on the text of one assistant turn; InputError for a prompt of another world."""
