"""Sampling engines behind one interface; a seed belongs to a query, never to a batch."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

from sso.records import Message


@dataclass(frozen=True)
class Generation:
    """``text`` of one assistant turn, its number of tokens, and whether it ended by itself."""

    text: str
    tokens: int
    finished: bool


class Engine(Protocol):
    """What draws responses."""

    def generate(
        self,
        conversations: list[list[Message]],
        seeds: list[int],
        temperature: float,
        top_p: float,
        max_new_tokens: int,
    ) -> list[Generation]:
        """One response a conversation, in order. Row i depends on conversation i and seed i alone."""
        ...


def seed_of(seed: int, query: str, role: str) -> int:
    """A 63-bit seed for one draw, from the run's seed, the query's id and what is drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{query}/{role}".encode()).digest()[:8]) >> 1
