"""Plans of micro-batches and forests of shared contexts: properties for any shapes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sso.attention import _Collect, _Spread
from sso.packing import Sample, cost, forest, grouped, plan, trees

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
    assert len(made[0]) <= -(-len(costs) // devices)
    assert sum(not bin_ for bin_ in members) < devices
    if sum(costs) <= budget:
        assert len(made[0]) == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 120))
def test_groups_keep_the_order_and_the_budget(costs, budget):
    groups = grouped(costs, budget, range(len(costs)))
    assert [i for group in groups for i in group] == list(range(len(costs)))
    assert all(sum(costs[i] for i in group) <= budget or len(group) == 1 for group in groups)


@given(st.lists(sample, min_size=1, max_size=4))
def test_a_forest_lays_every_node_out_as_if_it_stood_alone(samples):
    batch = forest(samples, NODES)
    where, tokens = batch["layout"], batch["input_ids"][0]
    assert (
        len(tokens)
        == sum(cost(s, NODES, "forest") for s in samples)
        == sum(len(t) for s in samples for t in trees(s, NODES))
    )
    rows = [
        row
        for part, shape in zip(where.token.split([r * w for r, w in where.shapes]), where.shapes, strict=True)
        for row in part.view(shape)
    ]
    for s, one in enumerate(samples):
        for n, (context, response) in enumerate(NODES):
            scored = (batch["owner"] == batch["branch_of"][s, n]).nonzero()[:, 0]
            whole = one.contexts[context] + one.responses[response]
            assert batch["target"][scored].tolist() == one.responses[response]
            assert batch["tokens"][s, n] == len(one.responses[response])
            # In one row of attention, what predicts the first token stands at the context's end, the rest behind it.
            source = batch["source"][scored]
            split = len(one.contexts[context])
            found = [r[: len(whole)] for r in rows if r[split - 1 : split - 1 + len(source)].equal(source)]
            # A response of one token has no place of its own to tell it by: its context's rows all begin alike.
            assert len(found) == 1 or len(source) == 1
            assert whole in [tokens[row].tolist() for row in found]
            for row in found:
                assert batch["position_ids"][0, row[:split]].tolist() == list(range(split))
            if len(found) == 1:
                assert batch["position_ids"][0, found[0]].tolist() == list(range(len(whole)))


@given(st.lists(sample, min_size=1, max_size=4))
def test_a_layouts_slots_are_where_its_tokens_lie(samples):
    batch = forest(samples, NODES)
    where, tokens = batch["layout"], batch["input_ids"].shape[1]
    assert where.token[where.slot[0]].tolist() == list(range(tokens))
    assert where.first.sum() == tokens and where.first[where.slot[0]].all()
    # Every slot is held once by its token or is padding, and padding ends every row.
    held = where.slot[where.slot != len(where.token) - 1].tolist()
    assert len(held) == len(set(held))
    ends = torch.cat([torch.full((rows,), width) for rows, width in where.shapes]).cumsum(0) - 1
    assert not set(ends.tolist()) & set(held)
    for k in range(1, len(where.slot)):
        again = where.slot[k] != len(where.token) - 1
        assert where.token[where.slot[k][again]].equal(again.nonzero()[:, 0])


@given(st.lists(sample, min_size=1, max_size=3), st.integers(0, 99))
def test_spreading_and_collecting_have_the_gradients_of_indexing(samples, seed):
    where = forest(samples, NODES)["layout"]
    torch.manual_seed(seed)
    values = torch.randn(where.slot.shape[1], 3, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(len(where.token), 3, dtype=torch.float64)
    upstream[
        [i for i in range(len(where.token)) if i not in set(where.slot[where.slot != len(where.token) - 1].tolist())]
    ] = 0
    ours = torch.autograd.grad((_Spread.apply(values, where) * upstream).sum(), values)[0]
    plain = torch.autograd.grad((values[where.token] * upstream).sum(), values)[0]
    torch.testing.assert_close(ours, plain)
    slots = torch.randn(len(where.token), 3, dtype=torch.float64, requires_grad=True)
    ours = torch.autograd.grad((_Collect.apply(slots, where) * values.detach()).sum(), slots)[0]
    plain = torch.autograd.grad((slots[where.slot[0]] * values.detach()).sum(), slots)[0]
    torch.testing.assert_close(ours, plain)


def test_equal_responses_share_a_branch():
    one = Sample("s", {"x+": [1, 2], "x-": [3]}, {"y+": [4, 5], "y-": [6], "yo": [4, 5]})
    nodes = [("x+", "y+"), ("x+", "y-"), ("x-", "yo"), ("x-", "y+")]
    good, bad = trees(one, nodes)
    assert (len(good), len(bad)) == (2 + 2 + 1, 1 + 2)
    assert bad.nodes == [[2, 3]]
    # A padded batch computes contexts and responses of all four nodes.
    assert cost(one, nodes, "padded") == (2 + 2) + (2 + 1) + (1 + 2) + (1 + 2)
