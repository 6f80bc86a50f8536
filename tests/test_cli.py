"""The stages as plain commands: bad settings are one sentence, a small chain works by hand."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import yaml

from rewardbench.settings import Reward
from sso.cli import main
from sso.commands import described
from sso.commands.experiment import with_configs
from sso.errors import InputError
from sso.jobs.tracking import record_path
from sso.objective import load_objectives
from sso.records import Pair, Principles, Triple, read, write
from sso.reference import load
from sso.sampling.settings import Endpoint, Sampling, Writer
from sso.settings import ROOT
from sso.train.settings import Sft, Training
from sso.worlds.settings import MicroWorld
from tests.test_training import triple
from workflow import arguments

WORLD = MicroWorld(entities=30, sft_examples=60, train_queries=12, tune_queries=6, eval_queries=6, benchmark_items=4)
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
    assert run(*score[:-1]) == 0 and len(load(tmp_path / "r.safetensors").nodes) == 9
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["trian"], "sso: unknown command 'trian'; did you mean `train`?"),
        (["eval", "anwser"], "sso-eval: unknown command 'anwser'; did you mean `answer`?"),
        (["rewardbench", "scoer"], "sso-rewardbench: unknown command 'scoer'; did you mean `score`?"),
        (
            ["pairs", "--kind", "good_badd"],
            "sso pairs: argument --kind: unknown choice 'good_badd'; did you",
        ),
        (["train", "--modle", "m"], "sso train: unknown option --modle; did you mean `--model`?"),
        (["train", "--set", "beta=1", "--sed=2"], "sso train: unknown option --sed; did you mean `--seed`?"),
        (["--verison"], "sso: unknown option --verison; did you mean `--version`?"),
        (["sample", "--limit", "0"], "sso sample: argument --limit: '0', but must be 1 or more"),
        (["eval", "pairs", "--sample", "-3"], "sso-eval data-quality: argument --sample: '-3', but must be 1 or more"),
        (
            ["rewardbench", "best-of-n", "--n", "many"],
            "sso-rewardbench best-of-n: argument --n: 'many', but must be 1 or more",
        ),
        (
            ["rewardbench", "score", "--batch-size", "0"],
            "sso-rewardbench score: argument --batch-size: '0', but must be 1 or more",
        ),
        (["eval", "answer", "--answers-out", "f"], "sso-eval answer: unknown option --answers-out; "),
        (["rewardbench", "score", "--modl", "m"], "sso-rewardbench score: unknown option --modl; did you"),
        (["table", "--xyzzy"], "sso table: unknown option --xyzzy; see sso table --help."),
        (
            ["table", "--table", "1", "--version", "v3"],
            "sso table: argument --version: unknown choice 'v3'; known: v1, v2.",
        ),
        (["table", "--tabl", "1"], "sso table: unknown option --tabl; did you mean `--table`?"),
        (["plan", "--conf", "smoke"], "sso plan: unknown option --conf; did you mean `--config`?"),
        (["train"], "sso train: the following arguments are required: --model, --data, --out; see sso train --help."),
    ],
)
def test_an_unknown_command_is_one_sentence(given, said, capsys):
    with pytest.raises(SystemExit) as left:
        run(*given)
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.startswith(f"error: {said}") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([], "sso sft: give --settings or --set; `sso settings Sft` lists the keys."),
        (["--set", "stepps=1"], "Sft settings: unknown key `stepps`; did you mean `steps`?"),
        (["--set", "steps"], "--set: 'steps': give KEY=VALUE, as beta=0.2 or endpoint.model=NAME."),
        (["--set", "steps=[1"], "--set steps: not valid YAML: "),
        (["--settings", '{"steps": 1, "steps": 2}'], "--settings: `steps` stands twice; leave one out."),
        (["--set", "steps=1", "--set", "steps=2"], "--set: `steps` is given twice; leave one out."),
        (["--set", "steps=1", "--set", "lora={rank: 2}", "--set", "lora.rank=3"], "--set: `lora.rank` is given twice;"),
    ],
)
def test_bad_single_settings_are_one_sentence(settings, said, capsys, tmp_path):
    files = ["--data", tmp_path, "--backbone", '{"architecture": "qwen2"}', "--out", tmp_path / "m"]
    assert run("sft", *files, *settings) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1


def test_single_settings_lie_over_those_of_a_file(tmp_path):
    world = {**WORLD.model_dump(), "entities": 20}
    (tmp_path / "w.yaml").write_text(json.dumps({"world": world, "iterations": 2}))
    over = ["--set", "world.tune_queries=3", "--set", "iterations=1"]
    assert run("data", "--settings", tmp_path / "w.yaml", *over, "--out", tmp_path / "d") == 0
    settings = json.loads((tmp_path / "d.run.json").read_text())["settings"]
    assert (settings["world"]["tune_queries"], settings["world"]["entities"], settings["iterations"]) == (3, 20, 1)
    assert len((tmp_path / "d" / "tune.jsonl").read_text().splitlines()) == 3
    assert not (tmp_path / "d" / "queries2.jsonl").exists()


def test_settings_of_tuning_go_together_and_are_told_before_a_model_is_loaded(tmp_path, capsys):
    files = ["--model", tmp_path, "--data", tmp_path / "none.jsonl", "--out", tmp_path / "m", "--set", "beta=0.2"]
    assert run("train", *files, "--tune", tmp_path / "q.jsonl") == 2
    assert capsys.readouterr().err == (
        "error: sso train: --tune, --world, --sampling go together; give --world and --sampling, too, or none.\n"
    )
    assert run("train", *files, "--set", "objective=sso_v3") == 2
    assert "unknown objective 'sso_v3'; did you mean `sso_v2` or `sso_v1`?" in capsys.readouterr().err


def test_a_config_s_use_is_no_setting_of_a_command_and_loss_takes_the_settings_dtype(tiny_checkpoint, tmp_path, capsys):
    write(tmp_path / "t.jsonl", [triple(i) for i in range(2)])
    frozen = ["--policy", tiny_checkpoint, "--reference", tiny_checkpoint, "--triples", tmp_path / "t.jsonl"]
    said = []
    for more in (
        [],
        ["--set", "dtype=bfloat16"],
        ["--dtype", "bfloat16"],
        ["--set", "dtype=bfloat16", "--dtype", "float32"],
    ):
        assert run("loss", *frozen, "--objective", "sso_v2", *more) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[3] != said[1] == said[2]
    assert run("loss", *frozen, "--objective", "sso_v2", "--set", "use=policy") == 2
    assert "`use` names one of a config's `trainings`; give their keys here." in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error():
    """As `sso settings | head -1`."""
    command = subprocess.Popen(
        [sys.executable, "-m", "sso", "settings"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    command.stdout.close()
    _, told = command.communicate(timeout=60)
    assert (command.returncode, told) == (128 + 13, b"")


def test_every_key_of_what_commands_take_is_told(capsys):
    for kind in (Training, Sft, Sampling, Writer, Reward, Endpoint):
        assert run("settings", kind.__name__) == 0
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert [row[0] for row in rows] == list(kind.model_fields)
        assert [row[0] for row in rows if not row[3]] == []
    assert next(row[:3] for row in described.rows(Training) if row[0] == "beta") == ("beta", "float > 0", "0.1")
    # A default is what --set takes.
    defaults = {key: yaml.safe_load(default) for key, _, default, _ in described.rows(Training)}
    assert Training.model_validate(defaults) == Training()
    assert run("settings") == 0 and "\nTraining\tOne preference training" in capsys.readouterr().out
    assert run("settings", "Trainig") == 2 and "did you mean `Training`?" in capsys.readouterr().err


def test_help_of_each_command_with_settings_names_what_lists_them(capsys):
    commands = {
        "sft": "Sft",
        "principles": "Writer",
        "sample": "Sampling",
        "preferences": "Preferences",
        "data": "DataSource",
    }
    commands |= dict.fromkeys(["train", "reference", "loss"], "Training") | {"eval answer": "Evaluation"}
    commands |= {"eval judge": "Evaluation", "rewardbench train": "Reward", "rewardbench mix": "Mixture"}
    for command, kind in commands.items():
        with pytest.raises(SystemExit):
            run(*command.split(), "--help")
        assert f"`sso settings {kind}`" in " ".join(capsys.readouterr().out.split())
        assert kind in described.known()


@pytest.mark.parametrize("flag", ["--configfile", "--configfiles"])
def test_run_knows_shipped_configs_by_name(flag, tmp_path):
    smoke = str(ROOT / "config" / "smoke.yaml")
    assert with_configs(["-n", flag, "smoke", "--cores", "1"]) == ["-n", flag, smoke, "--cores", "1"]
    assert with_configs([f"{flag}=smoke", "smoke"]) == [f"{flag}={smoke}", "smoke"]
    (tmp_path / "mine.yaml").write_text("extends: smoke\n")
    both = [flag, "smoke", str(tmp_path / "mine.yaml")]
    assert with_configs(both) == [flag, smoke, str(tmp_path / "mine.yaml")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such config file; give the path of a YAML file, or a shipped config's name: did you mean `smoke`?"),
        (b"title: \xff\n", "not UTF-8 text (byte 7); save it as UTF-8."),
        (b"seeds: [1\n", "not valid YAML: "),
    ],
)
def test_run_tells_of_a_bad_config_before_snakemake_reads_it(text, said, tmp_path, capsys):
    if text is not None:
        (tmp_path / "smokes.yaml").write_bytes(text)
    assert run("run", "-n", "--configfile", tmp_path / "smokes.yaml") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/smokes.yaml: {said}") and error.count("\n") == 1


def test_the_config_for_a_local_model_says_how_it_is_given(capsys):
    assert run("plan", "--configfile", "local_model") == 2
    error = capsys.readouterr().err
    assert "no model: give `path`, a checkpoint (with config/local_model.yaml by `--config model=DIR" in error


OPEN = "a backbone `local` that has a `path`, as config/local_model.yaml; here give"


@pytest.mark.parametrize("command", ["plan", "doctor"])
@pytest.mark.parametrize(
    ("config", "given", "said"),
    [
        ("smoke", ["seeds=[0]", "seeds=[1]"], "--config: `seeds` stands twice; leave one out."),
        ("smoke", ["arms={sso: {label: A, label: B}}"], "--config arms: not valid YAML: `label` stands twice; leave"),
        ("smoke", ["model=DIR"], f"--config model=...: only for configs with {OPEN} `backbones={{NAME: {{path"),
        (
            "one_gpu",
            ["queries=q.jsonl"],
            f"--config queries=...: only for configs with {OPEN} `data={{queries: ...}}`.",
        ),
        ("smoke", ["jduge=x"], "--config: unknown key `jduge`; known keys: experiment, title,"),
        ("local_model", ["jduge=x"], "--config: unknown key `jduge`; did you mean `judge`?"),
        ("smoke", ["seeds"], "--config: ['seeds']: give KEY=VALUE pairs, as seeds=[0]"),
    ],
)
def test_plan_and_doctor_take_config_as_the_workflow_does(command, config, given, said, capsys):
    assert run(command, "--configfile", config, "--config", *given) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1


def test_plan_and_doctor_know_what_local_model_leaves_open(capsys):
    given = ["--configfile", "local_model", "--config", "model=/nope", "queries=/none.jsonl"]
    assert run("plan", *given) == 2 and "error: /nope: its size is unknown" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("doctor", *given)
    assert "/none.jsonl: no such file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["-n", "--config", "seeds=[0]", "seeds=[1]", "--cores", "1"], "`seeds` stands twice"),
        (["-C", "arms={sso: {label: A, label: B}}"], "`label` stands twice"),
        (["--config=seeds=[0]", "title=A", "-n", "--config", "title=B"], "--config is given twice"),
        (["-n", "--config", "title=a: b", "seeds=[0]", "--", "title=c", "title=c"], None),
    ],
)
def test_what_snakemake_would_take_twice_is_refused(given, said):
    with pytest.raises(InputError, match=said) if said else nullcontext():
        arguments.check(given)


@pytest.mark.parametrize("command", ["train", "reference", "loss"])
def test_an_objective_that_the_records_cannot_have_is_told_before_a_model_is_loaded(
    command, tiny_checkpoint, tmp_path, capsys, monkeypatch
):
    write(tmp_path / "p.jsonl", [Pair(id="a", prompt="Tell me.", chosen="x", rejected="y", source="good_bad")])

    def load_model(*_, **__):
        raise AssertionError("a model was loaded")

    for place in ("sso.chat.load_model", "sso.reference.load_start"):
        monkeypatch.setattr(place, load_model)
    single = ["--set", "dtype=float32"]
    model, data = str(tiny_checkpoint), ["--data", tmp_path / "p.jsonl"]
    given = {
        "train": ["--model", model, *data, "--set", "objective=sso_v2", "--out", tmp_path / "m"],
        "reference": ["--model", model, *data, "--objectives", "pairs,sso_v2", "--out", tmp_path / "r.safetensors"],
        "loss": ["--policy", model, "--reference", model, "--triples", data[1], "--objective", "sso_v2"],
    }
    assert run(command, *given[command], *single) == 2
    assert "record 'a': a pair has no y+ in x+; this objective needs triples." in capsys.readouterr().err


WRITERS = {
    "data": ["--set", "world.kind=micro"],
    "pairs": ["--triples", "x", "--kind", "good_bad"],
    "reference": ["--data", "x", "--objectives", "pairs"],
    "train": ["--data", "x", "--set", "beta=1"],
    "eval judge": ["--answers", "x", "--data", "x", "--set", "judged=[]"],
    "eval data-quality": ["--pairs", "x", "--reference", "x", "--set", "kind=oracle"],
    "rewardbench train": ["--pairs", "x", "--set", "epochs=1"],
    "rewardbench mix": ["--bench", "x", "--set", "ngram=13"],
}
FOLDERS = ("data", "train", "eval judge", "rewardbench train")


@pytest.mark.parametrize("command", WRITERS)
def test_what_cannot_be_written_is_told_before_anything_is_loaded(command, tiny_checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    model = ["--model", tiny_checkpoint] if command in ("reference", "train", "rewardbench train") else []
    for out, said in (
        (tmp_path / "file" / "m", f"nothing can be written in {tmp_path}/file (Not a directory); write elsewhere."),
        ("/proc/m", "nothing can be written in /proc ("),
        (
            (tmp_path / "file", "no folder, but a file; give another name.")
            if command in FOLDERS
            else (tmp_path, "a folder stands there; give the name of a file.")
        ),
    ):
        assert run(*command.split(), *model, *WRITERS[command], "--out", out) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {out}: {said}") and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["train", "--model", "/nope", *WRITERS["train"]], "/nope: no such folder; give a checkpoint's folder or its"),
        (["chat", "--model", "./nope"], "./nope: no such folder; give a checkpoint's folder or its name on the hub."),
        (["eval", "answer", "--model", "no/pe/at", "--suite", "v1"], "no/pe/at: no such folder; give a checkpoint's"),
        (
            ["loss", "--policy", "/", "--reference", "/", "--triples", "x", "--objective", "sso_v3"],
            "sso loss: --objective: unknown objective 'sso_v3'; did you mean `sso_v2` or `sso_v1`?",
        ),
        (
            [
                "loss",
                "--policy",
                "/",
                "--reference",
                "/",
                "--triples",
                "x",
                "--objective",
                "pairs",
                "--max-length",
                "0",
            ],
            "sso loss: --max-length: input should be greater than",
        ),
    ],
)
def test_a_model_that_is_not_there_and_a_bad_option_are_named(given, said, tmp_path, capsys):
    out = [] if given[0] in ("chat", "loss") else ["--out", tmp_path / "m"]
    assert run(*given, *out) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1


def test_what_is_written_can_be_read_by_whom_the_umask_lets(tiny_checkpoint, tmp_path):
    write(tmp_path / "t.jsonl", [triple(i) for i in range(2)])
    files = ["--model", tiny_checkpoint, "--data", tmp_path / "t.jsonl", "--out", tmp_path / "shared" / "m"]
    before = os.umask(0o027)
    try:
        assert run("train", *files, "--settings", '{"max_steps": 1, "dtype": "float32", "max_length": 256}') == 0
    finally:
        os.umask(before)
    made = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "shared").rglob("*")}
    assert {"model.safetensors", "config.json", "m.reference.safetensors", "m.run.json"} <= made.keys()
    assert made.pop("m") == 0o750 and set(made.values()) == {0o640}
