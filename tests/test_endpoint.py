"""The endpoint client against a real HTTP server in its own process: faults, cache, budget, kill -9, secrets."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.benchmarks import alpaca_eval
from eval.cli import main
from eval.settings import Evaluation
from sso.cli import main as sso
from sso.endpoint import Client, Completion, Refused, Server, _read
from sso.errors import InputError
from sso.jobs.tracking import record_path
from sso.records import Message, Principles, Query, read, write
from sso.sampling.endpoint_engine import CUT, EndpointEngine
from sso.sampling.settings import Endpoint, Sampling
from sso.sampling.triples import draw
from tests.openai_server import serving

CANARY = "sk-canary/8c1f\"quoted'4e7d"
ITEMS = 805
FAULTS = {"429": 0.06, "500": 0.04, "503": 0.02, "broken": 0.04, "drop": 0.04, "garbage": 0.02}


def client(url: str, folder: Path, **settings) -> Client:
    return Client(Endpoint(base_url=url, **{"model": "m", "backoff_s": 0.01, **settings}), folder / "c.db")


def ask(asking: Client, text: str, **parameters) -> str:
    return asking.complete([{"role": "user", "content": text}], **parameters).text


def alpaca(tmp_path: Path, count: int = ITEMS) -> list[str]:
    """A folder of answers and one of AlpacaEval's data, and the judge command without its settings."""
    rows = [{"instruction": f"Do {i}.", "output": f"theirs {i}", "generator": "reference"} for i in range(count)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/reference.json").write_text(json.dumps(rows))
    ours = [{"id": str(i), "prompt": f"Do {i}.", "output": f"our {i}", "model": "m"} for i in range(count)]
    write(tmp_path / "answers/answers.jsonl", ours)
    (tmp_path / "answers/lm_eval.json").write_text('{"tasks": {}}')
    files = ["--answers", tmp_path / "answers", "--data", tmp_path / "data", "--out", tmp_path / "judged"]
    return ["judge", *map(str, files)]


def settings(url: str, **judge) -> list[str]:
    judge = {"kind": "openai", "model": "j", "base_url": url, "backoff_s": 0.01, "concurrency": 16, **judge}
    return ["--settings", json.dumps({"judged": ["alpaca_eval"], "judge": judge})]


def kept(path: Path) -> int:
    if not path.is_file():
        return 0
    connection = sqlite3.connect(path, timeout=60)
    try:
        return connection.execute("SELECT count(*) FROM completions").fetchone()[0]
    except sqlite3.OperationalError:  # the table is not there yet
        return 0
    finally:
        connection.close()


def test_805_items_under_faults_and_a_kill_ask_nothing_twice(tmp_path):
    with serving(tmp_path / "server", latency_s=0.02, faults=FAULTS) as server:
        command = [sys.executable, "-m", "eval", *alpaca(tmp_path), *settings(server.url, retries=12)]
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while kept(tmp_path / "judge_replies.db") < ITEMS // 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert not (tmp_path / "judged").exists()
        before = -1
        while before < (before := len(server.requests)):  # what the server was still at
            time.sleep(0.5)
        rest = ITEMS - kept(tmp_path / "judge_replies.db")
        assert ITEMS // 4 < rest < ITEMS

        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        after = server.requests[before:]
        assert sum(r["fault"] is None for r in after) == rest
        said = re.search(rf"judge: (\d+) asked, {ITEMS - rest} cached, \d+ verdicts, 0 unreadable", done.stdout)
        # A request on a connection that the server has just dropped is sent, and never read.
        asked = int(said[1])
        assert 0 <= asked - len(after) <= sum(r["fault"] == "drop" for r in after)
        for name in FAULTS:
            assert any(r["fault"] == name for r in server.requests), name
    scores = json.loads((tmp_path / "judged/scores.json").read_text())
    assert scores["alpaca_eval2_wr"]["n"] == ITEMS and scores["judge"]["asked"] == asked


def test_a_budget_of_requests_stops_with_a_sentence_and_keeps_every_reply(tmp_path, capsys):
    command = alpaca(tmp_path, 60)
    with serving(tmp_path / "server") as server:
        assert main([*command, *settings(server.url, max_requests=25)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: j: the budget is spent (25 of 25 requests)") and "max_requests" in error
        assert len(server.requests) == 25 == kept(tmp_path / "judge_replies.db")
        # The budget is the cache file's: running again does not spend anew.
        assert main([*command, *settings(server.url, max_requests=25)]) == 2 and len(server.requests) == 25
        assert main([*command, *settings(server.url, max_requests=60)]) == 0 and len(server.requests) == 60


def test_a_budget_of_money_counts_reported_tokens(tmp_path):
    prices = {"price_input": 10.0, "price_output": 30.0, "concurrency": 1}  # 100 and 10 tokens: 0.0013 a request
    with serving(tmp_path / "server") as server:
        asking = client(server.url, tmp_path, max_cost=0.0065, **prices)
        with pytest.raises(InputError, match=r"budget is spent \(0\.0065 of 0\.0065\).*`max_cost`"):
            asking.map(lambda i: ask(asking, f"q{i}"), range(20))
        assert len(server.requests) == 5 and asking.notes() == {"asked": 5, "cached": 0, "cost": 0.0065}
        again = client(server.url, tmp_path, max_cost=0.0065, **prices)
        assert ask(again, "q3") and again.notes()["cached"] == 1
    with serving(tmp_path / "silent", usage=False) as server, pytest.raises(InputError, match="no token usage"):
        ask(client(server.url, tmp_path, max_cost=1, **prices), "q")


def test_replies_are_keyed_by_all_that_shapes_them(tmp_path):
    with serving(tmp_path / "server") as server:
        asking = client(server.url, tmp_path)
        for _ in range(2):
            ask(asking, "q", temperature=0)
            ask(asking, "q", temperature=1)
            ask(asking, "q", temperature=0, draw=1)
            ask(asking, "other", temperature=0)
        ask(client(server.url, tmp_path, parameters={"top_p": 0.5}), "q", temperature=0)
        Client(Endpoint(model="m2", base_url=server.url), tmp_path / "c.db").complete(
            [{"role": "user", "content": "q"}], temperature=0
        )
        assert len(server.requests) == 6 and asking.notes() == {"asked": 4, "cached": 4}


def test_parameters_of_the_settings_go_over_the_requests_own(tmp_path):
    with serving(tmp_path / "server") as server:
        over = {"max_tokens": None, "max_completion_tokens": 7}
        ask(client(server.url, tmp_path, parameters=over), "q", max_tokens=5, temperature=0)
        body = server.requests[0]["body"]
    assert body["max_completion_tokens"] == 7 and "max_tokens" not in body and body["temperature"] == 0


def test_an_outage_ends_in_one_sentence(tmp_path):
    down = serving(tmp_path / "server", replies=[500, 502, 503])
    with down as server, pytest.raises(InputError, match=r"no reply after 3 tries \(HTTP 503\)"):
        ask(client(server.url, tmp_path, retries=2), "q")
    with pytest.raises(InputError, match=r"no reply after 2 tries \(ConnectError\)"):
        ask(client("http://127.0.0.1:1/v1", tmp_path, retries=1), "q")
    slow = serving(tmp_path / "slow", latency_s=0.5)
    with slow as server, pytest.raises(InputError, match=r"no reply after 1 try \(ReadTimeout\)"):
        ask(client(server.url, tmp_path, retries=0, timeout_s=0.1), "q")


def test_a_limit_of_a_minute_is_outlived(tmp_path, monkeypatch):
    pauses = []
    with serving(tmp_path / "server", replies=[429, 429, 500, 429, 429, 429], retry_after=None) as server:
        asking = client(server.url, tmp_path, backoff_s=0.5)
        monkeypatch.setattr(asking._stop, "wait", lambda pause: pauses.append(pause))
        assert ask(asking, "q").startswith("answer")
    failed = pauses.pop(2)
    assert 1 <= failed <= 2 and all(15 <= pause <= 22.5 for pause in pauses) and sum(pauses) > 60
    # A server that says when is believed, and backoff goes on growing where it is longer.
    with serving(tmp_path / "says", replies=[429], retry_after="3") as server:
        asking = client(server.url, tmp_path, model="says")
        monkeypatch.setattr(asking._stop, "wait", lambda pause: pauses.append(pause))
        assert ask(asking, "q") and pauses[-1] == 3
    with serving(tmp_path / "slow", replies=[429, 429], retry_after=None) as server:
        asking = client(server.url, tmp_path, model="slow", backoff_s=50)
        monkeypatch.setattr(asking._stop, "wait", lambda pause: pauses.append(pause))
        assert ask(asking, "q") and pauses[-2] >= 25 and pauses[-1] >= 50


def test_a_server_is_asked_for_its_model(tmp_path, monkeypatch):
    def find(url: str, model: str = "m") -> None:
        Server(Endpoint(model=model, base_url=url)).find_model()

    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    for name, lists in (("one", False), ("all", True)):  # vLLM's server knows the list alone
        with serving(tmp_path / name, models=["m", "owner/m"], lists=lists, key=CANARY) as server:
            find(server.url)
            find(server.url, "owner/m")
            with pytest.raises(InputError, match=r"no model 'gone' there \(HTTP 404.*check `model` and `base_url`\.$"):
                find(server.url, "gone")
            assert {request["asked"].partition("?")[0][:10] for request in server.requests} == {"/v1/models"}
    with serving(tmp_path / "none", echo="error") as server, pytest.raises(InputError, match="no model 'm'") as told:
        find(server.url)
    assert "Bearer ***" in str(told.value)
    for status, said in (
        (401, r"refuses the key in OPENAI_API_KEY \(HTTP 401\); set another\.$"),
        (403, r"refuses the key in OPENAI_API_KEY \(HTTP 403: .*scripted 403 for Bearer \*\*\*.*\); set another\.$"),
        (503, r"does not say whether it has 'm' \(HTTP 503: .*\); ask again later, or check `base_url`\.$"),
        (405, r"does not say whether it has 'm' \(HTTP 405: .*\); ask again later, or check `base_url`\.$"),
    ):
        script = {"replies": [status], "echo": "error"}
        with serving(tmp_path / str(status), **script) as server, pytest.raises(InputError, match=said):
            find(server.url)
    with pytest.raises(InputError, match=r"no server answers there \(ConnectError\); start it"):
        find("http://127.0.0.1:1/v1")


def test_a_request_of_its_own_fault_is_not_retried(tmp_path):
    with serving(tmp_path / "server", replies=[400, 404, 429, "fine"]) as server:
        asking = client(server.url, tmp_path)
        with pytest.raises(Refused, match=r"HTTP 400: .*scripted 400"):
            ask(asking, "q")
        with pytest.raises(InputError, match="no model 'm' there"):
            ask(asking, "q")
        assert ask(asking, "q") == "fine" and len(server.requests) == 4


@pytest.mark.parametrize("where", ["error", "reply"])
def test_the_key_is_seen_nowhere_even_where_the_server_echoes_it(where, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", CANARY)
    caplog.set_level("DEBUG")
    script = {"replies": [418] * 40} if where == "error" else {}
    with serving(tmp_path / "server", key=CANARY, echo=where, **script) as server:
        code = main([*alpaca(tmp_path, 20), *settings(server.url, key_variable="JUDGE_KEY")])
        assert server.requests, "the server was reached with the key"
    assert code == (2 if where == "error" else 0)
    out = capsys.readouterr()
    if where == "error":
        assert "HTTP 418" in out.err and "Bearer ***" in out.err
    forms = {CANARY, json.dumps(CANARY)[1:-1], CANARY.replace("/", "\\/"), CANARY[:16]}
    files = [p for p in tmp_path.rglob("*") if p.is_file() and "server" not in p.parts]
    assert any(p.name == "judged.run.json" for p in files) and any(p.suffix == ".db" for p in files)
    texts = [out.out, out.err, caplog.text, *(p.read_bytes().decode(errors="replace") for p in files)]
    assert not [form for form in forms for text in texts if form in text]


def test_a_refused_key_is_told_by_the_name_of_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-key-wrong-key")
    with serving(tmp_path / "server", key=CANARY) as server:
        with pytest.raises(InputError, match=r"refuses the key in OPENAI_API_KEY \(HTTP 401\); set another\.$"):
            ask(client(server.url, tmp_path), "q")
        assert len(server.requests) == 1


def test_a_hosted_endpoint_needs_a_key_and_a_local_one_does_not(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match=r"https://\*\*\*@judge\.example/v1: the key is read from OPENAI_API_KEY"):
        client("https://me:hunter2@judge.example/v1", tmp_path)
    with serving(tmp_path / "server") as server:
        assert ask(client(server.url, tmp_path), "q")


def test_a_key_in_the_settings_is_refused_without_repeating_it(capsys):
    assert main(["answer", "--endpoint", '{"model": "m", "key_variable": "sk-se/cret"}', "--data", ".", "--settings",
                 '{"judged": []}', "--out", "x"]) == 2  # fmt: skip
    error = capsys.readouterr().err
    assert "`key_variable`" in error and "sk-se" not in error


def test_an_endpoint_answers_like_an_engine(tmp_path):
    with serving(tmp_path / "server") as server:
        engine = EndpointEngine(Endpoint(model="m", base_url=server.url), tmp_path / "c.db")
        asked = [[Message(role="user", content=f"q{i} <|im_end|>")] for i in range(3)]
        first = engine.generate(asked, seeds=[2**62 + 1, 7, 8], temperature=0.7, top_p=0.8, max_new_tokens=9)
        assert engine.generate(asked, [2**62 + 1, 7, 8], 0.7, 0.8, 9) == first
        bodies = sorted((r["body"] for r in server.requests), key=lambda b: b["messages"][0]["content"])
    assert [g.tokens for g in first] == [10] * 3 and all(g.finished for g in first) and len(bodies) == 3
    assert bodies[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "q0 < |im_end| >"}],
        "temperature": 0.7,
        "top_p": 0.8,
        "max_tokens": 9,
        "seed": 1,
    }


def test_an_endpoint_is_answered_and_judged_by_command(tmp_path, capsys):
    """Answers from one endpoint, judged by another: AlpacaEval, MT-Bench and Arena-Hard in their own file formats."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"instruction": f"Do {i}.", "output": f"theirs {i}", "generator": "reference"} for i in range(4)]
    (data / "reference.json").write_text(json.dumps(rows))
    categories = ("writing", "math", "stem")
    write(
        data / "mt_bench.jsonl",
        [{"question_id": i, "category": c, "turns": ["one", "two"]} for i, c in enumerate(categories)],
    )
    write(data / "mt_bench_reference.jsonl", [{"question_id": 1, "choices": [{"turns": ["r one", "r two"]}]}])
    write(data / "arena_hard.jsonl", [{"uid": f"u{i}", "prompt": f"hard {i}"} for i in range(5)])
    answer = {"role": "assistant", "content": {"answer": "base"}}
    write(data / "arena_hard_baseline.jsonl", [
        {"uid": f"u{i}", "model": "gpt-4-0314", "messages": [{"role": "user", "content": f"hard {i}"}, answer]}
        for i in range(5)
    ])  # fmt: skip
    with serving(tmp_path / "server") as server:
        judge = {"kind": "openai", "model": "j", "base_url": server.url, "repeats": 3, "repeat_items": 2}
        text = json.dumps(
            {
                "judged": ["alpaca_eval", "mt_bench", "arena_hard"],
                "temperature": 0.9,
                "max_new_tokens": 32,
                "judge": judge,
            }
        )
        shared = ["--data", str(data), "--settings", text]
        endpoint = json.dumps({"model": "m", "base_url": server.url})
        assert main(["answer", "--endpoint", endpoint, *shared, "--out", str(tmp_path / "answers")]) == 0
        assert "endpoint: 15 asked, 0 cached" in capsys.readouterr().out
        heat = {r["body"]["messages"][0]["content"]: r["body"]["temperature"] for r in server.requests}
        assert heat["Do 0."] == 0.9 and heat["hard 0"] == 0
        two_turns = [r["body"] for r in server.requests if len(r["body"]["messages"]) == 3]
        assert sorted(b["temperature"] for b in two_turns) == [0, 0.1, 0.7]
        files = ["--answers", str(tmp_path / "answers"), "--out", str(tmp_path / "judged")]
        assert main(["judge", *files, *shared]) == 0
        prompts = {"".join(m["content"] for m in r["body"]["messages"]) for r in server.requests[15:]}
        assert sum("r one" in p for p in prompts) == 2 == sum("r two" in p for p in prompts) + 1
    scores = json.loads((tmp_path / "judged/scores.json").read_text())
    assert scores["arena_hard"]["n"] == 5 and scores["arena_hard"]["baseline"] == "gpt-4-0314"
    assert set(scores["mt_bench"]["categories"]) == set(categories) and scores["alpaca_eval2_wr"]["n"] == 4
    # The server's verdicts are a function of the prompt, so a repeated judge agrees with itself.
    assert {name: (s["repeats"], s["n"], s["sd_mean"]) for name, s in scores["judge_spread"].items()} == {
        "alpaca_eval2_wr": (3, 2, 0), "mt_bench": (3, 2, 0), "arena_hard": (3, 2, 0)
    }  # fmt: skip
    chart = tmp_path / "radar.svg"
    assert main(["radar", str(tmp_path / "judged/scores.json"), "--out", str(chart)]) == 0
    assert "<svg" in chart.read_text() and main(["radar", str(data / "none.json"), "--out", str(chart)]) == 2


def test_the_address_is_the_settings_alone(tmp_path, monkeypatch):
    """The openai package would follow OPENAI_BASE_URL, and replies would be kept under another address."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    asking = Client(Endpoint(model="m"), tmp_path / "c.db")
    assert str(asking._openai.base_url).rstrip("/") == asking.url == "https://api.openai.com/v1"


def principles_command(folder: Path, url: str, version: str = "v2", **endpoint) -> list[str]:
    write(folder / "queries.jsonl", [Query(id=i, prompt=f"Name a {i}.") for i in ("river", "lockpick", "lamp")])
    served = {"model": "m", "base_url": url, "concurrency": 1, "backoff_s": 0.01, **endpoint}
    settings = json.dumps({"kind": "endpoint", "max_new_tokens": 32, "endpoint": served})
    files = ["--queries", folder / "queries.jsonl", "--out", folder / "p.jsonl", "--version", version]
    return ["principles", *map(str, files), "--settings", settings]


@pytest.mark.parametrize(("version", "rounds"), [("v1", 1), ("v2", 2)])
def test_a_refused_guideline_falls_back_is_named_and_is_asked_no_more(tmp_path, capfd, version, rounds):
    replies = [said for i in range(rounds) for said in (f"Safety {i}.", 400, f"Accuracy {i}.")]
    with serving(tmp_path / "server", replies=[*replies, *["Now said."] * rounds]) as server:
        for _ in range(2):
            assert sso(principles_command(tmp_path, server.url, version)) == 0
            rows = read(tmp_path / "p.jsonl", Principles)
            assert [r.fallback for r in rows] == [False, True, False]
            assert "1 principles refused by the endpoint: lockpick" in capfd.readouterr().err
            record = json.loads(record_path(tmp_path / "p.jsonl").read_text())
            assert (record["summary"]["refused"], record["summary"]["fallbacks"]) == (1, 1)
        assert len(server.requests) == 3 * rounds
        assert sso(principles_command(tmp_path, server.url, version, ask_again=True)) == 0
        assert len(server.requests) == 4 * rounds
        assert "refused" not in capfd.readouterr().err


def test_where_all_is_refused_one_sentence_says_so_and_all_is_asked_anew(tmp_path, capfd):
    with serving(tmp_path / "server", replies=[400] * 6) as server:
        for _ in range(2):
            assert sso(principles_command(tmp_path, server.url, "v1")) == 2
            assert re.search(r"none of 3 principles could be asked for: .*HTTP 400", capfd.readouterr().err)
        assert len(server.requests) == 6
        assert sso(principles_command(tmp_path, server.url, "v1")) == 0  # the server was put right


def test_a_refused_prompt_has_an_empty_answer_and_a_refused_draw_leaves_its_query_out(tmp_path, capsys):
    queries = [Query(id=i, prompt=f"Name a {i}.") for i in "abc"]
    with serving(tmp_path / "server", replies=["one", 400, "three", "1", 400, "3", "4", "5", "6"]) as server:
        engine = EndpointEngine(Endpoint(model="m", base_url=server.url, concurrency=1), tmp_path / "c.db")
        answers = alpaca_eval.answer(engine, queries, Evaluation(), 0, "m")
        assert [(a.output, a.missing) for a in answers] == [("one", None), ("", "refused"), ("three", None)]
        assert "1 answers refused by the endpoint: b" in capsys.readouterr().err
        rows = [Principles(id=q.id, prompt=q.prompt, good="g", bad="b", writer="w") for q in queries]
        triples, counts = draw(engine, rows, Sampling(), "paper", 0, ["y+", "y-"])
        assert [t.id for t in triples] == ["a", "c"] and counts["refused"] == 1
        assert engine.client.notes()["refused"] == 2


def test_an_addresss_password_may_come_from_the_environment(tmp_path, monkeypatch):
    with serving(tmp_path / "server", replies=["tea"]) as server:
        address = server.url.replace("://", "://me:${JUDGE_PASSWORD}@")
        monkeypatch.delenv("JUDGE_PASSWORD", raising=False)
        with pytest.raises(InputError, match="variable JUDGE_PASSWORD, which it names, is not set; set it"):
            client(address, tmp_path)
        monkeypatch.setenv("JUDGE_PASSWORD", "hunter2")
        asking = client(address, tmp_path)
        assert ask(asking, "Drink?") == "tea" and "me:hunter2@" in asking.address and "hunter2" not in asking.url


def test_half_a_character_of_a_reply_is_kept_as_its_mark(tmp_path):
    """It was a traceback, after the reply was paid for, and again at each rerun."""
    with serving(tmp_path / "server", replies=["caf\ud83d \U0001f600"]) as server:
        asking = client(server.url, tmp_path)
        assert ask(asking, "Drink?") == ask(asking, "Drink?") == "caf\ufffd \U0001f600"
        assert len(server.requests) == 1 and asking.notes() == {"asked": 1, "cached": 1}


def test_why_a_reply_ended_is_told_truly():
    def completion(finish: str | None, content: str | None = "text", **more: object) -> Completion:
        found = _read(json.dumps({"choices": [{"message": {"content": content, **more}, "finish_reason": finish}]}))
        assert found is not None
        return found

    assert [completion(f).finish in CUT for f in ("stop", "eos", None)] == [False] * 3
    assert [completion(f).finish in CUT for f in ("length", "max_tokens", "content_filter")] == [True] * 3
    assert not completion("stop", "").filtered and not completion("content_filter").filtered
    assert completion("content_filter", None).filtered and completion("stop", None, refusal="I can't.").filtered


@pytest.mark.parametrize(
    ("status", "said", "refusal"),
    [
        (400, "content policy", True), (413, "too large", True), (403, "requires moderation: flagged", True),
        (400, "billing_hard_limit_reached", False), (402, "credits", False), (405, "method", False), (403, "no", False),
    ],
)  # fmt: skip
def test_only_what_is_the_requests_own_fault_is_a_refusal(tmp_path, status, said, refusal):
    from types import SimpleNamespace

    error = SimpleNamespace(status_code=status, message=said, response=SimpleNamespace(headers={}))
    made = client("http://127.0.0.1:1/v1", tmp_path)._of_status(error)
    assert isinstance(made, InputError) and isinstance(made, Refused) == refusal
