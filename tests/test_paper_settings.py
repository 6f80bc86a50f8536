"""The paper's configs: where each value comes from, optimizers as the released scripts set them, pinned revisions."""

import argparse
import json
import re
from types import SimpleNamespace

import pytest
import yaml

from eval.answer import Checkpoint
from eval.settings import Evaluation
from rewardbench.cli import parser as rewardbench_parser
from rewardbench.settings import Reward
from sso import hub
from sso.cli import main
from sso.cli import parser as sso_parser
from sso.config import _pinned, load, parse
from sso.errors import InputError
from sso.records import Principles, Triple, write
from sso.settings import Backbone, read_yaml
from sso.train.settings import Optimization, Training
from tests.conftest import REPOSITORY
from workflow import doctor
from workflow.experiment import Grid
from workflow.hub_names import hub_names, repositories, unpinned

CONFIG = REPOSITORY / "config"
VERSIONS = ("v1", "v2")
COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


def values(version: str) -> dict:
    return read_yaml(CONFIG / f"paper_{version}.yaml")


def at(config: dict, key: str):
    for part in key.split("."):
        config = config[part]
    return config


# Where values come from.

ORIGIN = re.compile(r"(paper|released train script|released code|maintained code|RLHFlow's code|ours): \S")
STATED = {
    "v1": {"base_loss"},
    "v2": {"beta", "gamma", "learning_rates", "batch_size"},
}
"""What the paper says of a preference training."""
NAMES = {"label", "version", "method", "backbones", "use", "objective", "sources", "kind", "path", "wrapper"}
MACHINE = {
    "devices", "engine", "dtype", "gradient_checkpointing", "tokens_per_batch", "micro_batch_size", "save_steps",
    "tensor_parallel", "steps",
}  # fmt: skip
"""Memory and time, and `steps: -1`, which leaves the count to `epochs`."""
PAPERS = {
    "sampling.temperature", "sampling.top_p", "sampling.max_new_tokens", "data.queries", "data.generator_queries",
    "data.preferences", "trainings.policy_ipo.base_loss",
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_each_assumed_key_is_set_by_its_config_and_tells_its_origin(version):
    config = values(version)
    for key, why in config["assumed"].items():
        try:
            value = at(config, key)
        except (KeyError, TypeError):
            pytest.fail(f"assumed.{key}: the config does not set it")
        assert ORIGIN.match(why), key
        # A number that the sentence gives is that of the config.
        told = re.match(r"(?:released train script|maintained code|RLHFlow's code): \D*?(\d[\d.]*)", why)
        if told and not isinstance(value, list):
            assert float(told[1].rstrip(".")) == value, key


@pytest.mark.parametrize("version", VERSIONS)
def test_every_value_is_the_papers_or_assumed(version):
    config = values(version)
    assumed = config["assumed"]

    def told(section: str, name: str, key: str, value) -> bool:
        """Whether `assumed` names the key, or a sibling's with the same value, as YAML anchors give it."""
        return any(
            other.split(".")[0] == section and other.split(".")[-1] == key and at(config, other) == value
            for other in assumed
        )

    for section in ("trainings", "rewards", "writers"):
        for name, settings in config.get(section, {}).items():
            stated = STATED[version] if section == "trainings" else set()
            for key, value in settings.items():
                known = key in stated | NAMES | MACHINE or f"{section}.{name}.{key}" in PAPERS
                assert known or told(section, name, key, value), f"{section}.{name}.{key}"
    for section in ("sft", "principles", "sampling", "data"):
        for key, value in config.get(section, {}).items():
            known = key in NAMES | MACHINE or f"{section}.{key}" in PAPERS
            assert known or f"{section}.{key}" in assumed, f"{section}.{key}: {value}"


def test_v1_is_trained_as_its_released_script_says():
    experiment = load(CONFIG / "paper_v1.yaml")
    trainings = [arm.policy for arm in experiment.arms.values() if arm.policy]
    assert len(trainings) == 9
    for training in trainings:
        assert (training.beta, training.alpha, training.beta_g) == (0.2, 0.66, 0.1)
        assert (training.adam_beta1, training.adam_beta2, training.weight_decay) == (0.9, 0.95, 0.1)
        assert (training.max_length, training.warmup_ratio, training.epochs) == (2048, 0.1, 1)


def test_v2_is_trained_as_the_paper_says_and_else_as_the_maintained_code():
    experiment = load(CONFIG / "paper_v2.yaml")
    for arm in experiment.arms.values():
        for training, batch in ((arm.generator, 32), (arm.policy, 256)):
            if training:
                assert (training.beta, training.gamma, training.learning_rates) == (0.1, 0.1, [5e-7])
                assert training.batch_size == batch
                assert (training.weight_decay, training.warmup_ratio, training.max_length) == (0.1, 0.04, 2048)
                assert (training.adam_beta1, training.adam_beta2) == (0.9, 0.999)


@pytest.mark.parametrize("name", ["micro", "micro_tries", "smoke", "local_model"])
def test_small_worlds_keep_the_optimizer_that_they_had(name):
    values = read_yaml(CONFIG / f"{name}.yaml")
    text = json.dumps(values)
    assert not re.search("weight_decay|adam_|warmup|scheduler", text)
    plain = Optimization()
    assert (plain.weight_decay, plain.adam_beta1, plain.adam_beta2, plain.adam_epsilon) == (0, 0.9, 0.999, 1e-8)


# Optimizers.

HOW = {"weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-7}


@pytest.mark.parametrize("kind", [Training, Reward], ids=["preferences", "rewards"])
def test_betas_and_decay_reach_the_optimizer(kind, tiny_checkpoint, tmp_path):
    from transformers import AutoModelForCausalLM, Trainer

    from sso.train.run import training_arguments

    settings = kind(**HOW, dtype="float32", **({"label": "x"} if kind is Reward else {}))
    arguments = training_arguments(settings, 1e-3, 0, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    groups = Trainer(model=model, args=arguments).create_optimizer().param_groups
    assert {(group["betas"], group["eps"]) for group in groups} == {((0.8, 0.95), 1e-7)}
    assert sorted(group["weight_decay"] for group in groups) == [0, 0.1]
    decayed = next(group["params"] for group in groups if group["weight_decay"])
    spared = next(group["params"] for group in groups if not group["weight_decay"])
    assert all(p.ndim > 1 for p in decayed) and spared and all(p.ndim == 1 for p in spared)


def test_betas_and_decay_reach_deepspeeds_own_optimizer(tmp_path):
    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    from sso.jobs.distributed import deepspeed_config

    names = {"weight_decay": 0.1, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-7}
    arguments = TrainingArguments(output_dir=str(tmp_path), learning_rate=1e-3, use_cpu=True, **names)
    config = HfTrainerDeepSpeedConfig(deepspeed_config("zero3_offload"))
    config.trainer_config_process(arguments)
    made = config.config["optimizer"]["params"]
    assert made == {"lr": 1e-3, "betas": [0.8, 0.95], "eps": 1e-7, "weight_decay": 0.1}


# Revisions.


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_papers_configs_take_from_the_hub_is_pinned(version):
    experiment = load(CONFIG / f"paper_{version}.yaml")
    free = unpinned(experiment)
    # No public file told a commit of these; `sso pin` asks the hub.
    assert {name.partition("/")[0] for name in free} == {"BAAI", "Skywork"}
    known = repositories(hub_names(experiment))
    assert len(known) > 9 and all(re.fullmatch("[0-9a-f]{40}", of[1]) for name, of in known.items() if name not in free)
    told = [line for line in doctor.problems(Grid(experiment)) if line.startswith("revisions: ")]
    assert len(told) == 1 and all(name in told[0] for name in free) and "sso pin" in told[0]


def test_a_branch_is_no_pin():
    over = {"backbones": {"qwen2_instruct": {"path": "Qwen/Qwen2-7B-Instruct", "revision": "main"}}}
    assert unpinned(load(CONFIG / "paper_v2.yaml", over))["Qwen/Qwen2-7B-Instruct"] == "model"


def test_revisions_reach_the_jobs():
    given = {"BAAI/Infinity-Instruct-3M-0625-Llama3-8B": COMMIT, "Skywork/Skywork-Reward-Preference-80K-v0.2": OTHER}
    jobs = Grid(load(CONFIG / "paper_v2.yaml", {"revisions": given})).by_output
    cell = "results/paper_v2/llama3_sft/s0"
    assert jobs[f"{cell}/triples/v2/triples.jsonl"].params["model"].endswith(f"Llama3-8B@{COMMIT}")
    principles = jobs["results/paper_v2/principles/v2_1.jsonl"].params["options"]
    assert principles[1].startswith("Qwen/Qwen2.5-72B-Instruct@495f39366efe")
    mixture = jobs["results/paper_v2/llama3_instruct/s0/reward/skywork/pairs.jsonl"].params
    assert json.loads(mixture["settings"])["sources"][0]["path"].endswith(f"v0.2@{OTHER}")
    assert re.fullmatch("allenai/reward-bench@[0-9a-f]{40}", mixture["bench"])


def test_a_revision_is_taken_where_the_name_stands_and_none_is():
    names = {"a/model": COMMIT, "a/set": OTHER}
    config = {
        "list": ["a/model", "a/other"],
        "own": {"path": "a/model", "revision": "main"},
        "open": {"path": "a/model", "revision": None},
        "served": {"model": "a/model"},
        "file": "hf://datasets/a/set/folder/x.json",
        "fixed": "hf://datasets/a/set@main/x.json",
        "a/model": "a/model/x",
    }
    made = _pinned(config, names)
    assert made["list"] == [f"a/model@{COMMIT}", "a/other"]
    assert made["own"] == config["own"] and made["open"]["path"] == f"a/model@{COMMIT}"
    assert made["served"] == config["served"] and made["a/model"] == "a/model/x"
    assert made["file"] == f"hf://datasets/a/set@{OTHER}/folder/x.json" and made["fixed"] == config["fixed"]
    assert _pinned(made, names) == made  # as when a run's own config is read again


def test_a_local_copy_goes_before_a_revision(tmp_path):
    copy = str(tmp_path)
    over = {"local": {"Qwen/Qwen2-7B-Instruct": copy}}
    experiment = load(CONFIG / "paper_v2.yaml", over)
    assert experiment.backbones["qwen2_instruct"].path == copy


@pytest.mark.parametrize("commit", ["main", "0" * 39, "", 3])
def test_a_revision_is_a_commit(commit):
    with pytest.raises(InputError, match=r"`revisions.a/b`: "):
        parse({**values("v2"), "revisions": {"a/b": commit}}, "c")
    with pytest.raises(ValueError, match="`path` names a revision"):
        Backbone(path="a/b@main", revision=COMMIT)


@pytest.fixture
def stand_in(monkeypatch, tiny_checkpoint):
    """A hub that has one checkpoint under every name; keeps what it was asked for."""
    import huggingface_hub

    asked = []

    def download(repository, revision=None, allow_patterns=()):
        asked.append((repository, revision))
        return str(tiny_checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_a_model_at_a_revision_is_sampled_scored_and_evaluated(stand_in, tiny_checkpoint, tmp_path):
    model, settings = f"owner/name@{COMMIT}", {"dtype": "float32"}
    principle = Principles(id="a", prompt="Hello", good="Be brief.", bad="Be long.", writer="x")
    write(tmp_path / "p.jsonl", [principle])
    sampling = json.dumps({**settings, "max_new_tokens": 4})
    drawn = ["sample", "--model", model, "--principles", str(tmp_path / "p.jsonl"), "--settings", sampling]
    assert main([*drawn, "--wrapper", "micro", "--out", str(tmp_path / "t.jsonl")]) == 0
    row = Triple(
        id="a", prompt="Hello", system_good="g", system_bad="b", chosen="one", rejected="two", original="three"
    )
    write(tmp_path / "t.jsonl", [row])
    data, training = ["--data", str(tmp_path / "t.jsonl")], json.dumps(settings)
    scored = ["reference", "--model", model, *data, "--objectives", "sso_v2", "--settings", training]
    assert main([*scored, "--out", str(tmp_path / "r.safetensors")]) == 0
    loss = ["loss", "--policy", model, "--reference", model, "--triples", str(tmp_path / "t.jsonl")]
    assert main([*loss, "--objective", "sso_v2"]) == 0
    assert Checkpoint(model, Evaluation()).folder == tiny_checkpoint
    assert set(stand_in) == {("owner/name", COMMIT)} and len(stand_in) == 5


def test_every_option_that_names_a_checkpoint_takes_a_revision():
    wanted = {"--model", "--policy"}
    seen = 0
    for top in (sso_parser(), rewardbench_parser()):
        commands = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction)).choices
        for name, command in commands.items():
            for action in command._actions:
                # `sso train --reference` is a file of scores.
                model = wanted & {*action.option_strings} or (
                    "--reference" in action.option_strings and name != "train"
                )
                if model:
                    seen += 1
                    assert action.type is hub.checkpoint, (name, action.option_strings)
    assert seen >= 12


def test_a_data_set_at_a_revision(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or datasets.Dataset.from_dict({})
    )
    hub.rows(f"a/set@{COMMIT}", "train", subset="part")
    hub.rows("a/set", "train", revision=OTHER)
    hub.rows("a/set", "train")
    assert [(args, kwargs["revision"]) for args, kwargs in asked] == [
        (("a/set", "part"), COMMIT),
        (("a/set", None), OTHER),
        (("a/set", None), None),
    ]


def test_pin_tells_the_commits_of_today(monkeypatch, tmp_path, capsys):
    import huggingface_hub

    asked = []

    class Api:
        def repo_info(self, name, repo_type, timeout):
            asked.append((name, repo_type))
            if name == "a/gone":
                raise OSError("no such repository")
            return SimpleNamespace(sha=OTHER)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    file = str(CONFIG / "paper_v1.yaml")
    assert main(["pin", "--configfile", file]) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    before = values("v1")["revisions"]
    free = {
        "BAAI/Infinity-Instruct-7M-Gen-Llama3_1-8B": "model",
        "Skywork/Skywork-Reward-Preference-80K-v0.2": "dataset",
    }
    assert dict(asked) == free and made == {"revisions": {**before, **dict.fromkeys(free, OTHER)}}
    # It is what a config takes.
    (tmp_path / "pinned.yaml").write_text(yaml.safe_dump({"extends": file, **made}))
    assert unpinned(load(tmp_path / "pinned.yaml")) == {}
    asked.clear()
    assert main(["pin", "--configfile", file, "--update", "--out", str(tmp_path / "new.yaml")]) == 0
    assert ("lmsys/mt-bench", "space") in asked and len(asked) == len(set(asked)) == len(before) + 2
    assert set(yaml.safe_load((tmp_path / "new.yaml").read_text())["revisions"].values()) == {OTHER}
    # Another config on the way pins what it names.
    asked.clear()
    assert main(["pin", "--configfile", file, "--config", "data={queries: a/other}"]) == 0
    assert ("a/other", "dataset") in asked
    with pytest.raises(InputError, match="a/gone: neither here nor to be had from the hub"):
        hub.commits({"a/gone": "model"})
