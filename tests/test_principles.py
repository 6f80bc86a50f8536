"""Parsing, fallback and prompts of an LLM writer, with scripted replies; the procedural writer."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sso.principles import (
    BAD_HEADING,
    FALLBACK,
    FEATURES,
    GOOD_HEADING,
    NAMED,
    WRAPPERS,
    Reply,
    drawn_features,
    few_shot,
    from_features,
    named_features,
    parse_guideline,
    write_v1,
    write_v2,
)
from sso.records import Query
from sso.worlds.micro.data import user
from sso.worlds.micro.principles import write
from sso.worlds.settings import MicroWorld

QUERIES = [Query(id="a", prompt="How do I boil an egg?"), Query(id="b", prompt="Name a prime.")]


def scripted(*rounds):
    """A language model that says what it is told; keeps what it was asked."""
    asked, replies = [], list(rounds)

    def ask(conversations, names):
        asked.append((conversations, names))
        return [Reply(text) for text in replies.pop(0)]

    return ask, asked


def guideline(text, heading, finished=True):
    return parse_guideline(Reply(text, finished), heading)


def features(text, random, finished=True):
    return drawn_features(named_features(Reply(text, finished)), random)


def test_v2_asks_for_the_bad_guideline_then_for_the_good_one_given_it():
    ask, asked = scripted(
        [f"{BAD_HEADING}\nForget the time.", "**Bad guideline:** Name an even number."],
        ["Give the time.", f"{GOOD_HEADING}\nName one and say why.\n\n### Query\nanother"],
    )
    first, second = write_v2(QUERIES, ask, "scripted")
    assert (first.bad, first.good) == ("Forget the time.", "Give the time.")
    assert (second.bad, second.good) == ("Name an even number.", "Name one and say why.")
    assert not first.fallback and first.writer == "scripted"
    assert "Forget the time." in asked[1][0][0][0].content and "boil an egg" in asked[1][0][0][0].content
    assert asked[0][1] == ["a/bad", "b/bad"] and asked[1][1] == ["a/good", "b/good"]


COPIED = few_shot("?")[0].content.split(f"{GOOD_HEADING}\n")[1].splitlines()[0]


@pytest.mark.parametrize(
    "bad", ["", "   ", "x" * 2000, f"Write the text below the heading `{BAD_HEADING}` now.", COPIED]
)
def test_a_reply_that_cannot_be_parsed_falls_back_on_helpfulness(bad):
    ask, _ = scripted([bad, "Be wrong."], ["Be right.", "Be wrong."])
    first, second = write_v2(QUERIES, ask, "scripted")
    assert first.fallback and first.good == FALLBACK.good and first.bad == FALLBACK.bad
    assert second.fallback  # good and bad are the same


def test_a_writers_reasoning_is_no_guideline():
    said = f"<think>{BAD_HEADING}\nSay less?</think>{BAD_HEADING}\nForget the time."
    assert guideline(said, BAD_HEADING) == "Forget the time."
    assert guideline("Say less?</think>Forget it.", BAD_HEADING) == "Forget it."
    assert guideline("<think>It should give the time.", GOOD_HEADING) is None
    thought = "<think>Accuracy, Safety, Logicality</think>Literariness, Engagement"
    assert set(features(thought, Random(0))) - {"Concision"} == {"Literariness", "Engagement"}
    ask, _ = scripted(["<think>Safety", "Safety, Accuracy"])
    assert [p.fallback for p in write_v1(QUERIES, ask, 0, "scripted")] == [True, False]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (f"Sure! Here is a bad guideline for this query:\n\n{BAD_HEADING}\nGive wrong totals.", "Give wrong totals."),
        ("Bad guideline\nGive wrong totals.", "Give wrong totals."),
        ("**Bad guideline**: Give wrong totals.", "Give wrong totals."),
        ("## Bad guideline - Give wrong totals.", "Give wrong totals."),
        ("I'm sorry, but I can't write a bad guideline for that.", None),
        ("I cannot provide a bad guideline, as that would be unhelpful to the user.", None),
        ("Bad guideline requests are not something I can help with.", None),
    ],
)
def test_a_heading_stands_at_the_start_of_a_line_and_talk_about_it_is_no_guideline(said, expected):
    assert guideline(said, BAD_HEADING) == expected


def test_a_reply_that_was_cut_counts_where_its_guideline_was_whole():
    assert guideline("Okay, the user wants me to write guidelines. Let me look at", BAD_HEADING, finished=False) is None
    assert guideline(f"{BAD_HEADING}\nGive wrong", BAD_HEADING, finished=False) is None
    cut = f"{BAD_HEADING}\nGive wrong totals.\n{GOOD_HEADING}\nGive ri"
    assert guideline(cut, BAD_HEADING, finished=False) == "Give wrong totals."
    assert named_features(Reply("Accuracy, Safety\nThese mat", False)) == ["Accuracy", "Safety"]
    assert named_features(Reply("Accuracy, Safety, becau", False)) == []


@pytest.mark.parametrize(
    "said",
    [
        "1. Accuracy\n2. Helpfulness",
        "Accuracy and Helpfulness",
        "- **accuracy**\n- HELPFULNESS",
        "I'd say: Accuracy/Helpfulness!",
    ],
)
def test_features_are_found_however_they_are_listed(said):
    assert named_features(Reply(said)) == ["Accuracy", "Helpfulness"]


def test_features_that_nobody_named_are_marked():
    rows = write_v1(QUERIES, scripted(["I can't say.", "Inaccuracy, Accuracy"])[0], 0, "scripted")
    assert [row.fallback for row in rows] == [True, False] and len(rows[0].features) >= 2
    assert "Accuracy" in rows[1].features


def test_the_few_shot_prompt_has_three_worked_queries():
    text = few_shot("QUERY")[0].content
    assert text.count("### Query") == 4 and text.count(GOOD_HEADING) == 3
    assert text.rindex("QUERY") > text.rindex(GOOD_HEADING)


@given(st.text(max_size=400))
def test_parsers_never_crash(reply):
    said = guideline(reply, GOOD_HEADING)
    assert said is None or 0 < len(said) <= 1200
    found = features(reply, Random(0))
    assert len(set(found)) == len(found) and 2 <= len(found) <= 3 and set(found) <= set(FEATURES)


def test_v1_features_are_parsed_topped_up_and_joined_by_concision_one_time_in_five():
    assert set(features("Safety, accuracy.", Random(1))[:2]) == {"Safety", "Accuracy"}
    assert features("safety, nonsense", Random(1))[0] == "Safety"
    assert len(NAMED) == 7 and "Concision" not in NAMED
    share = sum("Concision" in features("", Random(i)) for i in range(2000)) / 2000
    assert 0.17 < share < 0.23
    ask, _ = scripted(["Safety, Accuracy", "?"])
    rows = write_v1(QUERIES, ask, 0, "scripted")
    assert FEATURES["Safety"].good in rows[0].good and FEATURES["Accuracy"].bad in rows[0].bad
    assert rows == write_v1(QUERIES, scripted(["Safety, Accuracy", "?"])[0], 0, "scripted")


def test_the_features_that_are_taken_are_not_always_those_named_first():
    named = [f"{n}" for n in NAMED[:4]]
    taken = [tuple(features(", ".join(named), Random(f"0/{i}"))[:2]) for i in range(400)]
    assert len(set(taken)) == 12 and all(set(pair) <= set(named) for pair in taken)
    assert taken == [tuple(features(", ".join(named), Random(f"0/{i}"))[:2]) for i in range(400)]
    first = [write_v1(QUERIES, scripted([", ".join(NAMED)] * 2)[0], seed, "m")[0].features[:2] for seed in range(9)]
    assert len(set(map(tuple, first))) > 3  # by the seed as well as by the query


def test_v1_asks_for_what_the_adjectives_say_and_v2_for_one_guideline():
    made = from_features(QUERIES[0], ["Safety", "Concision"], "m")
    good, bad = (WRAPPERS["paper_v1"][side].format(principle=getattr(made, side)) for side in ("good", "bad"))
    for text, at in ((good, 0), (bad, 1)):
        lines = text.splitlines()
        assert lines[0] == "Your response should be" and len(lines) == 4
        for line, name in zip(lines[1:3], ["Safety", "Concision"], strict=True):
            own = FEATURES[name]
            assert line == f"- {own.adjectives[at].lower()}: {(own.good, own.bad)[at]}"
        assert "relatively" in WRAPPERS["paper"][("good", "bad")[at]] and "relatively" not in text


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_procedural_writer_says_so_and_repeats_itself(version):
    queries = [Query(id=str(i), prompt=user(f"Solve x plus {i} is 9.")) for i in range(1, 9)]
    rows = write(MicroWorld(), queries, version, 0)
    assert rows == write(MicroWorld(), queries, version, 0)
    assert all(r.writer == "procedural" and r.good.startswith("Be ") and r.good != r.bad for r in rows)
    assert {len(r.features) for r in rows} <= ({3} if version == "v2" else {2, 3})
