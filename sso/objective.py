"""Objectives as data: a list of contrasts over a base loss.

A contrast is (context, winner, loser, weight, sft weight). Everything the paper trains with is a row of
config/objectives.yaml; a new base loss is one function here and one test. Knows log-probabilities,
nothing of models, tokens or files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from sso.config import ROOT, Settings, Training
from sso.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Context = Literal["x", "x+", "x-"]
Response = Literal["y+", "y-", "yo"]
Node = tuple[Context, Response]
"""A response in a context: what is scored once, however many contrasts use it."""


class Contrast(Settings):
    """weight * [L_base(context; winner > loser) + sft * L_sft(context, winner)] (2)-(4)."""

    context: Context
    winner: Response
    loser: Response
    weight: float | str = 1.0
    sft: float | str = 0.0
    on_policy_weight: bool = False


@dataclass(frozen=True)
class Scores:
    """Summed log-probabilities of each node under policy and reference, and token counts; each tensor [samples]."""

    policy: Mapping[Node, "Tensor"]
    reference: Mapping[Node, "Tensor"]
    tokens: Mapping[Node, "Tensor"]

    def average(self, node: Node) -> "Tensor":
        """avg(y|x) = logp(y|x) / |y|, under the policy."""
        return self.policy[node] / self.tokens[node]


def dpo(scores: Scores, winner: Node, loser: Node, beta: float) -> "Tensor":
    """-log sigmoid(beta h), h of summed log-probabilities (Rafailov et al. 2023, eq. 7). [samples], nats."""
    from torch.nn.functional import logsigmoid

    h = (scores.policy[winner] - scores.reference[winner]) - (scores.policy[loser] - scores.reference[loser])
    return -logsigmoid(beta * h)


def ipo(scores: Scores, winner: Node, loser: Node, beta: float) -> "Tensor":
    """(h - 1 / (2 beta))^2, h of length-averaged log-probabilities (Azar et al. 2023, eq. 17). [samples]."""
    h_winner = (scores.policy[winner] - scores.reference[winner]) / scores.tokens[winner]
    h_loser = (scores.policy[loser] - scores.reference[loser]) / scores.tokens[loser]
    return (h_winner - h_loser - 1 / (2 * beta)) ** 2


BASE_LOSSES: dict[str, Callable[[Scores, Node, Node, float], "Tensor"]] = {"dpo": dpo, "ipo": ipo}


@dataclass(frozen=True)
class Objective:
    """Contrasts with their weights as numbers, a base loss and W's alpha."""

    contrasts: tuple[Contrast, ...]
    base_loss: str
    beta: float
    alpha: float

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The (context, response) pairs to score, each once, in a fixed order."""
        found = {(c.context, y): None for c in self.contrasts for y in (c.winner, c.loser)}
        if self.uses_weight:
            found |= {("x", "y+"): None, ("x", "y-"): None}
        return tuple(found)

    @property
    def uses_weight(self) -> bool:
        return any(c.on_policy_weight for c in self.contrasts)

    def weight(self, scores: Scores) -> "Tensor":
        """W = sigmoid(-(alpha avg(y+|x) + (1 - alpha) avg(y-|x))) of v1; carries a gradient. [samples]."""
        mixed = self.alpha * scores.average(("x", "y+")) + (1 - self.alpha) * scores.average(("x", "y-"))
        return (-mixed).sigmoid()

    def terms(self, scores: Scores) -> list[dict[str, "Tensor"]]:
        """Per contrast: base loss, SFT term and margin h (summed), each [samples], unweighted."""
        rows = []
        for c in self.contrasts:
            winner, loser = (c.context, c.winner), (c.context, c.loser)
            h = (scores.policy[winner] - scores.reference[winner]) - (scores.policy[loser] - scores.reference[loser])
            rows.append(
                {
                    "base": BASE_LOSSES[self.base_loss](scores, winner, loser, self.beta),
                    "sft": -scores.average(winner),
                    "margin": h,
                }
            )
        return rows

    def __call__(self, scores: Scores) -> "Tensor":
        """The loss of each sample. [samples]."""
        w = self.weight(scores) if self.uses_weight else None
        total = None
        for c, term in zip(self.contrasts, self.terms(scores), strict=True):
            loss = float(c.weight) * (term["base"] + float(c.sft) * term["sft"])
            if c.on_policy_weight:
                loss = w * loss
            total = loss if total is None else total + loss
        return total


@cache
def load_objectives() -> dict[str, tuple[Contrast, ...]]:
    """The rows of config/objectives.yaml."""
    path = ROOT / "config" / "objectives.yaml"
    adapter = TypeAdapter(dict[str, tuple[Contrast, ...]])
    try:
        return adapter.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error


def build(training: Training) -> Objective:
    """The objective that a training names, its symbolic weights replaced by the training's values."""
    rows = load_objectives().get(training.objective)
    if rows is None:
        raise InputError(f"unknown objective {training.objective!r}; known: {', '.join(load_objectives())}.")

    def number(weight: float | str) -> float:
        return float(getattr(training, weight)) if isinstance(weight, str) else weight

    contrasts = tuple(c.model_copy(update={"weight": number(c.weight), "sft": number(c.sft)}) for c in rows)
    return Objective(contrasts, training.base_loss, training.beta, training.alpha)
