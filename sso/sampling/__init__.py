"""Sampling engines behind one interface; a seed belongs to a query, never to a batch."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sso.config import Decoding
from sso.endpoint import Show
from sso.errors import InputError
from sso.records import Message


@dataclass(frozen=True)
class Generation:
    """``text`` of one assistant turn, its number of tokens, and whether it ended by itself.

    ``logprob``: nats of all its tokens, the end of the turn too, at temperature 1; None where the engine does not tell.
    """

    text: str
    tokens: int
    finished: bool
    logprob: float | None = None


Keep = Callable[[int, Generation], None]
"""Gets each row's number and generation the moment it is made, in any order, from any thread."""


class Engine(Protocol):
    """What draws responses."""

    def generate(
        self,
        conversations: list[list[Message]],
        seeds: list[int],
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        progress: Show | None = None,
        keep: Keep | None = None,
    ) -> list[Generation]:
        """One response a conversation, in order. Row i depends on conversation i and seed i alone."""
        ...


def make_engine(settings: Decoding, model: str | Path | None, cache: Path) -> Engine:
    """The engine that ``settings`` ask for; ``cache`` keeps an endpoint's replies. InputError: wrong input."""
    if settings.endpoint is not None:
        from sso.sampling.endpoint_engine import EndpointEngine

        if model is not None:
            raise InputError(f"{model}: the endpoint's settings name its model; give no checkpoint.")
        return EndpointEngine(settings.endpoint, cache)
    if model is None:
        raise InputError(f"engine {settings.engine} needs a checkpoint; give one.")
    if settings.engine == "vllm":
        from sso.sampling.vllm_engine import VLLMEngine

        return VLLMEngine(model, settings.dtype, settings)
    from sso.sampling.transformers_engine import TransformersEngine

    return TransformersEngine(model, dtype=settings.dtype, batch_size=settings.batch_size)


def seed_of(seed: int, query: str, role: str) -> int:
    """A 63-bit seed for one draw, from the run's seed, the query's id and what is drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{query}/{role}".encode()).digest()[:8]) >> 1
