"""Sampling engines behind one interface; a seed belongs to a query, never to a batch."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from sso.chat import naming
from sso.endpoint import Show
from sso.errors import InputError, first_of
from sso.principles import Ask, Reply
from sso.records import Message
from sso.sampling.settings import Decoding


@dataclass(frozen=True)
class Generation:
    """``text`` of one assistant turn, its number of tokens, and whether it ended by itself.

    ``logprob``: nats of all its tokens, the end of the turn too, at temperature 1; None where the engine does not tell.
    ``missing``: why nothing was drawn, where the text is empty for that; ``why`` says it in a sentence.
    """

    text: str
    tokens: int
    finished: bool
    logprob: float | None = None
    missing: Literal["refused", "too_long"] | None = None
    why: str = ""

    @classmethod
    def none(cls, missing: Literal["refused", "too_long"], why: str) -> "Generation":
        """What stands for a response that can't be drawn."""
        return cls("", 0, False, missing=missing, why=why)


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
        """One response a conversation, in order. Row i depends on conversation i and seed i alone.

        A prompt that leaves no room for ``max_new_tokens``, or that an endpoint refuses, is `Generation.none`.
        """
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


def asking(
    engine: Engine, decoding: Decoding, seed: int, show: Callable[[], Show | None] = lambda: None
) -> tuple[Ask, dict[str, Generation]]:
    """What writers of principles ask, with the temperature, top_p and token limit of ``decoding``; and what it was
    told, by name.

    ``show`` makes the progress of one round.
    """
    told: dict[str, Generation] = {}

    def ask(conversations: list[list[Message]], names: list[str]) -> list[Reply]:
        seeds = [seed_of(seed, name, "principle") for name in names]
        with naming(names, "principle"):
            made = engine.generate(
                conversations, seeds, decoding.temperature, decoding.top_p, decoding.max_new_tokens, show()
            )
        told.update(zip(names, made, strict=True))
        return [Reply(generation.text, generation.finished) for generation in made]

    return ask, told


def name_missing(ids: Sequence[str], made: Sequence[Generation], what: str) -> dict[str, int]:
    """Counts, by reason, of those among ``ids`` that an engine could not be asked for; named on standard error.

    Raises:
        InputError: none could be asked; says why the first could not.
    """
    if made and all(generation.missing for generation in made):
        raise InputError(f"none of {len(made)} {what} could be asked for: {made[0].why}")
    named: dict[str, list[str]] = {}
    for name, generation in zip(ids, made, strict=True):
        if generation.missing and name not in named.setdefault(generation.missing, []):
            named[generation.missing].append(name)
    for missing, names in named.items():
        print(f"warning: {len(names)} {what} {_MISSING[missing]}: {first_of(names)}", file=sys.stderr)
    return {missing: len(names) for missing, names in named.items()}


_MISSING = {"refused": "refused by the endpoint", "too_long": "too long for the model's context"}


def seed_of(seed: int, query: str, role: str) -> int:
    """A 63-bit seed for one draw, from the run's seed, the query's id and what is drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{query}/{role}".encode()).digest()[:8]) >> 1
