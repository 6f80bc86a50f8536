"""Real prompts with real answers, as plain sentences that a program can change."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from sso import dialogues, hub
from sso.errors import InputError
from sso.preferences import file_rows
from sso.worlds.real.checkers import provide_punkt
from sso.worlds.settings import RealWorld

LONGEST_PROMPT = 400
"""Characters."""
PARTS = {"sft": 0.4, "train": 0.3, "eval": 0.15, "tune": 0.05, "benchmarks": 0.1}
"""Shares of the prompts: no two parts have one in common."""
_PLAIN = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u2026": "..."}
_MARKUP = re.compile(r"\*\*|__|^\s*(?:[*-]|#+|\d+[.)])\s+|`", re.MULTILINE)
_WHOLE = re.compile(r"[A-Z][^<>*\"|]*[.!?]")

Corpus = dict[str, list[list[str]]]
"""Prompt -> answers, each three plain sentences or more."""


def sentences(answer: str, words: int) -> list[str]:
    """The first sentences of an answer that have at most ``words`` words together: whole, ASCII, of four words or more,
    without markup."""
    import nltk

    provide_punkt()
    found: list[str] = []
    for line in _MARKUP.sub("", "".join(_PLAIN.get(letter, letter) for letter in answer)).splitlines():
        for sentence in nltk.sent_tokenize(line):
            if len(sentence.split()) < 4 or not sentence.isascii() or not _WHOLE.fullmatch(sentence):
                continue
            if len(" ".join([*found, sentence]).split()) > words:
                return found
            found.append(sentence)
    return found


def collect(rows: Iterable[Mapping[str, Any]], words: int, into: Corpus) -> None:
    """Put the usable rows into a corpus: a short prompt, and an answer of three sentences."""
    for row in rows:
        try:
            turns = dialogues.dialogue(row)
        except dialogues.LeftOut:
            continue
        if [turn.role for turn in turns] != ["user", "assistant"]:
            continue
        prompt, answer = turns[0].content.strip(), sentences(turns[1].content, words)
        if 0 < len(prompt) <= LONGEST_PROMPT and len(answer) >= 3 and answer not in into.get(prompt, []):
            into.setdefault(prompt, []).append(answer)


def load(world: RealWorld) -> Corpus:
    """The corpus of a world's sources; InputError where they hold fewer prompts than there are parts to make."""
    found: Corpus = {}
    for source in world.sources:
        path = Path(source)
        collect(file_rows(path) if path.is_file() else hub.rows(source, world.split), world.words, found)
    if len(found) < 20:
        raise InputError(
            f"world.sources: {len(found)} usable prompts in {', '.join(world.sources)}, at least 20 are needed: rows "
            f"with a prompt of at most {LONGEST_PROMPT} characters and an answer of three plain English sentences."
        )
    return found


def parts(corpus: Corpus, seed: int) -> dict[str, list[str]]:
    """The prompts of each part, in an order that the seed fixes."""
    prompts = sorted(corpus)
    Random(f"prompts/{seed}").shuffle(prompts)
    made, start = {}, 0.0
    for name, share in PARTS.items():
        made[name] = prompts[round(start * len(prompts)) : round((start + share) * len(prompts))]
        start += share
    return made
