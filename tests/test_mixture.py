"""Mixtures of preference sets: sizes, weights, repeats, and what the benchmark holds."""

import json

import pytest

from rewardbench.cli import main
from rewardbench.data import TextPair
from rewardbench.mix import grams, mix
from rewardbench.settings import Mixture
from sso.errors import InputError
from sso.records import Message


def rows(prefix: str, count: int, **over) -> list[dict]:
    return [{"id": str(i), "prompt": f"{prefix} {i}", "chosen": "yes", "rejected": "no", **over} for i in range(count)]


@pytest.fixture
def file(tmp_path):
    def write(name: str, values: list[dict]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(value) + "\n" for value in values))
        return str(tmp_path / name)

    return write


def bench(*prompts: str) -> list[TextPair]:
    return [TextPair(f"b{i}", [Message(role="user", content=p)], "a", "b") for i, p in enumerate(prompts)]


def settings(*sources: dict, **rest) -> Mixture:
    return Mixture.model_validate({"sources": list(sources), **rest})


def test_sizes_and_numbered_ids(file):
    a, b = file("a.jsonl", rows("a", 50)), file("b.jsonl", rows("b", 30))
    mixed = mix(settings({"path": a, "limit": 20}, {"path": b}), [])
    ids = [pair.id for pair in mixed.pairs]
    assert len(ids) == len(set(ids)) == 50 and sum(i.startswith("0/") for i in ids) == 20
    assert [(entry["asked"], entry["taken"]) for entry in mixed.report] == [(20, 20), (None, 30)]
    again = mix(settings({"path": b}, {"path": a, "limit": 20}), [])
    # Which pairs are taken does not depend on the other sources or on the order.
    assert {p.prompt[0].content for p in again.pairs} == {p.prompt[0].content for p in mixed.pairs}


def test_weights_are_shares_and_the_scarcest_source_decides(file):
    a, b = file("a.jsonl", rows("a", 50)), file("b.jsonl", rows("b", 30))
    mixed = mix(settings({"path": a, "weight": 0.1}, {"path": b, "weight": 0.3}), [])
    # 30 of b allow 10 of a.
    assert [entry["taken"] for entry in mixed.report] == [10, 30]
    mixed = mix(settings({"path": a, "weight": 4}, {"path": b, "weight": 1}), [])
    # 50 of a allow 12.5 of b.
    assert [entry["taken"] for entry in mixed.report] == [50, 12]


def test_repeats_are_named(file):
    own = [*rows("a", 3), {**rows("a", 1)[0], "id": "again"}, {**rows("a", 1)[0], "id": "other", "rejected": "never"}]
    a, b = file("a.jsonl", own), file("b.jsonl", [*rows("a", 2), *rows("b", 2)])
    mixed = mix(settings({"path": a}, {"path": b}), [])
    # The same prompt with another pair of responses stays within its own set.
    assert [p.id for p in mixed.pairs] == ["0/0", "0/1", "0/2", "0/other", "1/0#2", "1/1#3"]
    assert mixed.report[0]["left_out"] == {"repeated": ["again"]}
    assert mixed.report[1]["left_out"] == {"prompt of an earlier source": ["0", "1"]}
    assert len(mix(settings({"path": a}, {"path": b}, dedupe=False), []).pairs) == 8


def test_bad_rows_are_in_the_report(file):
    a = file("a.jsonl", [*rows("a", 1), {"id": "bad", "prompt": "x", "chosen": "y"}])
    [entry] = mix(settings({"path": a}), []).report
    assert entry["left_out"] == {"missing side": ["bad"]} and (entry["rows"], entry["usable"]) == (2, 1)


def test_grams_by_hand():
    assert grams("To be, or NOT to be!", 4) == {
        ("to", "be", "or", "not"),
        ("be", "or", "not", "to"),
        ("or", "not", "to", "be"),
    }
    assert grams("Short one.", 4) == {("short", "one")} and grams(" ?!", 4) == set()


def test_what_the_benchmark_holds_is_left_out(file):
    held = "one two three four five six seven"
    prompts = {
        "inside": f"please say ONE, two; three four five and so on {held}",
        "near": "one two three four and then five six seven",
        "short": "hello there",
        "part of a short one": "hello there you",
        "second turn": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "y"},
            {"role": "user", "content": f"now {held}"},
        ],
        "only the assistant": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": held},
            {"role": "user", "content": "go on"},
        ],
    }
    a = file("a.jsonl", [{"id": n, "prompt": p, "chosen": "yes", "rejected": "no"} for n, p in prompts.items()])
    mixed = mix(settings({"path": a}, ngram=5), bench("first", held, "Hello there!"))
    assert mixed.report[0]["left_out"] == {"in the benchmark": ["inside (b1)", "short (b2)", "second turn (b1)"]}
    assert [p.id for p in mixed.pairs] == ["0/near", "0/part of a short one", "0/only the assistant"]
    assert len(mix(settings({"path": a}, ngram=0), bench(held)).pairs) == 6


def test_nothing_left_and_no_path_are_errors(file):
    a = file("a.jsonl", rows("a", 2))
    with pytest.raises(InputError, match=r"a\.jsonl: every pair repeats an earlier source's prompt"):
        mix(settings({"path": a}, {"path": a}), [])
    with pytest.raises(InputError, match="only the workflow knows the pairs of arm 'sso'"):
        mix(settings({"arm": "sso"}), [])


def test_command(file, tmp_path, capsys):
    a = file("a.jsonl", [*rows("a", 3), {"id": "x", "prompt": "q", "chosen": "s", "rejected": "s"}])
    held = file("bench.jsonl", [{"subset": "micro-chat", "prompt": "a 1", "chosen": "c", "rejected": "d"}])
    settings = json.dumps({"sources": [{"path": a, "limit": 9}]})
    assert main(["mix", "--settings", settings, "--bench", held, "--out", str(tmp_path / "pairs.jsonl")]) == 0
    said = capsys.readouterr()
    assert "left out 1 rows (equal sides): x" in said.err and "left out 1 rows (in the benchmark): 1 (0)" in said.err
    assert "9 pairs asked for, 2 there" in said.err and "mix: 2 pairs of 1 sources" in said.out
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 2
    summary = json.loads((tmp_path / "pairs.jsonl.run.json").read_text())["summary"]
    assert summary == {"equal_sides": 1.0, "in_the_benchmark": 1.0, "pairs": 2.0}
    assert json.loads((tmp_path / "pairs.report.json").read_text())[0]["taken"] == 2


def test_a_mixture_file_is_a_preference_file(file, tmp_path):
    """Margins survive: what is mixed is read back as it was."""
    from rewardbench.data import read_pairs, text_pair
    from sso import records

    a = file("a.jsonl", rows("a", 2, score_chosen=7, score_rejected=4.5))
    records.write(tmp_path / "pairs.jsonl", mix(settings({"path": a}), []).pairs)
    assert [text_pair(p).margin for p in read_pairs(tmp_path / "pairs.jsonl").pairs] == [2.5, 2.5]
