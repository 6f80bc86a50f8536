"""Judges behind one protocol: which of two answers is better, and how good one answer is.

Three kinds: the micro-world's oracle (exact, free), a reward model, and a model behind an OpenAI-compatible endpoint
(eval/endpoint_judge.py). Callers hand over all items at once and know only the protocol.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from eval.settings import Judge as JudgeSettings
from sso import worlds
from sso.errors import InputError
from sso.hub import checkpoint
from sso.records import Message
from sso.worlds.settings import MicroWorld, World

if TYPE_CHECKING:
    from sso.endpoint import Progress
    from sso.worlds.oracle import Oracle

TIE = 1e-9
"""Scores closer than this are a tie: an oracle's are rounded, a reward model's are not."""


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt."""

    prompt: list[Message]
    a: str
    b: str


@dataclass(frozen=True)
class Grading:
    """A conversation whose last message, an assistant's, is to be graded; reference answers, one a turn, if any."""

    messages: list[Message]
    reference: tuple[str, ...] = ()


class Preference(NamedTuple):
    """Preference for answer a in [0, 1], with a shown first and with a shown second; NaN: no readable verdict."""

    first: float
    second: float

    @property
    def mean(self) -> float:
        """Mean over both orders; NaN where one could not be read: the other alone tells of the position, too."""
        return (self.first + self.second) / 2


class Judge(Protocol):
    """Compares two answers, or grades one. ``draw`` above 0 asks a judge that samples once more."""

    name: str
    scale: str
    """What `grade` gives: "1-10", or "reward"."""

    def pairwise(self, items: Sequence[AnswerPair], draw: int = 0) -> list[Preference]:
        """Which answer is better, in both orders."""

    def five_way(self, items: Sequence[AnswerPair], draw: int = 0) -> list[tuple[str | None, str | None]]:
        """Arena-Hard's labels, A>>B to B>>A, with a as assistant A and with a as assistant B; None: unreadable."""

    def grade(self, items: Sequence[Grading], draw: int = 0) -> list[float]:
        """Grade of each last turn; NaN: unreadable."""

    def notes(self) -> dict[str, int | float]:
        """What a reader of the scores must know, e.g. how many replies could not be read."""


class ScoringJudge:
    """A judge that scores answers one by one, the higher the better: both orders agree, and none is unreadable."""

    name: str
    scale: str

    def scores(self, items: Sequence[tuple[list[Message], str]]) -> list[float]:
        """The score of each (prompt, answer)."""
        raise NotImplementedError

    def pairwise(self, items: Sequence[AnswerPair], draw: int = 0) -> list[Preference]:
        """1, 0 or 0.5 by the scores."""
        values = self.scores([(i.prompt, i.a) for i in items] + [(i.prompt, i.b) for i in items])
        both = zip(values[: len(items)], values[len(items) :], strict=True)
        return [Preference(p, p) for p in (preference(a, b) for a, b in both)]

    def five_way(self, items: Sequence[AnswerPair], draw: int = 0) -> list[tuple[str | None, str | None]]:
        """Better, worse or equal; a score has no threshold for `significantly`."""
        games = {1.0: ("A>B", "B>A"), 0.5: ("A=B", "A=B"), 0.0: ("B>A", "A>B")}
        return [games[p.first] for p in self.pairwise(items)]

    def grade(self, items: Sequence[Grading], draw: int = 0) -> list[float]:
        """The score of the last turn."""
        return self.scores([(i.messages[:-1], i.messages[-1].content) for i in items])

    def notes(self) -> dict[str, int | float]:
        """Nothing: every answer can be judged."""
        return {}


class OracleJudge(ScoringJudge):
    """A world's exact oracle.

    A grade is 1 + 9 * score, not rounded: MT-Bench's whole numbers are a habit of judge models, and rounding would
    only add noise.
    """

    name, scale = "oracle", "1-10"

    def __init__(self, world: World | None = None, oracle: "Oracle | None" = None):
        self.oracle = oracle or worlds.oracle(world or MicroWorld())

    def scores(self, items: Sequence[tuple[list[Message], str]]) -> list[float]:
        """Exact quality in [0, 1]."""
        return [self.oracle.score(prompt, answer).total for prompt, answer in items]

    def grade(self, items: Sequence[Grading], draw: int = 0) -> list[float]:
        """1 + 9 * score of the last turn."""
        return [1 + 9 * score for score in super().grade(items)]


class RewardJudge(ScoringJudge):
    """A Bradley-Terry reward model: one of `sso-rewardbench train`, or a public one.

    Its grade is the reward itself: a Bradley-Terry model fixes differences only, so no map to 1-10 would be honest.
    """

    scale = "reward"

    def __init__(self, path: Path, batch_size: int = 16, name: str | None = None):
        from sso.reward_model import load, reader

        self.name, self.batch_size = name or f"reward model {path.name}", batch_size
        self.model, self.tokenizer = load(path)
        self._read = reader(self.model, self.tokenizer)

    def scores(self, items: Sequence[tuple[list[Message], str]]) -> list[float]:
        """Rewards; raises InputError where prompt and answer exceed the model's context."""
        from sso.chat import context_limit, naming
        from sso.reward_model import rewards

        sequences, limit = [], context_limit(self.model.config)
        for prompt, answer in items:
            with naming([prompt[-1].content[:60]], f"{self.name}: prompt"):
                sequences.append(self._read(prompt, answer))
        for sequence, (prompt, _) in zip(sequences, items, strict=True):
            if len(sequence) > limit:
                raise InputError(
                    f"{self.name}: {len(sequence)} tokens exceed its context of {limit} "
                    f"({prompt[-1].content[:60]!r}); judge by another model, or drop the prompt."
                )
        return rewards(self.model, sequences, self.batch_size).tolist()


def preference(score_a: float, score_b: float) -> float:
    """1 where a is better, 0 where b is, 0.5 for a tie."""
    return 0.5 if abs(score_a - score_b) < TIE else float(score_a > score_b)


def make_judge(settings: JudgeSettings, world: World | None, cache: Path, progress: "Progress | None" = None) -> Judge:
    """The judge that the settings name; ``cache`` is where a paid judge keeps its replies."""
    if settings.kind == "oracle":
        if world is None:
            raise InputError("judge.kind: the oracle judges only the micro-world; give --world, or another judge.")
        return OracleJudge(world)
    if settings.path is not None:  # kind: reward
        return RewardJudge(checkpoint(settings.path), name=settings.title)
    from eval.endpoint_judge import EndpointJudge

    return EndpointJudge(settings, cache, progress)


def to_json(value: float) -> float | None:
    """NaN has no JSON: None stands for a reply that could not be read."""
    return None if math.isnan(value) else round(value, 6)
