"""Plans of micro-batches and forests of shared contexts: properties for any shapes."""

from itertools import pairwise, product

import torch
from hypothesis import given
from hypothesis import strategies as st

from sso.packing import Sample, cost, forest, grouped, paths, plan

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


def rows_of(layout, values):
    """``values`` of an attention's rows, row by row."""
    groups = values.split([rows * width for rows, width in layout.shapes])
    return [row for group, shape in zip(groups, layout.shapes, strict=True) for row in group.view(shape)]


@given(st.lists(ids, min_size=1, max_size=6))
def test_sequences_share_what_begins_alike_and_nothing_else(sequences):
    found = paths(sequences)
    row = {}
    for sequence, path in found.items():
        assert len(path.at) == len(sequence)
        for place, token in zip(path.at, sequence, strict=True):
            assert row.setdefault(place, token) == token
    # As many places as there are distinct beginnings, and each beginning in one place.
    beginnings = {tuple(s[: n + 1]) for s in sequences for n in range(len(s))}
    assert sorted(row) == list(range(len(beginnings))) and sum(path.own for path in found.values()) == len(row)
    where = {}
    for sequence, path in found.items():
        for n, place in enumerate(path.at):
            assert where.setdefault(sequence[: n + 1], place) == place


@given(st.lists(sample, min_size=1, max_size=4))
def test_a_forest_lays_every_node_out_as_if_it_stood_alone(samples):
    batch = forest(samples, NODES)
    where, tokens = batch["layout"], batch["input_ids"][0]
    assert len(tokens) <= sum(cost(s, NODES, "forest") for s in samples)
    for s, one in product(range(len(samples)), range(len(NODES))):
        context, response = samples[s].node(NODES[one])
        whole, split = context + response, len(context)
        scored = batch["scored"][batch["owner"] == s * len(NODES) + one]
        assert batch["target"][scored].tolist() == response
        assert batch["tokens"][s, one] == len(response)
        source = batch["source"][scored]
        # In one row of attention, what predicts the first token stands at the context's end, the rest behind it.
        found = [r[: len(whole)] for r in rows_of(where, where.token) if r[split - 1 : len(whole) - 1].equal(source)]
        assert whole in [tokens[row].tolist() for row in found]
        row = next(row for row in found if tokens[row].tolist() == whole)
        assert batch["position_ids"][0, row].tolist() == list(range(len(whole)))


@given(st.lists(sample, min_size=1, max_size=4))
def test_every_token_has_its_output_from_a_row_that_holds_all_before_it(samples):
    batch = forest(samples, NODES)
    where, positions = batch["layout"], batch["position_ids"][0]
    rows = rows_of(where, where.token)
    place = rows_of(where, torch.arange(len(where.token)))
    assert where.token[where.home].tolist() == list(range(len(positions)))
    for row, slots in zip(rows, place, strict=True):
        for at, slot in enumerate(slots.tolist()):
            if where.home[row[at]] == slot:
                assert positions[row[: at + 1]].tolist() == list(range(at + 1))


@given(st.lists(sample, min_size=1, max_size=4))
def test_paths_behind_one_another_end_with_their_own_tokens(samples):
    batch = forest(samples, NODES)
    where = batch["layout"]
    own, keys = where.own_ends.tolist(), where.key_ends.tolist()
    assert (own[-1], keys[-1]) == (batch["input_ids"].shape[1], len(where.keys))
    for i in range(1, len(own)):
        path = where.keys[keys[i - 1] : keys[i]].tolist()
        assert path[-(own[i] - own[i - 1]) :] == list(range(own[i - 1], own[i]))
        assert batch["position_ids"][0, path].tolist() == list(range(len(path)))
    assert where.longest == tuple(max(b - a for a, b in pairwise(e)) for e in (own, keys))


def test_equal_responses_and_what_contexts_share_stand_once():
    one = Sample("s", {"x+": [1, 2], "x-": [1, 3]}, {"y+": [4, 5], "y-": [6], "yo": [4, 5]})
    nodes = [("x+", "y+"), ("x+", "y-"), ("x-", "yo"), ("x-", "y+")]
    assert cost(one, nodes, "forest") == len([1, 2, 4, 5, 6, 3, 4, 5])
    # A padded batch computes contexts and responses of all four nodes.
    assert cost(one, nodes, "padded") == (2 + 2) + (2 + 1) + (2 + 2) + (2 + 2)
    other = Sample("t", {"x+": [1, 2], "x-": [1, 9]}, one.responses)
    assert forest([one, other], nodes)["input_ids"].shape == (1, 8 + 3)
