"""Answers of an engine to open prompts, several draws of each where that is asked for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.settings import Evaluation
from sso.chat import naming
from sso.records import Answer, Message

if TYPE_CHECKING:
    from sso.sampling.engine import Engine


def drawn(
    engine: "Engine",
    rows: Sequence[tuple[str, list[Message], int]],
    seeds: list[int],
    settings: Evaluation,
    model: str,
    names: Sequence[str],
    what: str,
) -> list[Answer]:
    """An answer to each of ``rows``: its id, the prompt, and the number of the draw; ``names`` are what messages call
    them, ``what`` what they are. InputError where none can be asked."""
    from sso.sampling.engine import name_missing

    with naming(names, what):
        made = engine.generate(
            [prompt for _, prompt, _ in rows],
            seeds=seeds,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
        )
    name_missing(names, made, "answers")
    return [
        Answer(id=key, prompt=prompt, output=one.text, model=model, draw=draw, missing=one.missing)
        for (key, prompt, draw), one in zip(rows, made, strict=True)
    ]


def by_draw(answers: Sequence[Answer]) -> list[list[Answer]]:
    """Answers draw by draw, each with its prompt's own id."""
    draws: dict[int, list[Answer]] = {}
    for answer in answers:
        own = answer.model_copy(update={"id": answer.id.removesuffix(f"/{answer.draw}")}) if answer.draw else answer
        draws.setdefault(answer.draw, []).append(own)
    return [draws[draw] for draw in sorted(draws)]
