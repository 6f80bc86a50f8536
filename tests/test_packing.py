"""Plans of micro-batches and forests of shared contexts: properties for any shapes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sso.packing import PADDING, Sample, cost, forest, grouped, plan, sees, trees

NODES = [("x", "y+"), ("x", "y-"), ("x+", "y+"), ("x+", "y-"), ("x-", "yo"), ("x-", "y+")]
ids = st.lists(st.integers(1, 9), min_size=1, max_size=7)
sample = st.builds(
    Sample,
    st.just("s"),
    st.fixed_dictionaries(dict.fromkeys(("x", "x+", "x-"), ids)),
    st.fixed_dictionaries(dict.fromkeys(("y+", "y-", "yo"), ids)),
)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 120), st.integers(1, 4))
def test_a_plan_holds_every_sample_once_within_the_budget_and_alike_for_all_devices(costs, budget, devices):
    made = plan(costs, budget, devices)
    assert len(made) == devices and len({len(steps) for steps in made}) == 1
    members = [bin_ for steps in made for bin_ in steps]
    assert sorted(i for bin_ in members for i in bin_) == list(range(len(costs)))
    assert all(sum(costs[i] for i in bin_) <= budget or len(bin_) == 1 for bin_ in members)
    assert all(members) or len(costs) < len(members)
    if sum(costs) <= budget:
        assert len(made[0]) == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 120))
def test_groups_keep_the_order_and_the_budget(costs, budget):
    groups = grouped(costs, budget, range(len(costs)))
    assert [i for group in groups for i in group] == list(range(len(costs)))
    assert all(sum(costs[i] for i in group) <= budget or len(group) == 1 for group in groups)


@given(st.lists(sample, min_size=1, max_size=4), st.booleans(), st.sampled_from([1, 16]))
def test_walking_a_forest_by_what_each_token_sees_gives_every_node_back(samples, one_row, multiple):
    batch = forest(samples, NODES, 0, one_row, multiple)
    flat = batch["input_ids"].flatten().tolist()
    rows, width = batch["input_ids"].shape
    assert width % multiple == 0 and (rows == 1 or not one_row)
    used = (batch["tree"] != PADDING).sum().item()
    assert (
        used == sum(cost(s, NODES, "forest") for s in samples) == sum(len(t) for s in samples for t in trees(s, NODES))
    )
    for s, one in enumerate(samples):
        for n, (context, response) in enumerate(NODES):
            scored = (batch["owner"] == batch["branch_of"][s, n]).nonzero()[:, 0].tolist()
            assert batch["target"][scored].tolist() == one.responses[response]
            assert batch["tokens"][s, n] == len(one.responses[response])
            whole = one.contexts[context] + one.responses[response]
            for i, at in enumerate(batch["source"][scored].tolist()):
                row, place = divmod(at, width)
                seen = sees(batch["tree"], batch["branch"], row, place, torch.arange(width)).nonzero()[:, 0].tolist()
                # The token that predicts response token i sees just the context and the i tokens before.
                assert [flat[row * width + k] for k in seen] == whole[: len(one.contexts[context]) + i]
                assert batch["position_ids"][row, seen].tolist() == list(range(len(seen)))


def test_equal_responses_share_a_branch():
    one = Sample("s", {"x+": [1, 2], "x-": [3]}, {"y+": [4, 5], "y-": [6], "yo": [4, 5]})
    nodes = [("x+", "y+"), ("x+", "y-"), ("x-", "yo"), ("x-", "y+")]
    good, bad = trees(one, nodes)
    assert (len(good), len(bad)) == (2 + 2 + 1, 1 + 2)
    assert bad.nodes == [[2, 3]]
    # A padded batch computes contexts and responses of all four nodes.
    assert cost(one, nodes, "padded") == (2 + 2) + (2 + 1) + (1 + 2) + (1 + 2)
