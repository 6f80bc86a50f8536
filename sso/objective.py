"""Objectives as data: a list of contrasts over a base loss.

A contrast is (context, winner, loser, weight, sft weight). Everything the paper trains with is a row of
config/objectives.yaml, and experiments have rows of their own; a new base loss is one function and one row of
`BASE_LOSSES`. Knows log-probabilities, nothing of models, tokens or files.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import AfterValidator, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from sso.errors import InputError
from sso.settings import NAME, ROOT, Settings, from_yaml, hint, sentence

if TYPE_CHECKING:
    from torch import Tensor

    from sso.train.settings import Training

Context = Literal["x", "x+", "x-"]
Response = Literal["y+", "y-", "yo"]
Node = tuple[Context, Response]
"""A response in a context: what is scored once, however many contrasts use it."""
NODES: tuple[Node, ...] = tuple(product(get_args(Context), get_args(Response)))
"""Of a triple."""
PAIR_NODES: tuple[Node, Node] = (("x", "y+"), ("x", "y-"))
"""What a pair can be scored in."""


def _known_weight(value: float | str) -> float | str:
    from sso.train.settings import LOSS_NUMBERS  # which needs this module first

    if isinstance(value, str) and value not in LOSS_NUMBERS:
        raise ValueError(f"unknown weight {value!r}; {hint(value, LOSS_NUMBERS)}")
    return value


# Left to right: from a command line numbers come as text.
Weight = Annotated[FiniteFloat | str, Field(union_mode="left_to_right"), AfterValidator(_known_weight)]
"""A number, or the name of one that the training has."""


class Contrast(Settings):
    """weight * [L_base(context; winner > loser) + sft * L_sft(context, winner)] (2)-(4)."""

    context: Context
    winner: Response
    loser: Response
    weight: Weight = 1.0
    sft: Weight = 0.0
    on_policy_weight: bool = False

    @model_validator(mode="after")
    def _two_responses(self) -> "Contrast":
        if self.winner == self.loser:
            raise ValueError(f"{self.winner} is both winner and loser; a contrast needs two responses")
        return self


Contrasts = Annotated[list[Contrast], Field(min_length=1)]


@dataclass(frozen=True)
class Scores:
    """Summed log-probabilities of each node under policy and reference, and token counts; each tensor [samples]."""

    policy: Mapping[Node, "Tensor"]
    reference: Mapping[Node, "Tensor"]
    tokens: Mapping[Node, "Tensor"]

    def average(self, node: Node) -> "Tensor":
        """avg(y|x) = logp(y|x) / |y|, under the policy."""
        return self.policy[node] / self.tokens[node]


@dataclass(frozen=True)
class BaseLoss:
    """L_base(c; w > l) as a function of the winner's and the loser's score, each [samples].

    A score is a log-probability, less the reference's unless ``reference_free``, divided by the response's length
    where ``averaged``.
    """

    loss: Callable[["Tensor", "Tensor", "Training"], "Tensor"]
    averaged: bool = False
    reference_free: bool = False


def dpo(winner: "Tensor", loser: "Tensor", training: "Training") -> "Tensor":
    """-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), e the label smoothing (Rafailov et al. 2023, eq. 7)."""
    from torch.nn.functional import logsigmoid

    z, e = training.beta * (winner - loser), training.label_smoothing
    return -logsigmoid(z) if e == 0 else -(1 - e) * logsigmoid(z) - e * logsigmoid(-z)


def ipo(winner: "Tensor", loser: "Tensor", training: "Training") -> "Tensor":
    """(h - 1 / (2 beta))^2 (Azar et al. 2023, eq. 17)."""
    return (winner - loser - 1 / (2 * training.beta)) ** 2


def hinge(winner: "Tensor", loser: "Tensor", training: "Training") -> "Tensor":
    """max(0, 1 - beta h) (Zhao et al. 2023, normalised as in trl)."""
    return (1 - training.beta * (winner - loser)).relu()


def orpo(winner: "Tensor", loser: "Tensor", training: "Training") -> "Tensor":
    """-avg(w) - beta log sigmoid(log odds(w) - log odds(l)), with an SFT term of its own (Hong et al. 2024, eq. 6)."""
    from torch.nn.functional import logsigmoid

    def log_odds(average: "Tensor") -> "Tensor":
        return average - (-average.expm1()).log()

    return -winner - training.beta * logsigmoid(log_odds(winner) - log_odds(loser))


def simpo(winner: "Tensor", loser: "Tensor", training: "Training") -> "Tensor":
    """-log sigmoid(beta (avg(w) - avg(l)) - margin) (Meng et al. 2024, eq. 6)."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(training.beta * (winner - loser) - training.simpo_margin)


def sft(winner: "Tensor", loser: "Tensor", training: "Training") -> "Tensor":
    """-avg(w): supervised fine-tuning on the winner; the loser counts for nothing."""
    return -winner


BASE_LOSSES = {
    "dpo": BaseLoss(dpo),
    "ipo": BaseLoss(ipo, averaged=True),
    "hinge": BaseLoss(hinge),
    "orpo": BaseLoss(orpo, averaged=True, reference_free=True),
    "simpo": BaseLoss(simpo, averaged=True, reference_free=True),
    "sft": BaseLoss(sft, averaged=True, reference_free=True),
}
if TYPE_CHECKING:
    BaseLossName = str
else:
    BaseLossName = Literal[tuple(BASE_LOSSES)]


@dataclass(frozen=True)
class Objective:
    """Contrasts with their weights as numbers, and the training whose base loss, beta and alpha they use."""

    contrasts: tuple[Contrast, ...]
    training: "Training"

    @property
    def base(self) -> BaseLoss:
        return BASE_LOSSES[self.training.base_loss]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The (context, response) pairs to score, each once, in a fixed order."""
        found = {(c.context, y): None for c in self.contrasts for y in (c.winner, c.loser)}
        if self.uses_weight:
            found |= dict.fromkeys(PAIR_NODES)
        return tuple(found)

    @property
    def uses_weight(self) -> bool:
        return any(c.on_policy_weight for c in self.contrasts)

    def weight(self, scores: Scores) -> "Tensor":
        """W = sigmoid(-(alpha avg(y+|x) + (1 - alpha) avg(y-|x))) of v1. [samples].

        Carries a gradient, as the released code's does, unless the training says ``detach_weight``.
        """
        alpha = self.training.alpha
        mixed = alpha * scores.average(("x", "y+")) + (1 - alpha) * scores.average(("x", "y-"))
        return (-(mixed.detach() if self.training.detach_weight else mixed)).sigmoid()

    def _score(self, scores: Scores, node: Node) -> "Tensor":
        """What the base loss compares. [samples]."""
        score = scores.policy[node] if self.base.reference_free else scores.policy[node] - scores.reference[node]
        return score / scores.tokens[node] if self.base.averaged else score

    def terms(self, scores: Scores) -> list[dict[str, "Tensor"]]:
        """Per contrast: base loss, SFT term and margin (what the base loss compares), each [samples], unweighted."""
        rows = []
        for contrast in self.contrasts:
            winner, loser = (self._score(scores, (contrast.context, y)) for y in (contrast.winner, contrast.loser))
            rows.append(
                {
                    "base": self.base.loss(winner, loser, self.training),
                    "sft": -scores.average((contrast.context, contrast.winner)),
                    "margin": winner - loser,
                }
            )
        return rows

    def __call__(self, scores: Scores) -> "Tensor":
        """The loss of each sample: sum of weight * [W] * (L_base + sft * L_sft). [samples]."""
        on_policy = self.weight(scores) if self.uses_weight else 1.0
        losses = []
        for contrast, term in zip(self.contrasts, self.terms(scores), strict=True):
            loss = float(contrast.weight) * (term["base"] + float(contrast.sft) * term["sft"])
            losses.append(on_policy * loss if contrast.on_policy_weight else loss)
        return sum(losses[1:], losses[0])


@cache
def load_objectives() -> dict[str, list[Contrast]]:
    """The rows of config/objectives.yaml."""
    path = ROOT / "config" / "objectives.yaml"
    try:
        return TypeAdapter(dict[str, Contrasts]).validate_python(from_yaml(path.read_text(encoding="utf-8"), path))
    except ValidationError as error:
        raise InputError(sentence(str(path), error, Contrast)) from error


def _not_shipped(own: dict[str, list[Contrast]]) -> dict[str, list[Contrast]]:
    for name in own.keys() & load_objectives().keys():
        raise ValueError(f"{name!r} is an objective of config/objectives.yaml; give yours another name")
    return own


Objectives = Annotated[dict[Annotated[str, Field(pattern=NAME)], Contrasts], AfterValidator(_not_shipped)]
"""Own objectives beside the shipped ones: name -> contrasts."""


def contrasts_of(name: str, own: Mapping[str, list[Contrast]]) -> list[Contrast]:
    """The contrasts of a shipped or an own objective; raises InputError for a name that is neither."""
    known = {**load_objectives(), **own}
    if name not in known:
        raise InputError(f"unknown objective {name!r}; {hint(name, known)}")
    return known[name]


def build(training: "Training") -> Objective:
    """The objective that a training names, its symbolic weights replaced by the training's values."""
    rows = contrasts_of(training.objective, training.objectives)

    def number(weight: float | str) -> float:
        return float(getattr(training, weight)) if isinstance(weight, str) else weight

    contrasts = tuple(c.model_copy(update={"weight": number(c.weight), "sft": number(c.sft)}) for c in rows)
    return Objective(contrasts, training)


def united_nodes(objectives: Iterable[str], training: "Training") -> tuple[Node, ...]:
    """The nodes of some objectives, each once, in a fixed order; ``training`` may bring objectives of its own."""
    built = (build(training.model_copy(update={"objective": name})) for name in objectives)
    return tuple(dict.fromkeys(node for objective in built for node in objective.nodes))
