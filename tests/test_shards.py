"""Draws that outlive a kill, whatever the number of processes; principles that an endpoint writes; vLLM for real."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from sso.cli import main
from sso.errors import InputError
from sso.records import Message, Principles, Query, Triple, read, write
from sso.sampling.engine import Generation, make_engine, seed_of
from sso.sampling.settings import Sampling, Writer
from sso.sampling.shards import Kept, own
from tests.conftest import REPOSITORY
from tests.openai_server import serving

SETTINGS = {"temperature": 1, "top_p": 1, "max_new_tokens": 12, "batch_size": 2, "dtype": "float32"}


def command(folder, checkpoint, out, **settings):
    files = ["--model", checkpoint, "--principles", folder / "principles.jsonl", "--out", folder / out]
    return ["sample", *map(str, files), "--settings", json.dumps({**SETTINGS, **settings})]


def ask(folder, count):
    rows = [
        Principles(
            id=f"q{i}", prompt=f"Solve x plus {i} is {i + 5}.", good="Be safe.", bad=f"Be unsafe {i}.", writer="t"
        )
        for i in range(count)
    ]
    write(folder / "principles.jsonl", rows)


class Echo:
    """Says the prompt and the seed; knows how often it was asked, and fails at a row where that is told."""

    def __init__(self, fail_at=None):
        self.asked, self.fail_at = 0, fail_at

    def generate(self, conversations, seeds, temperature, top_p, max_new_tokens, progress=None, keep=None):
        made = []
        for i, (conversation, seed) in enumerate(zip(conversations, seeds, strict=True)):
            if self.asked == self.fail_at:
                raise RuntimeError("killed")
            self.asked += 1
            made.append(Generation(f"{conversation[-1].content}/{seed}\u2028", 1, True, -0.5))
            keep(i, made[-1])
        return made


def test_only_what_is_missing_is_drawn_and_a_cut_line_is_no_draw(tmp_path):
    rows = [[Message(role="user", content=str(i))] for i in range(10)]
    broken = Echo(fail_at=6)
    with pytest.raises(RuntimeError):
        Kept(lambda: broken, tmp_path, "2").generate(rows, [7] * 10)
    file = tmp_path / "2.jsonl"
    file.write_bytes(file.read_bytes()[:-9])  # the sixth line, cut off by a kill
    whole = Echo()
    made = Kept(lambda: whole, tmp_path, "0").generate(rows, [7] * 10)
    assert whole.asked == 5
    assert made == [Generation(f"{i}/7\u2028", 1, True, -0.5) for i in range(10)]
    # Another seed is another draw; the same ones need no engine.
    Kept(lambda: whole, tmp_path).generate(rows[:2], [8, 7])
    assert whole.asked == 6
    assert Kept(lambda: pytest.fail("loaded"), tmp_path).generate(rows[::-1], [7] * 10) == made[::-1]


def test_shards_part_the_records():
    queries = [Query(id=str(i), prompt="?") for i in range(10)]
    parts = [own(queries, f"{k}/3") for k in range(3)]
    assert sorted(q.id for part in parts for q in part) == [q.id for q in queries]
    assert own(queries, None) == queries


def test_three_processes_write_the_bytes_of_one(tmp_path, tiny_checkpoint, capfd):
    ask(tmp_path, 10)
    assert main(command(tmp_path, tiny_checkpoint, "one.jsonl")) == 0
    assert main(command(tmp_path, tiny_checkpoint, "three.jsonl", devices=3)) == 0
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "three.jsonl").read_bytes()
    assert [t.id for t in read(tmp_path / "three.jsonl", Triple)] == [f"q{i}" for i in range(10)]
    out = capfd.readouterr().out
    assert out.count("sample: 40/40") == 2  # once a run: the parent of the three draws nothing itself
    summaries = [json.loads((tmp_path / f"{n}.jsonl.run.json").read_text())["summary"] for n in ("one", "three")]
    assert summaries[0] == summaries[1] and summaries[0]["tokens"] > 0
    assert not list(tmp_path.glob(".*"))


def test_killed_and_resumed_with_other_shards_writes_the_same_bytes(tmp_path, tiny_checkpoint, capfd):
    ask(tmp_path, 24)
    assert main(command(tmp_path, tiny_checkpoint, "whole.jsonl")) == 0
    parts = tmp_path / ".killed.jsonl.parts"
    process = subprocess.Popen(
        [sys.executable, "-m", "sso.cli", *command(tmp_path, tiny_checkpoint, "killed.jsonl", devices=2)],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def drawn():
        return sum(file.read_bytes().count(b'{"key"') for file in parts.glob("*.jsonl"))

    deadline = time.monotonic() + 120
    while drawn() < 10 and time.monotonic() < deadline:
        assert process.poll() is None, "the sampling ended before it was killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.jsonl").exists()
    # No shard goes on without its parent.
    time.sleep(0.5)
    there = drawn()
    time.sleep(1)
    assert 10 <= there == drawn() < 96
    capfd.readouterr()
    assert main(command(tmp_path, tiny_checkpoint, "killed.jsonl")) == 0
    assert f"{there} of 96 draws are taken over" in capfd.readouterr().out
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not parts.exists()


def test_draws_of_other_settings_are_not_taken_over(tmp_path, tiny_checkpoint, capfd):
    ask(tmp_path, 3)
    bad = command(tmp_path, tiny_checkpoint, "out.jsonl", max_new_tokens=4000, devices=2)
    assert main(bad) == 2
    error = capfd.readouterr().err
    assert "none of 3 queries fits" in error and "exceed the context of 2048" in error
    parts = tmp_path / ".out.jsonl.parts"
    parts.mkdir(exist_ok=True)
    (parts / "0.jsonl").write_text('{"key": "0", "text": "old", "tokens": 1, "finished": true}\n')
    assert main(command(tmp_path, tiny_checkpoint, "out.jsonl")) == 0
    assert not parts.exists() and "old" not in (tmp_path / "out.jsonl").read_text()


def test_a_policy_writes_principles_in_shards(tmp_path, tiny_checkpoint):
    write(tmp_path / "queries.jsonl", [Query(id=str(i), prompt=f"Solve x plus {i} is 9.") for i in range(5)])

    def run(out, **settings):
        settings = {"kind": "policy", "max_new_tokens": 8, "dtype": "float32", **settings}
        files = ["--queries", tmp_path / "queries.jsonl", "--model", tiny_checkpoint, "--out", tmp_path / out]
        return main(["principles", *map(str, files), "--settings", json.dumps(settings)])

    assert run("one.jsonl") == run("two.jsonl", devices=2) == 0
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_a_shard_without_a_usable_query_draws_nothing_and_is_no_failure(tmp_path, tiny_checkpoint, capfd):
    """Two queries for three processes, and then all of one process's own too long: both failed at each rerun."""
    ask(tmp_path, 2)
    assert main(command(tmp_path, tiny_checkpoint, "few.jsonl", devices=3)) == 0
    assert [t.id for t in read(tmp_path / "few.jsonl", Triple)] == ["q0", "q1"]
    ask(tmp_path, 4)
    rows = read(tmp_path / "principles.jsonl", Principles)
    rows[1::2] = [row.model_copy(update={"good": "Be safe. " * 2000}) for row in rows[1::2]]
    write(tmp_path / "principles.jsonl", rows)
    for devices in (1, 2):
        assert main(command(tmp_path, tiny_checkpoint, f"{devices}.jsonl", devices=devices)) == 0
        assert "left out, 2 queries are too long for the model's context: q1, q3" in capfd.readouterr().err
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    assert [t.id for t in read(tmp_path / "2.jsonl", Triple)] == ["q0", "q2"]
    assert not list(tmp_path.glob(".*"))
    write(tmp_path / "queries.jsonl", [Query(id="0", prompt="Solve x plus 0 is 9.")])
    files = ["--queries", tmp_path / "queries.jsonl", "--model", tiny_checkpoint, "--out", tmp_path / "p.jsonl"]
    settings = {"kind": "policy", "max_new_tokens": 8, "dtype": "float32", "devices": 2}
    for version in ("v1", "v2"):
        assert main(["principles", *map(str, files), "--version", version, "--settings", json.dumps(settings)]) == 0
        assert len(read(tmp_path / "p.jsonl", Principles)) == 1


def test_an_endpoint_writes_principles_once_and_within_its_budget(tmp_path, capfd):
    write(tmp_path / "queries.jsonl", [Query(id=str(i), prompt=f"Name {i} <|im_end|>.") for i in range(6)])

    def run(url, **settings):
        endpoint = {"model": "big", "base_url": url, "backoff_s": 0.01, **settings}
        settings = json.dumps({"kind": "endpoint", "endpoint": endpoint})
        files = ["--queries", tmp_path / "queries.jsonl", "--out", tmp_path / "p.jsonl"]
        return main(["principles", *map(str, files), "--settings", settings])

    with serving(tmp_path / "server") as server:
        assert run(server.url, max_requests=9) == 2
        assert "the budget is spent (9 of 9 requests)" in capfd.readouterr().err
        assert run(server.url) == 0
        asked = server.requests
        assert len(asked) == 12  # two a query, and none twice
    rows = read(tmp_path / "p.jsonl", Principles)
    assert all(r.writer == "big" and not r.fallback and r.good.startswith("answer") for r in rows)
    body = asked[0]["body"]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.8, 256)
    assert "<|im_end|>" not in body["messages"][0]["content"]


def test_an_endpoint_samples_and_two_draws_without_seeds_are_two(tmp_path, capfd):
    ask(tmp_path, 2)
    with serving(tmp_path / "server", replies=[f"reply {i}" for i in range(8)]) as server:
        endpoint = {"model": "m", "base_url": server.url, "parameters": {"seed": None}, "concurrency": 1}
        settings = {"engine": "endpoint", "endpoint": endpoint}
        arguments = command(tmp_path, tmp_path, "t.jsonl", **settings)
        assert main(arguments) == 2
        assert f"error: {tmp_path}: the endpoint's settings name its model" in capfd.readouterr().err
        del arguments[1:3]
        assert main(arguments) == 0
        assert len(server.requests) == 8
    triples = read(tmp_path / "t.jsonl", Triple)
    said = [getattr(t, name) for name in ("chosen", "rejected", "original", "second") for t in triples]
    assert said == [f"reply {i}" for i in range(8)]


def test_without_vllm_its_engine_is_named(tmp_path, tiny_checkpoint, capfd):
    if find_spec("vllm"):
        pytest.skip("vLLM is here")
    ask(tmp_path, 1)
    assert main(command(tmp_path, tiny_checkpoint, "t.jsonl", engine="vllm")) == 2
    assert "vLLM is not installed here" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Sampling, {"engine": "endpoint"}, "go together"),
        (Sampling, {"tensor_parallel": 2}, "needs `engine: vllm`"),
        (Writer, {"kind": "endpoint"}, "go together"),
        (Writer, {"kind": "policy", "engine": "endpoint", "endpoint": {"model": "m"}}, "the only one"),
        (Sampling, {"engine": "endpoint", "devices": 2, "endpoint": {"model": "m"}}, "one process"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind.model_validate(settings)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed; docs/engines.md has the command")
def test_vllm_says_what_transformers_says(tmp_path):
    """Greedy: the same tokens. Sampled: the same again, in any order. Its log-probabilities are ours."""
    import torch

    from sso.settings import Backbone
    from sso.worlds.micro.models import build

    model, tokenizer = build(Backbone(architecture="qwen2"), 0)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.5)  # room for chance: see test_sampling
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    prompts = [[Message(role="user", content=f"Solve x plus {i} is 9." + " It is dark <|end|>." * i)] for i in range(9)]
    shared = [Message(role="user", content="Where does night dwell? " * 60)]
    prompts += [[*shared, Message(role="user", content=str(i))] for i in range(3)]
    seeds = [seed_of(0, str(i), "yo") for i in range(len(prompts))]
    with pytest.raises(InputError, match=r"model: vLLM can't load it .*max_model_len \(4096\)"):
        make_engine(Sampling(engine="vllm", dtype="float32", context=4096), tmp_path / "model", tmp_path / "replies.db")
    ours = make_engine(Sampling(dtype="float32"), tmp_path / "model", tmp_path / "replies.db")
    theirs = make_engine(
        Sampling(engine="vllm", dtype="float32", context=1024), tmp_path / "model", tmp_path / "replies.db"
    )
    greedy = [e.generate(prompts, seeds, temperature=0, max_new_tokens=24) for e in (ours, theirs)]
    assert [(g.text, g.tokens, g.finished) for g in greedy[0]] == [(g.text, g.tokens, g.finished) for g in greedy[1]]
    assert theirs.cached_tokens > 0  # the last three prompts' common beginning
    texts = [g.text for g in theirs.generate(prompts, seeds, 0.7, 0.8, 24)]
    assert texts == [g.text for g in theirs.generate(prompts[::-1], seeds[::-1], 0.7, 0.8, 24)][::-1]
    assert len(set(texts)) > 6 and texts != [g.text for g in theirs.generate(prompts, [s + 1 for s in seeds], 0.7, 0.8)]
    first = theirs.generate(prompts[:1], seeds[:1], 1.0, 1.0, 1)[0]
    from sso.chat import encode_prompt

    logits = model.eval()(torch.tensor([encode_prompt(tokenizer, prompts[0])])).logits[0, -1]
    near = (logits.log_softmax(-1) - first.logprob).abs() < 1e-4
    assert first.text.strip() in [tokenizer.decode([i]).strip() for i in near.nonzero().flatten().tolist()]
    # The whole command, in shards of its own processes.
    ask(tmp_path, 6)
    for name, devices in (("a", 1), ("b", 2)):
        settings = {"engine": "vllm", "context": 1024, "devices": devices}
        arguments = command(tmp_path, tmp_path / "model", f"{name}.jsonl", **settings)
        assert main([*arguments, "--pairs", "good_bad", "--responses", "y+,y-"]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
