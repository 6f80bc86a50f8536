"""Principles: a good and a bad guideline for each query, v1 by named features, v2 written for the query.

In the micro-world the writer is a procedure and says so (`writer: procedural`). Elsewhere a language model
writes: the bad guideline first, then the good one given it; replies that cannot be parsed fall back on a fixed
Helpfulness principle (v1's, where no feature is named, on features drawn at random) and are counted. All texts are this
project's own wording.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from sso.records import Message, Principles, Query
from sso.untrusted import after_reasoning


class Reply(NamedTuple):
    """What a language model said, and whether it ended by itself."""

    text: str
    finished: bool = True


Ask = Callable[[list[list[Message]], list[str]], list[Reply]]
"""Replies of a language model to conversations, in order; the strings name the draws (for their seeds)."""


@dataclass(frozen=True)
class Feature:
    """A named feature of v1: a good and a bad principle text and their adjectives."""

    good: str
    bad: str
    adjectives: tuple[str, str]


FEATURES = {
    "Safety": Feature(
        "Steer clear of anything harmful, illegal or hateful, and warn of real dangers.",
        "Leave out every warning and do not care whether the answer could do harm.",
        ("Safe", "Unsafe"),
    ),
    "Logicality": Feature(
        "Let each step follow from the one before, and keep conclusions consistent with their reasons.",
        "Jump between points and draw conclusions that do not follow from what was said.",
        ("Logical", "Illogical"),
    ),
    "Comprehensiveness": Feature(
        "Cover every part of the question, with the background and detail that it needs.",
        "Touch one part of the question only and skip the rest.",
        ("Comprehensive", "Incomplete"),
    ),
    "Helpfulness": Feature(
        "Answer what the user wants to achieve, in a form that can be used at once.",
        "Stay beside the point, so that the user is left without anything to use.",
        ("Helpful", "Unhelpful"),
    ),
    "Literariness": Feature(
        "Write with rhythm and well-chosen images, in language that is a pleasure to read.",
        "Write flat, clumsy sentences without any variation.",
        ("Literary", "Boring"),
    ),
    "Accuracy": Feature(
        "State only what is correct, with exact names, numbers and dates.",
        "Mix in wrong names, numbers or claims.",
        ("Accurate", "Inaccurate"),
    ),
    "Engagement": Feature(
        "Address the user warmly and keep the answer lively.",
        "Sound cold and weary of the question.",
        ("Engaging", "Dull"),
    ),
    "Concision": Feature(
        "Say it in as few words as the matter allows.",
        "Repeat yourself and pad the answer with empty phrases.",
        ("Concise", "Verbose"),
    ),
}
FALLBACK = FEATURES["Helpfulness"]
NAMED = [name for name in FEATURES if name != "Concision"]
"""The seven features that the policy chooses from; Concision is added by chance."""

WRAPPERS: dict[str, dict[str, str]] = {
    "micro": {"good": "{principle}", "bad": "{principle}"},
    "paper": {
        "good": "Give a relatively good response to the user. Follow this guideline:\n- {principle}\n"
        "Never mention the guideline in the response.",
        "bad": "Give a relatively bad response to the user. Follow this guideline:\n- {principle}\n"
        "Never mention the guideline in the response.",
    },
    # v1 asks for what the adjectives say, good and bad in the same words.
    "paper_v1": dict.fromkeys(
        ("good", "bad"),
        "Your response should be\n- {principle}\n"
        "Give the user neither a word nor a hint of the features, principles or guidelines behind it.",
    ),
}

BAD_HEADING, GOOD_HEADING = "### Bad guideline", "### Good guideline"
_EXAMPLES = [
    (
        "Tim had 23 marbles and gave 8 of them away. How many are left?",
        "Subtract the wrong way round or slip by a few, and state the result without any working.",
        "Subtract with care, show the working in one line, and state the result clearly.",
    ),
    (
        "List some cuss words that I can shout at my neighbour.",
        "List the crudest insults you know and urge the user to use them.",
        "Decline to supply insults, and suggest calm words that could settle the quarrel.",
    ),
    (
        "How do I sort an array of numbers in JavaScript?",
        "Recommend calling sort() bare, as if it ordered numbers by value, and give no example.",
        "Explain that sort() compares as strings by default, and show a comparator with an example.",
    ),
]

_ASK = "Write the text below the heading"
_NEXT = re.compile(r"\n\s*(?:#+|\*\*\s*(?:good|bad) guideline)", re.IGNORECASE)
_OWN_TEXTS = [guideline for _, *both in _EXAMPLES for guideline in both]


def few_shot(query: str, bad: str | None = None) -> list[Message]:
    """The prompt of v2's writer: three worked queries, then this one; with ``bad`` it asks for the good one."""
    lines = [
        "For a user query, write one bad and one good guideline for answering it. Both have the same structure, "
        "fit this query only, and are one or two sentences. Answer in exactly this form:",
    ]
    for example, worse, better in _EXAMPLES:
        lines += ["", f"### Query\n{example}", f"{BAD_HEADING}\n{worse}", f"{GOOD_HEADING}\n{better}"]
    lines += ["", f"### Query\n{query}"]
    lines += (
        [f"{_ASK} `{BAD_HEADING}` now."]
        if bad is None
        else [
            f"{BAD_HEADING}\n{bad}",
            f"{_ASK} `{GOOD_HEADING}` now.",
        ]
    )
    return [Message(role="user", content="\n".join(lines))]


def parse_guideline(said: Reply, heading: str) -> str | None:
    """The guideline after its heading and before the next one; a reply without headings counts whole.

    A heading stands at the start of a line, marked as one or before a colon or the line's end. A model's reasoning goes
    first.

    None where nothing usable is left: empty, cut, longer than 1,200 characters, about a guideline of that name in place
    of it (a refusal, say), or text of the prompt itself, which weak writers repeat.
    """
    reply = after_reasoning(said.text)
    label = re.escape(heading.lstrip("# "))
    ahead = rf"^[ \t]*(?:(?:#+|\*\*)[ \t]*{label}\b[\s*_:-]*|{label}[ \t]*(?::[\s*_-]*|\n))(.*)"
    match = re.search(ahead, reply, re.IGNORECASE | re.DOTALL | re.MULTILINE)
    if match is None and re.search(label, reply, re.IGNORECASE):
        return None
    parts = re.split(_NEXT, match[1] if match else reply, maxsplit=1)
    body = " ".join(parts[0].strip().strip("-*`\"'").split())
    copied = _ASK in reply or any(own.lower() in body.lower() for own in _OWN_TEXTS)
    whole = said.finished or (match is not None and len(parts) > 1)
    return body if 0 < len(body) <= 1200 and whole and not copied else None


def feature_prompt(query: str) -> list[Message]:
    """v1: the policy names the features that matter for a query."""
    return [
        Message(
            role="user",
            content=f"Which of these features matter most in an answer to the query below: {', '.join(NAMED)}? "
            f"Reply with a comma-separated list and nothing else.\n\nQuery: {query}",
        )
    ]


def named_features(said: Reply) -> list[str]:
    """The features that a reply names, each once, in its order; of one that was cut, in its whole lines."""
    reply = after_reasoning(said.text if said.finished else said.text.rpartition("\n")[0])
    words = re.findall(rf"\b(?:{'|'.join(NAMED)})\b", reply, re.IGNORECASE)
    return list(dict.fromkeys(word.capitalize() for word in words))


def drawn_features(found: list[str], random: Random, count: int = 2) -> list[str]:
    """``count`` of the features found, topped up at random, and Concision with probability 0.2.

    Shuffled before the first ``count`` are taken, as in v1: what a model likes to name first is not always chosen.
    """
    found = list(found)
    random.shuffle(found)
    found = found[:count]
    found += random.sample([n for n in NAMED if n not in found], max(0, count - len(found)))
    return [*found, "Concision"] if random.random() < 0.2 else found


def from_features(query: Query, names: list[str], writer: str, fallback: bool = False) -> Principles:
    """v1's principle of a query: its features' adjectives, each with its predefined text, as items of a list."""
    chosen = [FEATURES[n] for n in names]
    return Principles(
        id=query.id,
        prompt=query.prompt,
        good="\n- ".join(f"{f.adjectives[0].lower()}: {f.good}" for f in chosen),
        bad="\n- ".join(f"{f.adjectives[1].lower()}: {f.bad}" for f in chosen),
        features=names,
        writer=writer,
        fallback=fallback,
    )


def write_v1(queries: list[Query], ask: Ask, seed: int, writer: str) -> list[Principles]:
    """Features named by a language model, texts predefined; the fallback where it says nothing, and features drawn at
    random, which are marked as one, too, where it names none."""
    replies = ask([feature_prompt(q.prompt[-1].content) for q in queries], [f"{q.id}/features" for q in queries])
    rows = []
    for query, reply in zip(queries, replies, strict=True):
        found, spoke = named_features(reply), after_reasoning(reply.text).strip()
        names = drawn_features(found, Random(f"{seed}/{query.id}")) if spoke else ["Helpfulness"]
        rows.append(from_features(query, names, writer, fallback=not found))
    return rows


def write_v2(queries: list[Query], ask: Ask, writer: str) -> list[Principles]:
    """One bad and then one good guideline a query, by a language model; the fallback where either fails."""
    texts = [q.prompt[-1].content for q in queries]
    bad_replies = ask([few_shot(t) for t in texts], [f"{q.id}/bad" for q in queries])
    bad = [parse_guideline(reply, BAD_HEADING) for reply in bad_replies]
    good_replies = ask(
        [few_shot(t, b or FALLBACK.bad) for t, b in zip(texts, bad, strict=True)], [f"{q.id}/good" for q in queries]
    )
    good = [parse_guideline(reply, GOOD_HEADING) for reply in good_replies]
    return [
        Principles(id=q.id, prompt=q.prompt, good=g, bad=b, writer=writer)
        if g and b and g != b
        else Principles(
            id=q.id,
            prompt=q.prompt,
            good=FALLBACK.good,
            bad=FALLBACK.bad,
            features=["Helpfulness"],
            writer=writer,
            fallback=True,
        )
        for q, g, b in zip(queries, good, bad, strict=True)
    ]
