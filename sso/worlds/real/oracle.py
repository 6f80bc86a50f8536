"""The oracle of the real world: IFEval's checkers, asked about the constraints that a prompt ends with."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sso.errors import InputError
from sso.records import Message
from sso.worlds.oracle import Verdict
from sso.worlds.real.checkers import load_checkers
from sso.worlds.real.kinds import KINDS, Kind, Option

LEAST_WORDS, LEAST_NEW = 5, 0.5


@dataclass(frozen=True)
class Constraint:
    """One of a prompt's constraints; ``sentence`` is IFEval's own wording of it."""

    kind: Kind
    option: Option
    sentence: str
    checker: Any = field(repr=False, compare=False)

    def kept(self, response: str) -> bool:
        """Whether a response keeps it, by IFEval's strict rule."""
        return bool(response.strip()) and bool(self.checker.check_following(response))


@cache
def constraints() -> dict[str, Constraint]:
    """Every constraint that there is, by its sentence, the longest first."""
    load_checkers(kind.id for kind in KINDS)
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    found = {}
    for kind in KINDS:
        for option in kind.options:
            checker = INSTRUCTION_DICT[kind.id](kind.id)
            sentence = checker.build_description(**option.arguments)
            found[sentence] = Constraint(kind, option, sentence, checker)
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def is_answer(response: str) -> bool:
    """Whether a text is an answer at all: five words or more, and no loop, in which at least half of the sequences of
    three words stand for the second time. IFEval's checkers are content with silence about many constraints."""
    words = response.lower().split()
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return len(words) >= LEAST_WORDS and len(set(threes)) > LEAST_NEW * len(threes)


class ConstraintOracle:
    """Knows of a prompt what stands in it. ``score`` is pure: same prompt and response, same verdict."""

    def read(self, prompt: list[Message]) -> list[Constraint]:
        """The constraints with which the last user turn ends, in its order; InputError where it ends with none."""
        text = next((turn.content for turn in reversed(prompt) if turn.role == "user"), "").rstrip()
        found: list[Constraint] = []
        while last := next((one for sentence, one in constraints().items() if text.endswith(sentence)), None):
            found.insert(0, last)
            text = text.removesuffix(last.sentence).rstrip()
        if not found:
            raise InputError(
                f"the oracle judges only prompts with a constraint, not {text[-60:]!r}; use another judge."
            )
        return found

    def score(self, prompt: list[Message], response: str) -> Verdict:
        """The share of the constraints that a response keeps; 0 for what is no answer (`is_answer`).

        What it says beside that is not judged: neither whether it is true, nor whether it is about the question.
        """
        kept = {one.kind.id: float(one.kept(response)) for one in self.read(prompt)}
        answer = float(is_answer(response))
        return Verdict(answer * sum(kept.values()) / len(kept), {"answer": answer, **kept})
