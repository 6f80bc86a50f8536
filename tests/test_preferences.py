"""Preference sets: every layout gives the same pair, and a row that makes none is named and counted."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from eval import data_quality
from report import trail
from sso.cli import main
from sso.errors import InputError
from sso.jobs.tracking import record_path
from sso.preferences import load, parse, sample
from sso.records import Pair, write
from sso.records import read as read_records
from sso.settings import Preferences

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "yes"), ("assistant", "no")))


def sharegpt(message: dict) -> dict:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return {"from": names[message["role"]], "value": message["content"]}


LAYOUTS = {
    "conversational": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "texts": {"prompt": "hi", "chosen": "yes", "rejected": "no"},
    "ultrafeedback": {"prompt": "hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "skywork": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "anthropic": {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
    "sharegpt": {"conversations": [sharegpt(USER)], "chosen": sharegpt(GOOD), "rejected": sharegpt(BAD)},
    "sharegpt, whole": {"chosen": [sharegpt(USER), sharegpt(GOOD)], "rejected": [sharegpt(USER), sharegpt(BAD)]},
    "alpaca": {"instruction": "hi", "input": "", "chosen": "yes", "rejected": "no"},
}


@pytest.mark.parametrize("row", LAYOUTS.values(), ids=LAYOUTS)
def test_each_layout_gives_the_same_pair(row):
    [pair] = parse([row], "set").pairs
    values = pair.model_dump()
    assert values["prompt"] == [USER] and values["chosen"] == [GOOD] and values["rejected"] == [BAD]
    assert (pair.id, pair.source, pair.margin) == ("0", "set", None)


def test_turns_that_both_sides_share_belong_to_the_prompt():
    turns = [USER, GOOD, {"role": "user", "content": "and?"}]
    beside = {"prompt": turns[:1], "chosen": [*turns[1:], GOOD], "rejected": [*turns[1:], BAD]}
    for row in (beside, {"chosen": [*turns, GOOD], "rejected": [*turns, BAD]}):
        [pair] = parse([row], "set").pairs
        assert [m.model_dump() for m in pair.prompt] == turns and len(pair.chosen) == 1


def test_margin_comes_from_scores_or_its_own_column():
    texts = LAYOUTS["texts"]
    made = parse([{**texts, "score_chosen": 8.5, "score_rejected": 6}, {**texts, "margin": 3}, texts], "set").pairs
    assert [pair.margin for pair in made] == [2.5, 3.0, None]


def test_bad_rows_are_named_and_counted():
    good, system = LAYOUTS["texts"], {"role": "tool", "content": "x"}
    rows = {
        "kept": good,
        "none": {**good, "chosen": None},
        "absent": {"prompt": "hi", "chosen": "yes"},
        "blank": {**good, "rejected": " \n"},
        "same": {**good, "rejected": "yes "},
        "promptless": {"chosen": "yes", "rejected": "no"},
        "number": {**good, "chosen": 7},
        "tool": {**good, "chosen": [system, GOOD]},
        "user last": {**good, "chosen": [GOOD, USER]},
        "forked": {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD, USER, GOOD]},
    }
    found = parse([{"id": name, **row} for name, row in rows.items()], "set")
    assert [pair.id for pair in found.pairs] == ["kept"]
    assert found.left_out == {
        "missing side": ["none", "absent"],
        "empty side": ["blank"],
        "equal sides": ["same"],
        "no prompt": ["promptless"],
        "not a dialogue": ["number", "user last"],
        "tools, media or reasoning": ["tool"],
        "differ before the last turn": ["forked"],
    }
    assert found.counts["not_a_dialogue"] == 2 and found.counts["tools_media_or_reasoning"] == 1
    assert found.numbers == {name: i for i, name in enumerate(rows, 1) if name != "kept"}
    assert sum(found.counts.values()) == len(rows)


def test_no_usable_pair_is_an_error():
    with pytest.raises(InputError, match=r"set: no usable pair \(1 missing side: 0 .row 1.\)"):
        parse([{"prompt": "x"}], "set")
    with pytest.raises(InputError, match="no row"):
        parse([], "set")


def test_ids_that_repeat_are_told_apart():
    made = parse([{"id": "a", **LAYOUTS["texts"]}, {"id": "a", **LAYOUTS["texts"]}], "set").pairs
    assert [pair.id for pair in made] == ["a", "a#1"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.fixed_dictionaries({"role": inner, "content": inner})
        | st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "x"]), "value": inner})
    ),
    max_leaves=8,
)
KEYS = ("id", "prompt", "chosen", "rejected", "conversations", "instruction", "input", "margin", "score_chosen")


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), anything), max_size=4))
def test_every_row_is_a_pair_or_counted(rows):
    found = parse([*rows, LAYOUTS["texts"]], "set")
    assert sum(found.counts.values()) == len(rows) + 1 and len({p.id for p in found.pairs}) == len(found.pairs)


def test_a_subset_depends_on_seed_and_ids_alone():
    pairs = parse([{"id": str(i), **LAYOUTS["texts"]} for i in range(200)], "set").pairs
    ids = [p.id for p in sample(pairs, 50, 1)]
    assert len(ids) == 50 and ids == sorted(ids, key=int)
    assert sorted(ids) == sorted(p.id for p in sample(pairs[::-1], 50, 1))
    assert set(ids) < {p.id for p in sample(pairs, 80, 1)}
    assert set(ids) != {p.id for p in sample(pairs, 50, 2)}
    assert sample(pairs, 300, 0) == pairs


def test_files_of_every_kind(tmp_path, capsys):
    import pandas as pd

    rows = [LAYOUTS["ultrafeedback"], {**LAYOUTS["ultrafeedback"], "rejected": [USER, GOOD]}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.json").write_text(lines)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pd.DataFrame(rows).to_parquet(tmp_path / "e.parquet")
    for path in sorted(tmp_path.iterdir()):
        pairs, counts = load(Preferences(path=str(path), limit=5))
        assert [p.chosen[0].content for p in pairs] == ["yes"] and counts == {"pairs": 1, "equal_sides": 1}
        assert f"{path}: left out 1 rows (equal sides): 1 (row 2)" in capsys.readouterr().err


def test_a_folder_or_a_name_is_a_data_set(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train.jsonl").write_text(json.dumps(LAYOUTS["skywork"]) + "\n")
    assert load(Preferences(path=str(tmp_path / "set")))[1] == {"pairs": 1}
    with pytest.raises(InputError, match="neither here nor to be had from the hub"):
        load(Preferences(path=str(tmp_path / "set"), split="train_prefs"))
    with pytest.raises(InputError, match="nobody/nothing: neither here nor to be had from the hub"):
        load(Preferences(path="nobody/nothing"))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b"{]\n", "a.jsonl:1: not valid JSON"),
        ("a.json", b"[1]", "every element must be an object"),
        ("a.json", b"[{", "not valid JSON"),
        ("a.parquet", b"PAR1nope", "not a readable Parquet file"),
        ("a.jsonl.gz", b"plain", "broken gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "x"}\n' * 99, mtime=0)[:-12], "broken gzip file"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(Preferences(path=str(tmp_path / name)))
    with pytest.raises(InputError, match="no such file"):
        load(Preferences(path=str(tmp_path / f"x{name}")))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "file, counts",
    [
        ("hh_rlhf/harmless-base-test.jsonl.gz", {"pairs": 2303, "empty_side": 4, "differ_before_the_last_turn": 5}),
        ("demo/preferences_300.json", {"pairs": 300}),
        ("demo/ultrafeedback_binarized_8.jsonl", {"pairs": 8}),
        ("demo/rewardbench_8.jsonl", {"pairs": 8}),
    ],
)
def test_real_sets(shared_data, file, counts):
    pairs, found = load(Preferences(path=str(shared_data / file)))
    assert found == counts
    assert all(p.prompt[-1].role == "user" and len(p.chosen) == len(p.rejected) == 1 for p in pairs)


def test_what_makes_no_pair_is_counted_named_and_known_to_the_data_quality(tmp_path, capsys):
    """A file of pairs can't hold what was left out of it: its record tells, and the page's health box asks that."""
    sides = [("good", "bad", "plain"), ("same", "same ", "plain"), ("alike", "alike", "alike"), ("", "bad", "plain")]
    about = {"prompt": "q", "system_good": "g", "system_bad": "b"}
    drawn = [dict(zip(("chosen", "rejected", "original"), texts, strict=True)) for texts in sides]
    write(tmp_path / "t.jsonl", [{"id": f"q{i}", **about, **row} for i, row in enumerate(drawn)])
    out = tmp_path / "pairs.jsonl"
    assert main(["pairs", "--triples", f"{tmp_path}/t.jsonl", "--kind", "good_bad", "--out", str(out)]) == 0
    assert [pair.id for pair in read_records(out, Pair)] == ["q0"]
    said = capsys.readouterr().err
    assert "t.jsonl: left out 2 rows (equal sides): q1 (row 2), q2 (row 3)" in said and "q3 (row 4)" in said
    summary = json.loads(record_path(out).read_text())["summary"]
    assert summary == {"pairs": 1, "left_out_pairs": 3, "equal_sides": 2, "empty_side": 1}
    health = {row["name"]: row for row in trail.health([{"path": "p.run.json", "rule": "pairs", "summary": summary}])}
    assert (health["pairs left out"]["count"], health["pairs left out"]["worst"]) == (3, "../p.run.json")
    scores = {"logp": np.full((1, 2), -4, np.float32), "tokens": np.full((1, 2), 2, np.int32)}
    metadata = {"ids": '["q0"]', "nodes": '[["x", "y+"], ["x", "y-"]]', "key": "{}"}
    save_file(scores, tmp_path / "r.safetensors", metadata)
    quality, _ = data_quality.measure(None, out, tmp_path / "r.safetensors")
    assert (quality["equal_pairs"], quality["left_out_pairs"]) == (2, 3)
    record_path(out).unlink()  # pairs of somebody else have none
    quality, _ = data_quality.measure(None, out, tmp_path / "r.safetensors")
    assert (quality["equal_pairs"], quality["left_out_pairs"]) == (0, 0)


def test_what_belongs_to_no_part_of_a_preference_set_is_counted_once(tmp_path):
    rows = [{"prompt": "q", "chosen": "a", "rejected": side} for side in ("b", "a", "c")]
    write(tmp_path / "set.jsonl", rows)
    found = []
    for part in ("1/2", "2/2"):
        out = tmp_path / f"{part[0]}.jsonl"
        assert main(["preferences", "--set", f"path={tmp_path}/set.jsonl", "--part", part, "--out", str(out)]) == 0
        found.append(json.loads(record_path(out).read_text())["summary"])
    assert found == [{"pairs": 1, "left_out_pairs": 1, "equal_sides": 1}, {"pairs": 1}]
