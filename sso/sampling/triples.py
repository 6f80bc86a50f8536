"""Triples (y+, y-, yo) of a policy, and the preference pairs that are made of them.

All responses of a triple are drawn with the same settings; each draw's seed comes from the run's seed, the
query's id and the response's name, so one query's draws depend on nothing else.
"""

import re
import sys
from pathlib import Path
from typing import Any

from sso.chat import context_limit, encode_prompts, load_tokenizer, naming, with_system
from sso.dialogues import counts as by_reason
from sso.dialogues import warn
from sso.errors import InputError, first_of
from sso.preferences import usable
from sso.principles import FEATURES, WRAPPERS
from sso.records import Cut, Message, Pair, Principles, Triple
from sso.sampling.engine import Engine, Generation, name_missing, seed_of
from sso.sampling.settings import Sampling
from sso.worlds.settings import World

_KINDS = "|".join([adjective for feature in FEATURES.values() for adjective in feature.adjectives] + ["good", "bad"])
_ECHO = re.compile(
    rf"^\s*(?:\*\*|#+ )?(?:response|[\w ,-]{{0,60}}\b(?:Response|(?i:(?:{_KINDS}) response))):(?:\*\*)?\s*"
)
"""A leading "... Response:" echo of the system message, stripped as in v1; in small letters only behind an adjective,
since "thank you for your response:" is text."""


_FIELDS: dict[str, Cut] = {"y+": "chosen", "y-": "rejected", "yo": "original", "second": "second"}


def _systems(principles: list[Principles], wrapper: str) -> tuple[list[str], list[str]]:
    texts = WRAPPERS[wrapper]
    good = [texts["good"].format(principle=p.good) for p in principles]
    return good, [texts["bad"].format(principle=p.bad) for p in principles]


def _conversations(principles: list[Principles], wrapper: str, responses: list[str]) -> list[list[Message]]:
    """What each response is drawn from, response by response."""
    good, bad = _systems(principles, wrapper)
    contexts = {
        "y+": [with_system(p.prompt, s) for p, s in zip(principles, good, strict=True)],
        "y-": [with_system(p.prompt, s) for p, s in zip(principles, bad, strict=True)],
        "yo": [p.prompt for p in principles],
        "second": [p.prompt for p in principles],
    }
    unknown = [name for name in responses if name not in contexts]
    if unknown:
        raise InputError(f"--responses: unknown response {unknown[0]!r}; known: {', '.join(contexts)}.")
    return [c for name in responses for c in contexts[name]]


def fitting(
    principles: list[Principles], sampling: Sampling, model: str | Path | None, wrapper: str, responses: list[str]
) -> tuple[list[Principles], list[str]]:
    """The queries that leave room for each of ``responses`` in the model's context, and the ids of the others.

    Before anything is drawn, by the tokenizer and the configuration alone. An endpoint tells only when it is asked.

    Raises:
        InputError: none fits.
    """
    conversations = _conversations(principles, wrapper, responses)
    if sampling.endpoint is not None or model is None:
        return principles, []
    from transformers import AutoConfig

    tokenizer = load_tokenizer(model)
    try:
        limit = context_limit(AutoConfig.from_pretrained(model, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise InputError(f"{model}: no configuration can be loaded ({' '.join(str(error).split())[:160]}).") from error
    if sampling.engine == "vllm" and sampling.context:
        limit = min(limit, sampling.context)
    with naming([p.id for _ in responses for p in principles], "query"):
        _, too_long = encode_prompts(tokenizer, conversations, sampling.max_new_tokens, limit)
    bad = {row % len(principles) for row in too_long}
    if principles and len(bad) == len(principles):
        raise InputError(f"none of {len(bad)} queries fits: {too_long[min(too_long)]}")
    return [p for i, p in enumerate(principles) if i not in bad], [principles[i].id for i in sorted(bad)]


def drawn(
    engine: Engine,
    principles: list[Principles],
    sampling: Sampling,
    wrapper: str,
    seed: int,
    responses: list[str],
    progress: Any = None,
) -> list[Generation]:
    """What the engine draws, response by response; [] for no queries."""
    conversations = _conversations(principles, wrapper, responses)
    seeds = [seed_of(seed, p.id, name) for name in responses for p in principles]
    with naming([p.id for _ in responses for p in principles], "query"):
        return engine.generate(
            conversations, seeds, sampling.temperature, sampling.top_p, sampling.max_new_tokens, progress
        )


def draw(
    engine: Engine,
    principles: list[Principles],
    sampling: Sampling,
    wrapper: str,
    seed: int,
    responses: list[str],
    progress: Any = None,
) -> tuple[list[Triple], dict[str, float]]:
    """One triple a query, and counts: tokens drawn, responses that were cut, queries left out by reason, and where the
    engine tells it the mean log-probability of a token.

    ``responses`` are among y+, y-, yo and second; one that is not drawn is empty. A query of which one response can't
    be drawn is left out as a whole, and named on standard error.

    Raises:
        InputError: no response could be drawn, or no query has all of them.
    """
    made = drawn(engine, principles, sampling, wrapper, seed, responses, progress)
    count = len(principles)
    by_name = {name: made[i * count : (i + 1) * count] for i, name in enumerate(responses)}

    lost = name_missing([p.id for _ in responses for p in principles], made, "queries")
    whole = [i for i in range(count) if not any(of[i].missing for of in by_name.values())]
    if not whole:
        raise InputError(f"no query has all of its responses: {next(g.why for g in made if g.missing)}")
    good, bad = _systems(principles, wrapper)

    def text(name: str, i: int) -> str:
        return _ECHO.sub("", by_name[name][i].text) if name in by_name else ""

    triples = [
        Triple(
            id=p.id,
            prompt=p.prompt,
            system_good=good[i],
            system_bad=bad[i],
            chosen=text("y+", i),
            rejected=text("y-", i),
            original=text("yo", i),
            second=text("second", i) if "second" in by_name else None,
            cut=[_FIELDS[name] for name, of in by_name.items() if not of[i].finished],
        )
        for i, p in enumerate(principles)
        if i in whole
    ]
    counts: dict[str, float] = {"tokens": sum(g.tokens for g in made), "cut": sum(len(t.cut) for t in triples), **lost}
    told = [(g.logprob, g.tokens) for g in made if g.logprob is not None]
    if told:
        counts["logprob_per_token"] = sum(logprob for logprob, _ in told) / max(1, sum(tokens for _, tokens in told))
    return triples, counts


_ALIKE = {
    "chosen_equals_rejected": ("y+", "y-"),
    "chosen_equals_original": ("y+", "yo"),
    "rejected_equals_original": ("y-", "yo"),
}
"""What makes a triple useless to v1, in the order in which it is told."""


def distinct(triples: list[Triple], responses: list[str]) -> tuple[list[Triple], dict[str, int]]:
    """The triples whose responses (of ``responses``, those that were drawn) all differ, and counts of the others, all
    together and by reason.

    v1 leaves the others out: equal responses prefer nothing, and one that equals the original shows no principle.
    They are named on standard error.

    Raises:
        InputError: no triple is left.
    """
    kept, alike = [], {name: list[str]() for name, pair in _ALIKE.items() if {*pair} <= {*responses}}
    for triple in triples:
        text = {"y+": triple.chosen.strip(), "y-": triple.rejected.strip(), "yo": triple.original.strip()}
        found = next((name for name in alike if text[_ALIKE[name][0]] == text[_ALIKE[name][1]]), None)
        kept += [triple] if found is None else []
        if found is not None:
            alike[found].append(triple.id)
    for name, ids in alike.items():
        if ids:
            print(f"warning: left out {len(ids)} triples ({name.replace('_', ' ')}): {first_of(ids)}", file=sys.stderr)
    if not kept:
        raise InputError(
            f"none of {len(triples)} triples has responses that all differ; "
            "raise the temperature, or look at the principles and the model."
        )
    return kept, {"left_out_triples": len(triples) - len(kept), **{name: len(ids) for name, ids in alike.items()}}


def pairs_of(
    triples: list[Triple], kind: str, name: str, world: World | None = None
) -> tuple[list[Pair], dict[str, int]]:
    """Pairs of a kind: y+ over y- (good_bad), y+ over yo (good_original), the better by the oracle of two unprompted
    draws (annotated) or of y+ and y- (relabelled), or a faultless answer of the world's own over yo (flawless).

    A triple that makes no pair (an empty side, equal sides, two of which the oracle prefers none) is named on standard
    error. The counts are `pairs`, `left_out_pairs`, and of these each reason; messages call the triples ``name``.

    Raises:
        InputError: no triple makes a pair.
    """
    ties: set[str] = set()
    if kind in ("annotated", "relabelled"):
        rows, ties = _labelled(triples, kind, world)
    elif kind == "flawless":
        rows = _flawless(triples, world)
    else:
        rows = [_pair(triple, "chosen", "rejected" if kind == "good_bad" else "original", kind) for triple in triples]
    found, left_out = usable([row.model_dump() for row in rows], name)
    made = [pair for pair in found if pair.id not in ties]
    tied = {"equal by the oracle": [pair.id for pair in found if pair.id in ties]} if len(made) < len(found) else {}
    warn(tied, name)
    if not made:
        raise InputError(f"{name}: no usable pair, the oracle prefers no side of {len(found)}; raise the temperature.")
    left_out |= by_reason(tied)
    return made, {**left_out, "left_out_pairs": len(triples) - len(made), "pairs": len(made)}


def _labelled(triples: list[Triple], kind: str, world: World | None) -> tuple[list[Pair], set[str]]:
    """A pair a triple, and the ids of those of which the oracle prefers no side."""
    from sso import worlds

    if world is None:
        raise InputError(f"{kind} pairs need --world: only a world's oracle annotates.")
    oracle, rows, ties = worlds.oracle(world), [], set()
    sides: tuple[Cut, Cut] = ("original", "second") if kind == "annotated" else ("chosen", "rejected")
    for triple in triples:
        if kind == "annotated" and triple.second is None:
            raise InputError(f"triple {triple.id!r} has no second draw; sample with --responses y+,y-,yo,second.")
        first, second = (oracle.score(triple.prompt, getattr(triple, side)).total for side in sides)
        rows.append(_pair(triple, *(sides if first > second else sides[::-1]), kind))
        ties |= {triple.id} if first == second else set()
    return rows, ties


def _flawless(triples: list[Triple], world: World | None) -> list[Pair]:
    from random import Random

    from sso import worlds

    if world is None:
        raise InputError("flawless pairs need --world: only the micro-world knows a faultless answer.")
    answer, rows = worlds.faultless(world), []
    for triple in triples:
        best = answer(triple.prompt, Random(f"flawless/{triple.id}"))
        cut: list[Cut] = [name for name in triple.cut if name != "chosen"]
        rows.append(_pair(triple.model_copy(update={"chosen": best, "cut": cut}), "chosen", "original", "flawless"))
    return rows


def _pair(triple: Triple, chosen: Cut, rejected: Cut, source: str) -> Pair:
    """Two responses of a triple, by their fields' names."""
    sides: dict[Cut, Cut] = {"chosen": chosen, "rejected": rejected}
    return Pair(
        id=triple.id,
        prompt=triple.prompt,
        chosen=[Message(role="assistant", content=getattr(triple, chosen))],
        rejected=[Message(role="assistant", content=getattr(triple, rejected))],
        source=source,
        cut=[side for side, name in sides.items() if name in triple.cut],
    )
