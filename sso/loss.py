"""`sso loss`: what an objective says of each sample, term by term; for debugging, and for checks from outside.

Scores policy and reference with the same code as training does, in float64 if asked for.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from sso import reference
from sso.chat import load_model
from sso.errors import InputError
from sso.objective import Objective, Scores
from sso.packing import Sample


def lines(
    policy: Path, frozen: Path, samples: Sequence[Sample], pad: int, objective: Objective, dtype: str
) -> Iterator[dict[str, Any]]:
    """One mapping a sample.

    id; loss: the sample's total; weight: W or None; contrasts: context, winner, loser, base_loss and sft_term
    (both unweighted), weight and sft_weight; logp: by "context|response" the summed log-probabilities (nats) under
    policy and reference, and the number of scored tokens. What is not finite is None.

    Raises:
        InputError: policy and reference have different vocabularies.
    """
    training, nodes = objective.training, objective.nodes
    made, sizes = [], []
    for path in (policy, frozen):
        model = load_model(path, "float64" if dtype == "float64" else "float32")
        sizes.append(model.config.vocab_size)
        made.append(
            reference.score(model, samples, nodes, pad, {"dtype": dtype}, training.layout, training.tokens_per_batch)
        )
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{frozen}: its vocabulary has {sizes[1]} tokens, that of {policy} {sizes[0]}; "
            "give a reference with the policy's vocabulary."
        )
    columns = {node: made[0].column(node) for node in nodes}
    scores = Scores(
        *({node: table[:, i] for node, i in columns.items()} for table in (made[0].logp, made[1].logp, made[0].tokens))
    )
    with torch.no_grad():
        losses, terms = objective(scores), objective.terms(scores)
        weights = objective.weight(scores) if objective.uses_weight else None
    for row, sample in enumerate(samples):
        yield {
            "id": sample.id,
            "loss": _number(losses[row]),
            "weight": None if weights is None else _number(weights[row]),
            "contrasts": [
                {
                    "context": c.context,
                    "winner": c.winner,
                    "loser": c.loser,
                    "base_loss": _number(term["base"][row]),
                    "sft_term": _number(term["sft"][row]),
                    "weight": float(c.weight),
                    "sft_weight": float(c.sft),
                    "on_policy_weight": c.on_policy_weight,
                }
                for c, term in zip(objective.contrasts, terms, strict=True)
            ],
            "logp": {
                f"{context}|{response}": {
                    "policy": _number(scores.policy[context, response][row]),
                    "reference": _number(scores.reference[context, response][row]),
                    "tokens": int(scores.tokens[context, response][row]),
                }
                for context, response in nodes
            },
        }


def _number(value: torch.Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
