"""The stages as plain commands: bad settings are one sentence, a small chain works by hand."""

import json

import pytest

from sso.cli import main
from sso.jobs.tracking import record_path
from sso.objective import load_objectives
from sso.records import Pair, Principles, Triple, read, write
from sso.reference import load
from sso.worlds.settings import World
from tests.test_training import triple

WORLD = World(entities=30, sft_examples=60, train_queries=12, tune_queries=6, eval_queries=6, benchmark_items=4)
SAMPLING = {"temperature": 1, "top_p": 1, "max_new_tokens": 8, "batch_size": 8, "dtype": "float32"}


def run(*arguments) -> int:
    return main([a if isinstance(a, str) else str(a) for a in arguments])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ('{"stepps": 1}', "error: Sft settings: unknown key `stepps`; did you mean `steps`?\n"),
        ('{"steps": "many"}', "error: Sft settings: `steps`: input should be a valid integer"),
        ('{"steps": 1', "error: --settings: neither JSON"),
        (
            "none.yaml",
            "error: none.yaml: no such config file; give the path of a YAML file, or a shipped config's name.\n",
        ),
    ],
)
def test_bad_settings_are_one_sentence(settings, sentence, capsys, tmp_path):
    arguments = ["--data", tmp_path, "--backbone", '{"architecture": "qwen2"}', "--out", tmp_path / "m"]
    assert run("sft", *arguments, "--settings", settings) == 2
    error = capsys.readouterr().err
    assert error.startswith(sentence) and error.count("\n") == 1


def test_the_stages_chain_by_hand(tmp_path):
    d, world = tmp_path / "data", WORLD.model_dump_json()
    assert run("data", "--settings", json.dumps({"world": json.loads(world), "iterations": 1}), "--out", d) == 0
    sft = ["--data", d / "sft.jsonl", "--backbone", '{"architecture": "llama", "layers": 1}', "--out", tmp_path / "sft"]
    assert run("sft", *sft, "--settings", '{"steps": 2, "batch_size": 4}') == 0
    principles = ["--queries", d / "queries1.jsonl", "--settings", "{}", "--world", world]
    assert run("principles", *principles, "--out", tmp_path / "p.jsonl") == 0
    assert len(read(tmp_path / "p.jsonl", Principles)) == 12
    drawn = ["--model", tmp_path / "sft", "--principles", tmp_path / "p.jsonl", "--settings", json.dumps(SAMPLING)]
    assert run("sample", *drawn, "--wrapper", "micro", "--out", tmp_path / "t.jsonl") == 0
    triples = read(tmp_path / "t.jsonl", Triple)
    assert len(triples) == 12 and all(t.second is not None for t in triples)
    # An untrained model repeats its last token: nothing is left for v1, which is a sentence and no file.
    v1 = [*drawn[:-1], json.dumps({**SAMPLING, "temperature": 0}), "--wrapper", "micro", "--distinct"]
    assert run("sample", *v1, "--out", tmp_path / "v.jsonl") == 2 and not (tmp_path / "v.jsonl").exists()
    v1[-4] = json.dumps({**SAMPLING, "temperature": 50, "max_new_tokens": 1, "top_p": 0.02})
    assert run("sample", *v1, "--out", tmp_path / "v.jsonl") == 0
    summary = json.loads(record_path(tmp_path / "v.jsonl").read_text())["summary"]
    equal = [count for name, count in summary.items() if "_equals_" in name]
    assert len(equal) == 3 and 0 < sum(equal) == 12 - len(read(tmp_path / "v.jsonl", Triple))
    scoring = json.dumps({"dtype": "float32", "max_length": 256})
    score = ["--model", tmp_path / "sft", "--objectives", "sso_v2,pairs", "--settings", scoring]
    assert run("reference", *score, "--data", tmp_path / "t.jsonl", "--out", tmp_path / "r.safetensors") == 0
    assert len(load(tmp_path / "r.safetensors").nodes) == 6
    training = {"objective": "sso_v2", "learning_rates": [1e-3], "batch_size": 4, "tokens_per_batch": 200}
    train = ["--model", tmp_path / "sft", "--data", tmp_path / "t.jsonl", "--reference", tmp_path / "r.safetensors"]
    exact = json.dumps({**training, "dtype": "float32", "max_length": 256})
    assert run("train", *train, "--settings", exact, "--out", tmp_path / "g") == 0
    assert json.loads((tmp_path / "g" / "tuning.json").read_text())["learning_rate"] == 1e-3
    record = json.loads((tmp_path / "g.run.json").read_text())
    assert record["status"] == "finished" and len(record["metrics"]) == 3
    other = json.dumps({**training, "dtype": "float32", "max_length": 200})
    assert run("train", *train, "--settings", other, "--out", tmp_path / "h") == 2
    assert not (tmp_path / "h").exists()
    assert run("pairs", "--triples", tmp_path / "t.jsonl", "--kind", "good_bad", "--out", tmp_path / "b.jsonl") == 0
    assert all(p.chosen != p.rejected for p in read(tmp_path / "b.jsonl", Pair))


def test_an_own_objective_with_the_contrasts_of_sso_v2_gives_its_very_weights(tiny_checkpoint, tmp_path, capsys):
    write(tmp_path / "t.jsonl", [triple(i) for i in range(8)])
    rows = [contrast.model_dump() for contrast in load_objectives()["sso_v2"]]
    only_plus = {"plus": rows[:1], "mine": rows}
    own_settings = {"dtype": "float32", "max_length": 256, "learning_rates": [1e-3], "batch_size": 4}
    files = ["--model", tiny_checkpoint, "--data", tmp_path / "t.jsonl"]
    both = json.dumps({**own_settings, "objectives": only_plus})
    score = ["reference", *files, "--settings", both, "--out", tmp_path / "r.safetensors", "--objectives"]
    assert run(*score, "plus") == 0 and len(load(tmp_path / "r.safetensors").nodes) == 2
    assert run(*score, "mine,plus,pairs") == 0 and len(load(tmp_path / "r.safetensors").nodes) == 6
    capsys.readouterr()
    assert run(*score, "mine,plusss") == 2
    assert capsys.readouterr().err == "error: unknown objective 'plusss'; did you mean `plus`?\n"
    made, printed = {}, {}
    frozen = ["--policy", tiny_checkpoint, "--reference", tiny_checkpoint, "--triples", tmp_path / "t.jsonl"]
    for name, own in {"sso_v2": {}, "mine": {"objectives": {"mine": rows}}, "plus": {"objectives": only_plus}}.items():
        settings = json.dumps({**own_settings, **own, "objective": name})
        train = ["train", *files, "--reference", tmp_path / "r.safetensors", "--settings", settings]
        assert run(*train, "--out", tmp_path / name) == 0
        made[name] = (tmp_path / name / "model.safetensors").read_bytes()
        capsys.readouterr()
        assert run("loss", *frozen, "--settings", settings, "--objective", name) == 0
        printed[name] = capsys.readouterr().out
    assert made["mine"] == made["sso_v2"] != made["plus"]
    assert printed["mine"] == printed["sso_v2"] != printed["plus"]
    assert json.loads((tmp_path / "mine.run.json").read_text())["settings"]["objectives"]["mine"] == rows
