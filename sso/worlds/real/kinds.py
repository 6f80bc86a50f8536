"""The kinds of constraints: IFEval's names and arguments, principles about them, and how an answer is made to keep one.

A kind edits an answer at one stage, and a prompt's two constraints are of different stages, so that they don't
contradict each other. An edit may fail or be undone by a later one: whether an answer keeps a constraint is decided
by IFEval's checker alone (sso/worlds/real/data.py asks it about every answer that is made).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Stage = Literal["length", "sentence", "layout", "frame", "letters"]
"""Which sentences; each of them; how they are put together; what stands around the text; all its letters."""
STAGES: tuple[Stage, ...] = ("length", "sentence", "layout", "frame", "letters")


@dataclass(frozen=True)
class Option:
    """Arguments of a kind, and a good and a bad principle about them, each in some wordings."""

    arguments: dict[str, Any]
    good: tuple[str, ...]
    bad: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of constraint.

    ``edit`` makes an answer keep it: of the stages `length` and `sentence` it takes and gives sentences, of `layout`
    sentences and a text, later a text. It gets the arguments and the prompt too.
    """

    id: str
    stage: Stage
    edit: Callable[..., Any]
    options: tuple[Option, ...]
    new: bool = False
    """Kept back: only `ifeval_new_kinds` asks for it."""
    avoid: Callable[..., list[str]] | None = None
    """Sentences of an answer that does not keep it, where a plain one does by itself."""


def _limit(sentences: list[str], arguments: dict[str, Any], prompt: str) -> list[str]:
    if "num_words" in arguments:
        kept = sentences[:1]
        for sentence in sentences[1:]:
            if len(" ".join([*kept, sentence]).split()) >= arguments["num_words"]:
                break
            kept.append(sentence)
        return kept
    few = arguments["relation"] == "less than"
    return sentences[: arguments["num_sentences"] - 1] if few else sentences


def _exceed(sentences: list[str], arguments: dict[str, Any], prompt: str) -> list[str]:
    return sentences[:1] if arguments["relation"] == "at least" else sentences


def _without_commas(sentences: list[str], arguments: dict[str, Any], prompt: str) -> list[str]:
    return [sentence.replace(",", "") for sentence in sentences]


def _highlighted(sentences: list[str], arguments: dict[str, Any], prompt: str) -> list[str]:
    def marked(sentence: str) -> str:
        words = sentence.split(" ")
        longest = max(range(len(words) - 1), key=lambda at: len(words[at]), default=0)
        words[longest] = f"*{words[longest].strip(',;:')}*"
        return " ".join(words)

    return [marked(sentence) for sentence in sentences]


def _parts(sentences: list[str], count: int) -> list[str]:
    """The sentences as ``count`` texts, the last with all that is left; fewer where there are not so many."""
    return [*sentences[: count - 1], " ".join(sentences[count - 1 :])] if len(sentences) >= count else sentences


def _bullets(sentences: list[str], arguments: dict[str, Any], prompt: str) -> str:
    return "\n".join(f"* {part}" for part in _parts(sentences, arguments["num_bullets"]))


def _paragraphs(sentences: list[str], arguments: dict[str, Any], prompt: str) -> str:
    return "\n***\n".join(_parts(sentences, arguments["num_paragraphs"]))


def _sections(sentences: list[str], arguments: dict[str, Any], prompt: str) -> str:
    parts = _parts(sentences, arguments["num_sections"])
    return "\n".join(f"{arguments['section_spliter']} {number}\n{part}" for number, part in enumerate(parts, 1))


def _postscript(sentences: list[str], arguments: dict[str, Any], prompt: str) -> str:
    return f"{' '.join(sentences[:-1])}\n{arguments['postscript_marker']} {sentences[-1]}"


def _titled(text: str, arguments: dict[str, Any], prompt: str) -> str:
    words = [word for word in re.findall(r"[A-Za-z]+", prompt) if len(word) > 3] or ["Answer"]
    return f"<<{' '.join(words[:3]).title()}>>\n{text}"


def _ended(text: str, arguments: dict[str, Any], prompt: str) -> str:
    return f"{text} {arguments['end_phrase']}"


def _quoted(text: str, arguments: dict[str, Any], prompt: str) -> str:
    return '"' + text.replace('"', "'") + '"'


def _lower(text: str, arguments: dict[str, Any], prompt: str) -> str:
    return text.lower()


def _upper(text: str, arguments: dict[str, Any], prompt: str) -> str:
    return text.upper()


def _number(count: int) -> str:
    return {2: "two", 3: "three"}[count]


KINDS = (
    Kind(
        "length_constraints:number_sentences",
        "length",
        _limit,
        (
            Option(
                {"num_sentences": 3, "relation": "less than"},
                ("Say it in one or two sentences, not more.", "Stop after the second sentence at the latest."),
                ("Go on for many sentences, however few are asked for.", "Write at length, sentence after sentence."),
            ),
            Option(
                {"num_sentences": 3, "relation": "at least"},
                ("Write no fewer than three sentences.", "Go on until there are at least three sentences."),
                ("Leave it at a single sentence, however many are asked for.", "Say one sentence and stop."),
            ),
        ),
        avoid=_exceed,
    ),
    Kind(
        "length_constraints:number_words",
        "length",
        _limit,
        (
            Option(
                {"num_words": 25, "relation": "less than"},
                ("Be brief: stay well below twenty-five words.", "Count the words, and stop before the twenty-fifth."),
                ("Use many more words than are allowed.", "Be wordy, whatever limit the user sets."),
            ),
        ),
    ),
    Kind(
        "punctuation:no_comma",
        "sentence",
        _without_commas,
        (
            Option(
                {},
                ("Write without a single comma.", "Build sentences that need no comma, and set none."),
                ("Set commas as usual, although the user wants none.", "Use commas freely."),
            ),
        ),
    ),
    Kind(
        "detectable_format:number_bullet_lists",
        "layout",
        _bullets,
        tuple(
            Option(
                {"num_bullets": count},
                (
                    f"Lay the answer out as exactly {_number(count)} bullet points, each starting with a star.",
                    f"Give {_number(count)} points in a list with stars, no more and no fewer.",
                ),
                (
                    "Write running text in place of the list.",
                    "Ignore the wish for bullet points, and write plain text.",
                ),
            )
            for count in (2, 3)
        ),
    ),
    Kind(
        "detectable_content:postscript",
        "layout",
        _postscript,
        (
            Option(
                {"postscript_marker": "P.S."},
                ("Close with a postscript that begins with P.S.", "Add a last line that starts with P.S."),
                ("Leave the postscript out.", "End without any postscript, although one is wanted."),
            ),
        ),
    ),
    Kind(
        "detectable_format:title",
        "frame",
        _titled,
        (
            Option(
                {},
                (
                    "Begin with a title in double angular brackets.",
                    "Put a title such as <<A Title>> on the first line.",
                ),
                ("Begin at once, without a title.", "Leave the title out, although one is asked for."),
            ),
        ),
    ),
    Kind(
        "startend:end_checker",
        "frame",
        _ended,
        tuple(
            Option(
                {"end_phrase": phrase},
                (f"Let the very last words be: {phrase}", f"Finish with this phrase and nothing after it: {phrase}"),
                ("End with words of your own, not with the phrase that is asked for.", "Leave the closing phrase out."),
            )
            for phrase in ("That is all you need.", "I hope this helps you.", "Tell me if you want more.")
        ),
    ),
    Kind(
        "startend:quotation",
        "frame",
        _quoted,
        (
            Option(
                {},
                ("Put the whole answer between double quotation marks.", "Open and close with a quotation mark."),
                ("Use no quotation marks around the answer.", "Leave out the quotation marks that are asked for."),
            ),
        ),
    ),
    Kind(
        "change_case:english_lowercase",
        "letters",
        _lower,
        (
            Option(
                {},
                ("Use small letters only, from the first word to the last.", "Write everything in lowercase."),
                ("Begin sentences and names with capital letters as usual.", "Use capital letters wherever you like."),
            ),
        ),
    ),
    Kind(
        "change_case:english_capital",
        "letters",
        _upper,
        (
            Option(
                {},
                ("Use capital letters only, in every word.", "Write everything in capitals."),
                ("Write in ordinary small letters.", "Use small letters, although capitals are asked for."),
            ),
        ),
    ),
    Kind(
        "detectable_format:number_highlighted_sections",
        "sentence",
        _highlighted,
        (
            Option(
                {"num_highlights": 2},
                ("Set at least two words between stars.", "Mark two or more words with a star on each side."),
                ("Mark no word with stars.", "Write plain text without any highlight."),
            ),
        ),
        new=True,
    ),
    Kind(
        "length_constraints:number_paragraphs",
        "layout",
        _paragraphs,
        (
            Option(
                {"num_paragraphs": 2},
                ("Write two paragraphs with three stars between them.", "Divide the answer once, by a line of stars."),
                ("Write one undivided paragraph.", "Put no line of stars between paragraphs."),
            ),
        ),
        new=True,
    ),
    Kind(
        "detectable_format:multiple_sections",
        "layout",
        _sections,
        (
            Option(
                {"section_spliter": "Section", "num_sections": 2},
                ("Head the two parts with Section 1 and Section 2.", "Number the parts as Section 1 and Section 2."),
                ("Write one text without sections.", "Use no section headings."),
            ),
        ),
        new=True,
    ),
)
