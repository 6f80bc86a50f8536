"""Every objective against float64 sums written from the paper's formulas, not from the code."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sso.errors import InputError
from sso.objective import BASE_LOSSES, Scores, build, load_objectives
from sso.train.settings import Training

NODES = [(c, y) for c in ("x", "x+", "x-") for y in ("y+", "y-", "yo")]
numbers = st.floats(-60, -0.01)
scores = st.fixed_dictionaries({n: st.tuples(numbers, numbers, st.integers(1, 40)) for n in NODES})


def tensors(values: dict) -> Scores:
    def column(i: int) -> dict:
        return {n: torch.tensor([v[i]], dtype=torch.float64) for n, v in values.items()}

    return Scores(column(0), column(1), column(2))


def loss(name: str, values: dict, **settings) -> float:
    return float(build(Training(objective=name, **settings))(tensors(values)))


def softplus(z: float) -> float:
    """-log sigmoid(-z), without overflow."""
    return math.log1p(math.exp(-abs(z))) + max(z, 0.0)


def by_hand(values: dict, context: str, winner: str, loser: str, kind: str, beta: float, extra: float = 0.0) -> float:
    """L_base(context; winner > loser); ``extra`` is DPO's label smoothing or SimPO's margin."""
    (p, r, n), (q, s, m) = values[context, winner], values[context, loser]
    if kind == "ipo":
        return ((p - r) / n - (q - s) / m - 1 / (2 * beta)) ** 2
    if kind == "orpo":
        odds = [math.exp(a) / (1 - math.exp(a)) for a in (p / n, q / m)]
        return -p / n + beta * softplus(math.log(odds[1]) - math.log(odds[0]))
    if kind == "simpo":
        return softplus(extra - beta * (p / n - q / m))
    if kind == "sft":
        return -p / n
    h = (p - r) - (q - s)
    if kind == "hinge":
        return max(0.0, 1 - beta * h)
    return (1 - extra) * softplus(-beta * h) + extra * softplus(beta * h)


def sft(values: dict, context: str, response: str) -> float:
    policy, _, tokens = values[context, response]
    return -policy / tokens


EXTRA = {"dpo": "label_smoothing", "simpo": "simpo_margin"}
kinds = st.sampled_from(list(BASE_LOSSES))


@given(scores, kinds, st.floats(0.05, 2), st.floats(0, 0.4), st.floats(0, 2), st.floats(0, 1))
def test_v2_objectives_are_formulas_1_to_4_for_every_base_loss(values, kind, beta, extra, gamma, weight):
    settings = {"base_loss": kind, "beta": beta, "gamma": gamma, "lambda_minus": weight}
    settings |= {EXTRA[kind]: extra} if kind in EXTRA else {}
    plus = by_hand(values, "x+", "y+", "y-", kind, beta, extra) + gamma * sft(values, "x+", "y+")
    minus = weight * (by_hand(values, "x-", "yo", "y+", kind, beta, extra) + gamma * sft(values, "x-", "yo"))
    naive = weight * (by_hand(values, "x-", "y-", "y+", kind, beta, extra) + gamma * sft(values, "x-", "y-"))
    expected = {
        "l_plus": plus,
        "l_minus": minus,
        "l_minus_naive": naive,
        "sso_v2": plus + minus,
        "sso_v2_naive": plus + naive,
        "pairs": by_hand(values, "x", "y+", "y-", kind, beta, extra),
    }
    for name, value in expected.items():
        assert loss(name, values, **settings) == pytest.approx(value, rel=1e-9, abs=1e-12), name


@given(scores, st.sampled_from(["dpo", "ipo"]), st.floats(0.05, 2), st.floats(0, 1), st.floats(0, 1))
def test_v1_objectives_weigh_what_the_paper_says(values, kind, beta, alpha, beta_g):
    settings = {"base_loss": kind, "beta": beta, "alpha": alpha, "beta_g": beta_g}
    base = by_hand(values, "x", "y+", "y-", kind, beta)
    g = by_hand(values, "x+", "y+", "y-", kind, beta) + by_hand(values, "x-", "yo", "y+", kind, beta)
    g_naive = by_hand(values, "x+", "y+", "y-", kind, beta) + by_hand(values, "x-", "y-", "y+", kind, beta)
    mixed = alpha * -sft(values, "x", "y+") + (1 - alpha) * -sft(values, "x", "y-")
    w = 1 / (1 + math.exp(mixed))
    expected = {
        "sso_v1": w * (base + beta_g * g),
        "sso_v1_naive": w * (base + beta_g * g_naive),
        "sso_v1_released": base + w * beta_g * g,
        "sso_v1_without_w": base + beta_g * g,
        "sso_v1_without_g": w * base,
        "sso_v1_without_w_g": base,
    }
    for name, value in expected.items():
        assert loss(name, values, **settings) == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_objectives_ask_for_each_node_once_and_only_for_what_they_use():
    assert build(Training(objective="pairs")).nodes == (("x", "y+"), ("x", "y-"))
    assert set(build(Training(objective="sso_v2")).nodes) == {("x+", "y+"), ("x+", "y-"), ("x-", "yo"), ("x-", "y+")}
    assert len(build(Training(objective="sso_v1")).nodes) == 6
    for name in load_objectives():
        nodes = build(Training(objective=name)).nodes
        assert len(nodes) == len(set(nodes))


@pytest.mark.parametrize("detached", [False, True])
def test_weight_carries_a_gradient_unless_it_is_detached(detached):
    s = tensors(dict.fromkeys(NODES, (-5.0, -5.0, 4)))
    for tensor in s.policy.values():
        tensor.requires_grad_()
    objective = build(Training(objective="sso_v1_without_g", base_loss="ipo", detach_weight=detached))
    w, slope = 1 / (1 + math.exp(-5 / 4)), -1 / (2 * 0.1)
    objective(s).sum().backward()
    # d(w L)/dp = w dL/dp + L dw/dp, L = slope^2, dL/dp = 2 slope / 4, dw/dp = -w (1 - w) / 2 / 4
    expected = w * 2 * slope / 4 - (0 if detached else slope**2 * w * (1 - w) / 8)
    assert s.policy["x", "y+"].grad.item() == pytest.approx(expected, rel=1e-9)


def test_reference_free_losses_ignore_the_reference():
    values = dict.fromkeys(NODES, (-5.0, math.nan, 4))
    for kind, base in BASE_LOSSES.items():
        assert math.isnan(loss("sso_v2", values, base_loss=kind)) != base.reference_free


def test_unknown_objective_names_the_known_ones():
    with pytest.raises(InputError, match=r"unknown objective 'kto'; known: pairs"):
        build(Training().model_copy(update={"objective": "kto"}))
    with pytest.raises(ValidationError, match=r"unknown objective 'l_plu'; did you mean `l_plus`\?"):
        Training(objective="l_plu")


def test_a_base_loss_is_named_in_one_place():
    assert Training.model_json_schema()["properties"]["base_loss"]["enum"] == list(BASE_LOSSES)
    for name in BASE_LOSSES:
        assert build(Training(base_loss=name)).base is BASE_LOSSES[name]
    with pytest.raises(ValidationError):
        Training(base_loss="kto")


@given(scores, kinds)
def test_an_own_objective_is_computed_like_a_shipped_one(values, kind):
    rows = [contrast.model_dump() for contrast in load_objectives()["sso_v2"]]
    own = loss("mine", values, base_loss=kind, objectives={"mine": rows})
    assert own == loss("sso_v2", values, base_loss=kind)
