"""Hostile ids and texts on their way through commands: ids never become paths, nothing raw reaches the terminal."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sso.cli import main as sso
from sso.errors import InputError, first_of, printable
from sso.records import Pair, read, write
from tests.conftest import REPOSITORY
from tests.openai_server import serving
from tests.test_endpoint import alpaca, kept, settings
from tests.test_training import triple

IDS = [
    "../../escaped",
    "/tmp/sso-escaped",
    "a/b",
    "..",
    "\x1b[2Jscreen",
    "\u202egnp.exe",
    "{{ 7*7 }}",
    "'; DROP TABLE x;--",
    "=cmd()",
]
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")
CANARIES = {
    name: f"canary-{name.lower()}-5f2c9e"
    for name in ("JUDGE_KEY", "OPENAI_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD")
}


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_ids_never_become_paths(tiny_checkpoint, tmp_path):
    work, escape = tmp_path / "a" / "work", [tmp_path / "escaped", Path("/tmp/sso-escaped")]
    write(work / "t.jsonl", [triple(i).model_copy(update={"id": name}) for i, name in enumerate(IDS)])
    assert sso(["pairs", "--triples", f"{work}/t.jsonl", "--kind", "good_bad", "--out", f"{work}/p.jsonl"]) == 0
    assert [pair.id for pair in read(work / "p.jsonl", Pair)] == IDS
    training = {"objective": "pairs", "batch_size": 4, "dtype": "float32", "save_steps": 1}
    files = ["--model", str(tiny_checkpoint), "--data", f"{work}/p.jsonl", "--out", f"{work}/policy"]
    assert sso(["train", *files, "--settings", json.dumps(training)]) == 0
    made = {path.removeprefix("policy.").removeprefix("p.jsonl.") for path in tree(work) if "/" not in path}
    assert made == {"t.jsonl", "p.jsonl", "policy", "run.json", "card.md", "reference.safetensors"}
    assert tree(tmp_path) - {"a"} == {"a/work", *(f"a/work/{path}" for path in tree(work))}
    assert not any(path.exists() for path in escape)


@pytest.mark.parametrize(
    "row",
    [
        '{"id": "\\u001b[2J", "prompt": 1}',
        '{"prompt": [{"role": "user", "content": "x", "\\u001b]0;owned\\u0007": 1}]}',
        '{"id": "\\u202e", "prompt": [{"role": "\\u001b[31m", "content": "x"}]}',
        "\x1b[2J",
        '{"id": "\\u001b[2J", "prompt": "x", "good": "g", "bad": "b", "writer": "w"}\n' * 2,
    ],
)
def test_messages_hold_nothing_that_a_terminal_obeys(row, tmp_path, capfd):
    path = tmp_path / "evil\x1b[31m.jsonl"
    path.write_text(row)
    sampling = ["--settings", "{}", "--out", f"{tmp_path}/t.jsonl", "--model", str(tmp_path)]
    assert sso(["sample", "--principles", str(path), *sampling]) == 2
    out = capfd.readouterr()
    assert not RAW.search(out.out + out.err) and "\\x1b[31m.jsonl" in out.err and out.err.count("\n") == 1
    assert all(not RAW.search(record.read_text()) for record in tmp_path.glob("*.run.json"))


def test_lists_of_ids_are_short_and_printable():
    assert first_of(["a", "\x1b[2J"]) == "a, \\x1b[2J" and first_of([str(i) for i in range(30)]).endswith("9, ...")
    assert str(InputError("a\nb\x1b\ud800")) == printable("a\nb\x1b\ud800") == "a\\nb\\x1b\\ud800"
    assert printable("Grüße, 你好 — ∑ 😀") == "Grüße, 你好 — ∑ 😀"


def test_two_judges_on_one_file_of_replies_lose_nothing(tmp_path):
    command = [sys.executable, "-m", "eval", *alpaca(tmp_path, 120)]
    with serving(tmp_path / "server", latency_s=0.01) as server:
        outs = [["--out", str(tmp_path / f"judged{i}"), "--cache", str(tmp_path / "c.db")] for i in range(2)]
        running = [
            subprocess.Popen([*command, *out, *settings(server.url)], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
            for out in outs
        ]
        assert [process.wait(timeout=120) for process in running] == [0, 0]
        asked = len(server.requests)
    assert kept(tmp_path / "c.db") == 120 and 120 <= asked <= 240
    rows = [(tmp_path / f"judged{i}" / "pairwise.jsonl").read_bytes() for i in range(2)]
    assert rows[0] == rows[1]
    scores = [json.loads((tmp_path / f"judged{i}" / "scores.json").read_text()) for i in range(2)]
    # The ledger and the server agree, but for what was sent on a connection that a busy server had just dropped.
    assert 0 <= sum(score["judge"]["asked"] for score in scores) - asked < 12
    assert scores[0]["alpaca_eval2_wr"] == scores[1]["alpaca_eval2_wr"]


@pytest.mark.slow
def test_keys_in_the_environment_reach_no_file_of_a_whole_run(tmp_path, monkeypatch):
    from tests.test_smoke import CONFIG

    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    with serving(tmp_path / "server", key=CANARIES["JUDGE_KEY"], echo="reply") as server:
        judge = {"kind": "openai", "model": "j", "base_url": server.url, "key_variable": "JUDGE_KEY", "pairs": 20}
        command = [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--cores", "all"]
        command += ["--directory", str(tmp_path / "run"), "--configfile", str(CONFIG)]
        command += ["--config", f"evaluation={json.dumps({'judge': judge})}"]
        (tmp_path / "run").mkdir()
        done = subprocess.run(command, cwd=tmp_path / "run", capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        assert len(server.requests) > 100  # the judge was asked, with the key
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".db", ".log", ".json", ".jsonl", ".md", ".html", ".csv"} <= kinds
    texts = {"standard output": done.stdout.encode(), "standard error": done.stderr.encode()}
    texts |= {str(path): path.read_bytes() for path in files}
    found = [(place, name) for place, text in texts.items() for name, key in CANARIES.items() if key.encode() in text]
    assert not found
    print(f"{len(files)} files, {sum(map(len, texts.values())) / 1e6:.0f} MB searched, {len(server.requests)} requests")
