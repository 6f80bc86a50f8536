"""Judges, the open-ended benchmarks and data quality, on hand-made cases."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from eval import data_quality
from eval.benchmarks import alpaca_eval, mt_bench
from eval.cli import main
from eval.judge import AnswerPair, Grading, OracleJudge, make_judge
from eval.settings import Judge as JudgeSettings
from sso.errors import InputError
from sso.records import Answer, Message, write
from sso.worlds.settings import MicroWorld


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


@dataclass
class Said:
    total: float


class ByNumber:
    """An oracle for which an answer is worth the number that it is."""

    def score(self, prompt: list[Message], response: str) -> Said:
        return Said(float(response))


@pytest.fixture
def judge() -> OracleJudge:
    return OracleJudge(oracle=ByNumber())


def answers(texts: list[str], model: str = "m") -> list[Answer]:
    return [Answer(id=str(i), prompt=user(f"q{i}"), output=text, model=model) for i, text in enumerate(texts)]


def test_the_oracle_prefers_by_exact_score(judge):
    items = [AnswerPair(user("q"), a, b) for a, b in ((".7", ".2"), (".2", ".7"), (str(0.1 + 0.2), ".3"))]
    assert [p.mean for p in judge.pairwise(items)] == [1, 0, 0.5]
    assert judge.five_way(items) == [("A>B", "B>A"), ("B>A", "A>B"), ("A=B", "A=B")]
    assert judge.grade([Grading([*user("q"), Message(role="assistant", content=".5")])]) == [5.5]


def test_the_micro_worlds_oracle_fits_the_judge():
    from sso.worlds.micro.world import Writer

    world = MicroWorld(entities=20)
    writer = Writer(world)
    from random import Random

    prompt = user(writer.prompt(Random(0)))
    good = writer.plan(writer.oracle.read(prompt), Random(0)).text()
    judge = make_judge(JudgeSettings(), world, Path("unused"))
    assert judge.pairwise([AnswerPair(prompt, good, "I cannot help.")]) == [(1, 1)]
    assert 1 <= judge.grade([Grading([*prompt, Message(role="assistant", content=good)])])[0] <= 10


def test_oracle_needs_a_world():
    with pytest.raises(InputError, match="--world"):
        make_judge(JudgeSettings(), None, Path("unused"))


def test_win_rate_and_rows(judge):
    rows = alpaca_eval.pairwise(judge, answers([".9", ".1", ".5", ".50"]), answers([".5"] * 4, "world"))
    assert [row["preference"] for row in rows] == [1, 0, 0.5, 0.5]
    assert rows[3] | {"id": ""} == {
        "id": "", "preference": 0.5, "score": 0.5, "reference_score": 0.5, "length": 3, "reference_length": 2
    }  # fmt: skip
    rate = alpaca_eval.win_rate(rows)
    assert rate["value"] == 50 and rate["n"] == 4
    assert rate["stderr"] == pytest.approx(100 * np.std([1, 0, 0.5, 0.5], ddof=1) / 2)


def test_answers_must_fit_the_references(judge):
    with pytest.raises(InputError, match="no answer to '1'"):
        alpaca_eval.pairwise(judge, answers([".1"]), answers([".5", ".5"]))
    other = [answers([".1"])[0].model_copy(update={"prompt": user("another")})]
    with pytest.raises(InputError, match="another prompt"):
        alpaca_eval.pairwise(judge, other, answers([".5"]))


def rows_of(preferences, lengths, reference_lengths) -> list[dict]:
    return [
        {"id": str(i), "preference": p, "length": a, "reference_length": b}
        for i, (p, a, b) in enumerate(zip(preferences, lengths, reference_lengths, strict=True))
    ]


def test_mt_bench_averages_turns_and_treats_a_dialogue_as_the_unit(judge):
    said = [("a", 1, "0"), ("a", 2, "1"), ("b", 1, "1"), ("b", 2, "1")]
    turns = [Answer(id=f"{d}/{t}", prompt=user("q"), output=o, model="m", turn=t) for d, t, o in said]
    rows = mt_bench.grade(judge, turns, {"a": "x", "b": "y"})
    assert [row["score"] for row in rows] == [1, 10, 10, 10] and rows[0]["family"] == "x"
    out = mt_bench.average(rows)
    assert out["categories"] == {"x": 5.5, "y": 10}
    assert (out["value"], out["n"], out["turn_1"], out["turn_2"]) == (7.75, 2, 5.5, 10)
    assert out["stderr"] == pytest.approx(2.25)


def test_mt_bench_reads_both_files(tmp_path):
    path = tmp_path / "q.jsonl"
    rows = [{"id": "d1", "family": "f", "turns": ["a", "b"]}, {"question_id": 81, "category": "c", "turns": ["a"]}]
    write(path, rows)
    assert [(d.id, d.family) for d in mt_bench.read(path)] == [("d1", "f"), ("81", "c")]
    path.write_text('{"id": "d1", "turns": "a"}\n')
    with pytest.raises(InputError, match=r"q.jsonl:1: `turns`"):
        mt_bench.read(path)


def reference_file(path: Path, ids: list[str], logp: list[list[float]], tokens: list[list[int]]) -> None:
    from safetensors.numpy import save_file

    nodes = [["x", "y+"], ["x+", "y+"], ["x", "y-"]]
    metadata = {"ids": json.dumps(ids), "nodes": json.dumps(nodes), "key": "{}"}
    save_file({"logp": np.float32(logp), "tokens": np.int32(tokens)}, path, metadata)


def test_data_quality_by_hand(judge, tmp_path):
    pairs = [("a", ".9", ".1"), ("b", ".2", ".8"), ("c", ".4", ".40"), ("d", ".4", ".4"), ("e", "", ".4")]
    write(tmp_path / "pairs.jsonl", [{"id": i, "prompt": "q", "chosen": c, "rejected": r} for i, c, r in pairs])
    # The file's rows are in another order and hold a sample more.
    logp = [[-4.0, -9, -1.0], [-2.0, -9, -6.0], [0.0, -9, 0.0], [-1.0, -9, -3.0]]
    tokens = [[2, 2, 1], [2, 2, 3], [1, 1, 1], [4, 4, 3]]
    reference_file(tmp_path / "r.safetensors", ["c", "a", "z", "b"], logp, tokens)
    quality, rows = data_quality.measure(judge, tmp_path / "pairs.jsonl", tmp_path / "r.safetensors")
    assert [(row["id"], row["hit"], row["agree"]) for row in rows] == [("a", 1, True), ("b", 0, True), ("c", 0.5, True)]
    assert quality["accuracy"]["value"] == 0.5 and quality["accuracy"]["ties"] == 1
    # As training does, the measures leave out a pair of equal responses.
    assert (quality["equal_pairs"], quality["left_out_pairs"]) == (1, 2)
    averages = {"y+": [-1.0, -0.25, -2.0], "y-": [-2.0, -1.0, -1.0]}
    assert quality["nll_chosen"]["value"] == pytest.approx(-np.mean(averages["y+"]))
    assert quality["nll_rejected"]["value"] == pytest.approx(-np.mean(averages["y-"]))
    assert quality["mean_probability"]["value"] == pytest.approx(np.exp([*averages["y+"], *averages["y-"]]).mean())
    assert quality["length_chosen"]["value"] == 2
    assert quality["unscored_pairs"] == 0
    # Without a judge all is the same but what the judge says.
    alone, rows = data_quality.measure(None, tmp_path / "pairs.jsonl", tmp_path / "r.safetensors")
    assert rows == [] and alone == {k: v for k, v in quality.items() if k != "accuracy"} | {"judge": None}
    # What was too long to be scored is counted, and judged all the same.
    reference_file(tmp_path / "r.safetensors", ["a", "b"], logp[:2], tokens[:2])
    fewer, rows = data_quality.measure(judge, tmp_path / "pairs.jsonl", tmp_path / "r.safetensors")
    assert fewer["unscored_pairs"] == 1 and fewer["nll_chosen"]["n"] == 2 and len(rows) == 3
    reference_file(tmp_path / "r.safetensors", ["x", "y"], logp[:2], tokens[:2])
    with pytest.raises(InputError, match="no score of pair 'a' or any other"):
        data_quality.measure(judge, tmp_path / "pairs.jsonl", tmp_path / "r.safetensors")


def test_the_command_measures_pairs_without_asking_a_judge(tmp_path):
    """An endpoint that is not there is not asked; the record counts what the file does."""
    write(tmp_path / "pairs.jsonl", [{"id": i, "prompt": "q", "chosen": "ab", "rejected": "c"} for i in "ab"])
    reference_file(tmp_path / "r.safetensors", ["a", "b"], [[-1.0, 0, -2.0]] * 2, [[1, 1, 1]] * 2)
    given = ["--pairs", f"{tmp_path}/pairs.jsonl", "--reference", f"{tmp_path}/r.safetensors"]
    nobody = json.dumps({"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"})
    out = tmp_path / "quality.json"
    assert main(["data-quality", *given, "--settings", nobody, "--unjudged", "--out", str(out)]) == 0
    quality = json.loads(out.read_text())
    assert (quality["nll_chosen"]["value"], quality["length_chosen"]["value"]) == (1, 2)
    assert quality["judge"] is None and "accuracy" not in quality
    assert not (tmp_path / "quality_pairs.jsonl").exists()
    summary = json.loads((tmp_path / "quality.json.run.json").read_text())["summary"]
    assert summary["nll_rejected"] == 2 and summary["equal_pairs"] == 0 and "accuracy" not in summary


def test_arms_are_judged_on_the_same_queries_whatever_else_they_lack(judge, tmp_path):
    """A sample by position would have little in common from the first pair on that one arm lacks."""
    judged = []
    for arm, gone in (("a", 7), ("b", 11)):
        ids = [f"q{i}" for i in range(600) if i % gone]
        path = tmp_path / f"{arm}.jsonl"
        write(path, [{"id": i, "prompt": "q", "chosen": ".9", "rejected": ".1"} for i in ids])
        reference_file(tmp_path / "r.safetensors", ids, [[-1.0, 0, -1.0]] * len(ids), [[1, 1, 1]] * len(ids))
        quality, rows = data_quality.measure(judge, path, tmp_path / "r.safetensors", count=200)
        assert quality["accuracy"]["n"] == 200
        judged.append({row["id"] for row in rows})
    # Each lacks about one in nine of the other's and has the next ones in their place.
    assert len(judged[0] & judged[1]) > 160
    assert judged[0] | judged[1] < {f"q{i}" for i in range(600)}


def test_an_unreadable_comparison_is_left_out_and_shown():
    rows = rows_of([1, None, 0], [1, 2, 3], [1, 1, 1])
    assert alpaca_eval.win_rate(rows) | {"stderr": 0} == {"value": 50, "stderr": 0, "n": 2, "unreadable": 1}
