"""What a reward model is trained on: sources mixed by size or weight, without repeats and without the benchmark.

Every pair that is left out is named in the report, with the reason. Same settings and sources, same mixture.
Knows nothing of models.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rewardbench.data import TextPair
from rewardbench.settings import Mixture, Source
from sso import preferences
from sso.errors import InputError
from sso.preferences import Preference
from sso.records import Message, digest

Gram = tuple[str, ...]


class Mixed(NamedTuple):
    """The pairs, ids prefixed by their source's number, and what became of every source's rows."""

    pairs: list[Preference]
    report: list[dict[str, Any]]


def grams(text: str, n: int) -> set[Gram]:
    """All runs of ``n`` words of a text, in lower case; a text of at most n words is one run."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def asked(prompt: Iterable[Message]) -> list[str]:
    """The user's turns."""
    return [message.content for message in prompt if message.role == "user"]


def bench_grams(rows: Iterable[TextPair], n: int) -> dict[Gram, str]:
    """Every run of n words of the benchmark's prompts, and the first row that has it."""
    found: dict[Gram, str] = {}
    for row in rows:
        for text in asked(row.prompt):
            for gram in grams(text, n):
                found.setdefault(gram, row.id)
    return found


def mix(settings: Mixture, bench: Sequence[TextPair]) -> Mixed:
    """Read, clean and sample the sources.

    Raises:
        InputError: a source can't be read, or nothing of it is left.
    """
    held = bench_grams(bench, settings.ngram) if settings.ngram else {}
    prompts: set[str] = set()
    usable: list[list[Preference]] = []
    report: list[dict[str, Any]] = []
    for source in settings.parts:
        if source.path is None:
            raise InputError(f"sources: only the workflow knows the pairs of {_name(source)}; give a `path`.")
        parsed = preferences.parse(preferences.rows(source), source.path)
        kept, dropped = _clean(parsed.pairs, prompts if settings.dedupe else set(), held, settings.ngram)
        if not kept:
            raise InputError(
                f"{source.path}: every pair repeats an earlier source's prompt or is in the benchmark; leave it out."
            )
        prompts |= {digest(pair.prompt) for pair in kept}
        usable.append(kept)
        rows = len(parsed.pairs) + sum(map(len, parsed.left_out.values()))
        left_out = {**parsed.left_out, **{reason: ids for reason, ids in dropped.items() if ids}}
        entry = {"source": source.path, "rows": rows, "left_out": left_out, "usable": len(kept)}
        report.append(entry | {"row_numbers": parsed.numbers})
    pairs: list[Preference] = []
    for number, (source, size) in enumerate(zip(settings.parts, sizes(settings, usable), strict=True)):
        taken = preferences.sample(usable[number], size, source.seed)
        report[number] |= {"asked": size, "taken": len(taken)}
        pairs += [pair.model_copy(update={"id": f"{number}/{pair.id}"}) for pair in taken]
    return Mixed(pairs, report)


def sizes(settings: Mixture, usable: Sequence[Sequence[Preference]]) -> list[int | None]:
    """Pairs to take of each source; None: all. With weights, as many as the scarcest source allows."""
    weights = [source.weight for source in settings.parts if source.weight is not None]
    if len(weights) < len(settings.parts):
        return [source.limit for source in settings.parts]
    # The hair's breadth is for weights such as 0.1, which floats hold inexactly.
    share = min(len(pairs) / weight for weight, pairs in zip(weights, usable, strict=True)) + 1e-9
    return [max(1, int(share * weight)) for weight in weights]


def _name(source: Source) -> str:
    return "the micro-world" if source.world else f"arm {source.arm!r}"


def _clean(
    pairs: Iterable[Preference], prompts: set[str], held: Mapping[Gram, str], n: int
) -> tuple[list[Preference], dict[str, list[str]]]:
    """Pairs that are new and not in the benchmark, and the ids of the others by reason."""
    kept: list[Preference] = []
    dropped: dict[str, list[str]] = {"repeated": [], "prompt of an earlier source": [], "in the benchmark": []}
    seen: set[str] = set()
    for pair in pairs:
        key = digest([pair.prompt, pair.chosen, pair.rejected])
        if key in seen:
            dropped["repeated"].append(pair.id)
        elif digest(pair.prompt) in prompts:
            dropped["prompt of an earlier source"].append(pair.id)
        elif row := next((held[g] for text in asked(pair.prompt) for g in grams(text, n) if g in held), None):
            dropped["in the benchmark"].append(f"{pair.id} ({row})")
        else:
            kept.append(pair)
        seen.add(key)
    return kept, dropped
