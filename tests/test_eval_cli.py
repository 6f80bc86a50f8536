"""`sso-eval` from answers to scores on a tiny untrained model, and what it says to bad input."""

import importlib.metadata
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from eval.cli import main
from sso.records import Answer, read
from sso.worlds.settings import MicroWorld

WORLD = MicroWorld(entities=20, eval_queries=4, benchmark_items=2)
SETTINGS = {"tasks": [{"name": "micro_gsm8k"}, {"name": "micro_mmlu"}], "batch_size": 8, "max_new_tokens": 8}


@pytest.fixture
def model(tiny_checkpoint) -> Path:
    return tiny_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    from sso.records import write
    from sso.worlds.micro.data import benchmarks, queries, reference
    from sso.worlds.micro.world import Writer

    path, writer, taken = tmp_path_factory.mktemp("data"), Writer(WORLD), set()
    asked = queries(writer, "eval", WORLD.eval_queries, taken)
    write(path / "eval.jsonl", asked)
    write(path / "reference.jsonl", reference(writer, asked))
    for name, rows in benchmarks(writer, WORLD.benchmark_items, taken).items():
        write(path / f"{name}.jsonl", rows)
    return path


def call(*arguments: object) -> None:
    assert main([str(a) for a in arguments]) == 0


def test_a_reward_model_judges_all_that_is_judged_by_default(model, data, tmp_path):
    """Its grades are no MT-Bench grades: a metric of their own, without MT-Bench's items and ends."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from sso.chat import load_tokenizer, save_tokenizer

    reward, tokenizer = tmp_path / "reward", load_tokenizer(model)
    about = AutoConfig.from_pretrained(model, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    AutoModelForSequenceClassification.from_config(about).save_pretrained(reward)
    save_tokenizer(tokenizer, reward)
    settings = json.dumps({"max_new_tokens": 8, "judge": {"kind": "reward", "path": str(reward)}})
    shared = ("--data", data, "--settings", settings, "--seed", 3)
    call("answer", "--model", model, *shared, "--out", tmp_path / "answers")
    call("judge", "--answers", tmp_path / "answers", *shared, "--out", tmp_path / "judged")
    scores = json.loads((tmp_path / "judged/scores.json").read_text())
    assert {"alpaca_eval2_wr", "length", "mt_bench_reward"} <= set(scores) and "mt_bench" not in scores
    assert scores["mt_bench_reward"]["n"] == 2


def test_answer_then_judge_then_judge_again(model, data, tmp_path):
    settings, world = json.dumps(SETTINGS), WORLD.model_dump_json()
    shared = ("--data", data, "--settings", settings, "--seed", 3)
    call("answer", "--model", model, *shared, "--out", tmp_path / "answers")
    assert [a.id for a in read(tmp_path / "answers/answers.jsonl", Answer)] == [f"eval-{i}" for i in range(4)]
    dialogues = read(tmp_path / "answers/mt_bench_answers.jsonl", Answer)
    assert [a.turn for a in dialogues] == [1, 2, 1, 2]
    assert [m.content for m in dialogues[1].prompt[:2]] == [dialogues[0].prompt[0].content, dialogues[0].output]

    for out in ("judged", "again"):
        call("judge", "--answers", tmp_path / "answers", *shared, "--world", world, "--out", tmp_path / out)
    scores = json.loads((tmp_path / "judged/scores.json").read_text())
    assert set(scores) == {"alpaca_eval2_wr", "length", "quality", "mt_bench", "gsm8k", "mmlu"}
    assert scores["alpaca_eval2_wr"]["n"] == 4 and scores["mt_bench"]["n"] == 2 and scores["mmlu"]["n"] == 2
    # Equal items have an interval on an end of their scale only, and never one of no width.
    known = [entry for entry in scores.values() if entry["low"] is not None]
    assert known and all(entry["low"] <= entry["value"] <= entry["high"] > entry["low"] for entry in known)
    for name in ("scores.json", "pairwise.jsonl", "mt_bench.jsonl"):
        assert (tmp_path / "judged" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (tmp_path / "judged.run.json").is_file()

    difficulty = tmp_path / "difficulty.csv"
    difficulty.write_text("index,instruction_difficulty\n" + "".join(f"{i},{i - 2}\n" for i in range(4)))
    controlled = ("--length-controlled", "--difficulty", difficulty, "--out", tmp_path / "controlled")
    call("judge", "--answers", tmp_path / "answers", *shared, "--world", world, *controlled)
    scores = json.loads((tmp_path / "controlled/scores.json").read_text())
    assert scores["alpaca_eval2_lc"]["value"] == scores["alpaca_eval2_wr"]["value"]  # four are too few to fit
    assert scores["alpaca_eval2_lc"]["model"] == "raw"

    call("answer", "--model", model, *shared, "--out", tmp_path / "answers2", "--name", "sft")
    for name in ("answers.jsonl", "mt_bench_answers.jsonl", "lm_eval.json"):
        assert (tmp_path / "answers" / name).read_bytes() == (tmp_path / "answers2" / name).read_bytes()


def test_judging_with_the_oracle_loads_neither_torch_nor_scipy():
    code = (
        "import sys; import eval.cli, eval.judge, eval.data_quality; from eval import benchmarks; benchmarks.records();"
    )
    code += "import sso.jobs.tracking;"
    code += "print([m for m in ('torch', 'scipy', 'pandas', 'transformers', 'openai') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize(
    "settings, message",
    [
        ('{"taskss": []}', "`taskss`"),
        ('{"tasks": [', "--settings: "),
        ('{"tasks": [{"name": "micro_none"}]}', "unknown task 'micro_none'"),
    ],
)
def test_bad_settings_get_one_sentence_and_exit_2(model, data, tmp_path, capsys, settings, message):
    arguments = ("answer", "--model", model, "--data", data, "--settings", settings, "--out", tmp_path / "out")
    assert main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_pairs_command_measures_a_pair_set(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    from sso.records import write
    from sso.worlds.micro.data import queries
    from sso.worlds.micro.world import Writer

    asked = queries(Writer(WORLD), "train", 3, set())
    write(
        tmp_path / "pairs.jsonl",
        [
            {"id": q.id, "prompt": q.prompt[0].content, "chosen": "Well done.", "rejected": "Well done" + end}
            for q, end in zip(asked, ("?", "?", "."), strict=True)
        ],
    )
    scores = {"logp": np.full((3, 2), -4, np.float32), "tokens": np.full((3, 2), 2, np.int32)}
    nodes = [["x", "y+"], ["x", "y-"]]
    metadata = {"ids": json.dumps([q.id for q in asked]), "nodes": json.dumps(nodes), "key": "{}"}
    save_file(scores, tmp_path / "reference.safetensors", metadata)
    files = ("--pairs", tmp_path / "pairs.jsonl", "--reference", tmp_path / "reference.safetensors")
    call("pairs", *files, "--settings", "{}", "--world", WORLD.model_dump_json(), "--out", tmp_path / "q.json")
    quality = json.loads((tmp_path / "q.json").read_text())
    assert quality["accuracy"] == {"value": 0.5, "stderr": 0, "n": 2, "ties": 2, "agreement": 1}
    rows = [json.loads(line) for line in (tmp_path / "q_pairs.jsonl").read_text().splitlines()]
    assert [row["hit"] for row in rows] == [0.5] * 2 and rows[0]["agree"] is True
    assert quality["nll_chosen"]["value"] == 2 and quality["equal_pairs"] == 1


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed; docs/engines.md has the command")
def test_vllm_answers_what_transformers_answers(model, data, tmp_path, monkeypatch):
    # lm-eval asks for the version of `vllm`; the CPU build goes by another name.
    version, packages = importlib.metadata.version, importlib.metadata.packages_distributions()["vllm"]
    if "vllm" not in packages:
        named = version(packages[0]) + "+cpu"
        monkeypatch.setattr(importlib.metadata, "version", lambda name: named if name == "vllm" else version(name))
    made = {}
    for engine in ("transformers", "vllm"):
        settings = json.dumps({**SETTINGS, "temperature": 0, "engine": engine, "context": 1024})
        call("answer", "--model", model, "--data", data, "--settings", settings, "--out", tmp_path / engine)
        folder = tmp_path / engine
        answers = [(folder / f"{name}.jsonl").read_bytes() for name in ("answers", "mt_bench_answers")]
        tasks = json.loads((folder / "lm_eval.json").read_text())["tasks"]
        made[engine] = [answer.replace(b'"vllm"', b'"transformers"') for answer in answers], tasks
    assert made["transformers"] == made["vllm"]
