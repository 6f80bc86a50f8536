"""Judges, the open-ended benchmarks and data quality, on hand-made cases."""

import json
import math
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from eval import alpaca_eval, data_quality, mt_bench
from eval.judge import OpenAIJudge, OracleJudge, make_judge
from sso.config import Judge as JudgeSettings
from sso.config import World
from sso.errors import InputError
from sso.records import Answer, Message, write


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
    assert judge.pairwise(user("q"), ".7", ".2") == 1
    assert judge.pairwise(user("q"), ".2", ".7") == 0
    assert judge.pairwise(user("q"), str(0.1 + 0.2), ".3") == 0.5
    assert judge.grade([*user("q"), Message(role="assistant", content=".5")]) == 5.5


def test_the_micro_worlds_oracle_fits_the_judge():
    from sso.micro.world import Writer

    world = World(entities=20)
    writer = Writer(world)
    from random import Random

    prompt = user(writer.prompt(Random(0)))
    good = writer.plan(writer.oracle.read(prompt), Random(0)).text()
    judge = make_judge(JudgeSettings(), world, Path("unused"))
    assert judge.pairwise(prompt, good, "I cannot help.") == 1
    assert 1 <= judge.grade([*prompt, Message(role="assistant", content=good)]) <= 10


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
    pairs = [("a", ".9", ".1"), ("b", ".2", ".8"), ("c", ".4", ".4")]
    write(tmp_path / "pairs.jsonl", [{"id": i, "prompt": "q", "chosen": c, "rejected": r} for i, c, r in pairs])
    # The file's rows are in another order and hold a sample more.
    logp = [[-4.0, -9, -1.0], [-2.0, -9, -6.0], [0.0, -9, 0.0], [-1.0, -9, -3.0]]
    tokens = [[2, 2, 1], [2, 2, 3], [1, 1, 1], [4, 4, 3]]
    reference_file(tmp_path / "r.safetensors", ["c", "a", "z", "b"], logp, tokens)
    quality = data_quality.measure(judge, tmp_path / "pairs.jsonl", tmp_path / "r.safetensors")
    assert quality["accuracy"]["value"] == 0.5 and quality["accuracy"]["ties"] == 1 and quality["equal_pairs"] == 1
    averages = {"y+": [-1.0, -0.25, -2.0], "y-": [-2.0, -1.0, -1.0]}
    assert quality["nll_chosen"]["value"] == pytest.approx(-np.mean(averages["y+"]))
    assert quality["nll_rejected"]["value"] == pytest.approx(-np.mean(averages["y-"]))
    assert quality["mean_probability"]["value"] == pytest.approx(np.exp([*averages["y+"], *averages["y-"]]).mean())
    assert quality["length_chosen"]["value"] == 2
    reference_file(tmp_path / "r.safetensors", ["a", "b"], logp[:2], tokens[:2])
    with pytest.raises(InputError, match="no score of pair 'c'"):
        data_quality.measure(judge, tmp_path / "pairs.jsonl", tmp_path / "r.safetensors")


@pytest.fixture
def endpoint():
    """A local OpenAI-compatible server; it answers with ``replies`` in turn and keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        replies: list[str] = []
        asked: list[dict] = []

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.asked.append(body)
            message = {"role": "assistant", "content": self.replies.pop(0)}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "j", "choices": [choice]}
            data = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    Handler.replies, Handler.asked = [], []
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Handler, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_openai_judge_swaps_caches_and_counts(endpoint, tmp_path, monkeypatch):
    handler, url = endpoint
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def fresh() -> OpenAIJudge:
        return OpenAIJudge("j", url, tmp_path / "cache.db")

    judge = fresh()
    handler.replies += ["because. [[A]]", "because. [[B]]"]
    assert judge.pairwise(user("q"), "one", "two") == 1
    texts = [body["messages"][0]["content"] for body in handler.asked]
    assert texts[0].index("one") < texts[0].index("two") and texts[1].index("two") < texts[1].index("one")
    assert fresh().pairwise(user("q"), "one", "two") == 1 and len(handler.asked) == 2  # from disk

    handler.replies += ["[[A]]", "[[A]]"]  # always the first: no preference
    assert judge.pairwise(user("q2"), "one", "two") == 0.5
    handler.replies += ["hm", "hm", "[[A]]"]  # unreadable twice, then the swapped order prefers `two`
    assert judge.pairwise(user("q3"), "one", "two") == 0
    handler.replies += ["no idea", "still none"]
    assert math.isnan(judge.grade([*user("q"), Message(role="assistant", content="x")], 1))
    handler.replies += ["hm", "it is a [[7]]"]
    assert judge.grade([*user("q"), Message(role="assistant", content="y")], 2) == 7
    assert judge.notes() == {"asked": 11, "unreadable": 2}
    again = fresh()
    assert math.isnan(again.grade([*user("q"), Message(role="assistant", content="x")], 1))
    assert again.notes() == {"asked": 0, "unreadable": 1}


def test_an_unreadable_comparison_is_left_out_and_shown():
    rows = rows_of([1, None, 0], [1, 2, 3], [1, 1, 1])
    assert alpaca_eval.win_rate(rows) | {"stderr": 0} == {"value": 50, "stderr": 0, "n": 2, "unreadable": 1}


def test_openai_judge_needs_its_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        make_judge(JudgeSettings(kind="openai", model="j"), None, Path("unused"))
