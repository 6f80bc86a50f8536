"""Config and records: one sentence for bad input, defaults that hold."""

import json
import math
import re
import subprocess
import sys

import pytest
import yaml

from sso.config import load, parse
from sso.errors import InputError
from sso.jobs.command import settings as as_settings
from sso.objective import load_objectives
from sso.records import Query, Triple, read, write
from sso.settings import ROOT, merge, read_yaml
from sso.train.settings import Training
from workflow import experiment as experiments
from workflow.shared import text

MICRO = ROOT / "config" / "micro.yaml"
OWN = {"mine": [{"context": "x+", "winner": "y+", "loser": "y-", "sft": "gamma"}]}
USED = {"sso": {"generator": {"objective": "mine"}}}


def with_own(**contrast) -> dict:
    """MICRO with an own objective, one key of whose contrast is changed."""
    return {"objectives": {"mine": [OWN["mine"][0] | contrast]}, "arms": USED}


@pytest.mark.parametrize("name", ["micro", "micro_base", "micro_full", "micro_base_full", "micro_uniform", "smoke"])
def test_shipped_configs_load(name):
    experiment = load(ROOT / "config" / f"{name}.yaml")
    assert experiment.experiment == name and experiment.arms["sso"].generator.objective == "sso_v2"


def test_full_is_the_arms_of_micro_on_seeds_that_no_earlier_figure_is_from():
    micro, full = load(MICRO), load(ROOT / "config" / "micro_full.yaml")
    assert len(full.seeds) == 5 and not {*range(5), 10, 11} & {*full.seeds}
    assert all(full.arms[name] == arm for name, arm in micro.arms.items() if arm.version == "v2" and arm.policy)
    assert {arm.evaluation.get("samples", full.evaluation.samples) for arm in full.arms.values()} == {4}
    base = load(ROOT / "config" / "micro_base_full.yaml")
    own = {"experiment": full.experiment, "title": full.title, "world": full.world}
    assert base.world.name == "base" and base.model_copy(update=own) == full


@pytest.mark.parametrize("name", ["micro", "micro_full", "micro_uniform"])
def test_every_policy_of_a_version_has_the_same_tries(name):
    arms = load(ROOT / "config" / f"{name}.yaml").arms
    tries = {(a.version, tuple(a.policy.learning_rates)) for n, a in arms.items() if a.policy and n != "flawless"}
    assert len(tries) == 2
    if "flawless" in arms:  # another loss, so other rates, but as many
        assert len(arms["flawless"].policy.learning_rates) == len(arms["sso"].policy.learning_rates)


def test_a_named_setting_is_where_an_arm_starts_from():
    arms = load(MICRO, {"arms": {"sso": {"policy": {"beta": 0.7}}}}).arms
    assert arms["sso"].policy.beta == 0.7 and arms["pbaa"].policy.beta == 1.0
    assert arms["sso"].policy.learning_rates == arms["pbaa"].policy.learning_rates


def test_defaults_are_the_papers():
    paper = Training()
    assert (paper.beta, paper.gamma, paper.lambda_minus, paper.alpha, paper.beta_g) == (0.1, 0.1, 1.0, 0.5, 0.1)
    assert paper.learning_rates == [5e-7]


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ({"arms": {"sso": {"policy": {"betta": 1}}}}, r"unknown key `arms.sso.policy.betta`; did you mean `beta`\?"),
        ({"sedes": [1]}, r"unknown key `sedes`; did you mean `seeds`\?"),
        (
            {"arms": {"sso": {"generator": {"objective": "sso_v3"}}}},
            r"`arms.sso.generator.objective`: unknown objective 'sso_v3'; did you mean `sso_v2` or `sso_v1`\?",
        ),
        ({"arms": {"sso": {"generator": {"objective": "kto"}}}}, "unknown objective 'kto'; known: pairs, l_plus"),
        ({"trainings": {"policy": {"objective": "pair"}}}, r"`trainings.policy.objective`: .*did you mean `pairs`\?"),
        ({"trainings": {"policy": {"base_loss": "dop"}}}, r"`trainings.policy.base_loss`: .*did you mean `dpo`\?"),
        ({"arms": {"sso": {"policy": {"base_loss": "ippo"}}}}, r"`arms.sso.policy.base_loss`: .*mean `ipo`\?"),
        ({"arms": {"sso": {"policy": {"layout": "padde"}}}}, r"`arms.sso.policy.layout`: .*did you mean `padded`\?"),
        ({"rewards": {"sso": {"arm": "ssso"}}}, r"rewards.sso.arm: unknown arm 'ssso'; did you mean `sso`\?"),
        ({"arms": {"sso": {"policy": {"use": "polcy"}}}}, r"no such training 'polcy' .*did you mean `policy`\?"),
        ({"arms": {"sso": {"backbones": ["qwen"]}}}, r"unknown backbone 'qwen'; did you mean `qwen2`\?"),
        ({"arms": {"sso": {"writer": "weak"}}}, "no such writer 'weak' in `writers`; known: none."),
        (with_own(sft="gama"), r"`objectives.mine.0.sft`: unknown weight 'gama'; did you mean `gamma`\?"),
        (with_own(weight="lamda_minus"), r"`objectives.mine.0.weight`: .*'lamda_minus'; did you mean `lambda_minus`\?"),
        (with_own(winner="y"), r"`objectives.mine.0.winner`: .*did you mean `y\+` or `y-` or `yo`\?"),
        (with_own(contxt="x"), r"unknown key `objectives.mine.0.contxt`; did you mean `context`\?"),
        ({"objectives": {"mine": []}}, "`objectives.mine`: list should have at least 1 item"),
        ({"objectives": {"mi,ne": OWN["mine"]}}, "`objectives.mi,ne"),
        ({"objectives": {"sso_v2": OWN["mine"]}}, "`objectives`: 'sso_v2' is an objective of config/objectives.yaml;"),
        (
            {"objectives": OWN, "arms": {"sso": {"generator": {"objective": "mime"}}}},
            r"`arms.sso.generator.objective`: unknown objective 'mime'; did you mean `mine`\?",
        ),
        (
            {"arms": {"sso": {"generator": {"objectives": OWN}}}},
            "arms.sso.generator.objectives: an experiment's own objectives stand at its top, in `objectives`",
        ),
        ({"arms": {"sso": {"policy": {"beta": -1}}}}, r"`arms.sso.policy.beta`: input should be greater than 0"),
        (
            {"evaluation": {"judged": ["steering"], "judges": {"steering": {"kind": "openai", "model": "m"}}}},
            "steering is measured by the oracle",
        ),
        ({"world": {"queries": "zip"}}, r"`world.queries`: .*did you mean `zipf`"),
        ({"data": {"queries": "q.jsonl"}}, "either `world` .* or `data.queries`"),
        ({"experiment": "../up"}, "`experiment`: give letters, digits and `_.-` only, and begin with a letter or a d"),
        ({"revisions": {"a/b": "main"}}, "`revisions.a/b`: give a commit, 40 of the digits 0-9 and a-f"),
        ({"sampling": {"endpoint": {"model": "m", "key_variable": "a b"}}}, "key_variable`: give the name of an env"),
        ({"trainings": {"polcy": {"beta": 0.2}}}, r"`trainings.polcy`: no arm uses it; did you mean `policy`\?"),
        ({"trainings": {"low": {"beta": 0.2}}}, "`trainings.low`: no arm uses it; let one `use` it, or leave it out"),
        ({"arms": {"soo": None}}, r"`arms.soo: null` takes away what is not there; did you mean `sso`\?"),
        ({"rewards": {"soo": None}}, r"`rewards.soo: null` takes away what is not there; did you mean `sso`\?"),
        ({"arms": {"sso": {"method": "ssoo"}}}, r"arms.sso.method: the paper's v2 has no 'ssoo'; did you mean `sso`\?"),
        ({"arms": {"sso_v1": {"method": "l_plus"}}}, "arms.sso_v1.method: the paper's v1 has no 'l_plus'; known: base"),
        ({"rewards": {"sso": {"method": "mix"}}}, "rewards.sso.method: the paper's v2 has no 'mix'; .*null where it h"),
        ({"seeds": [0, 1, 0]}, "seeds: 0 stands twice"),
        *(
            ({"arms": {"sso": {"policy": own}}}, said)
            for own, said in (
                ({"learning_rates": [-1]}, "learning_rates.0`: input should be greater than 0"),
                ({"learning_rates": [1e-3, 1e-3]}, "has one twice; leave one out"),
                ({"scheduler": "cosin"}, "scheduler`: transformers has no 'cosin'; did you mean `cosine`"),
                (
                    {"optimizer": "adamw_torc"},
                    "optimizer`: transformers has no 'adamw_torc'; did you mean",
                ),
                ({"max_steps": 0}, "max_steps`: give 1 or more, or -1"),
                ({"max_grad_norm": -1}, "max_grad_norm`: input should be greater than or equal to 0"),
                ({"beta": math.inf}, "beta`: input should be a finite number"),
            )
        ),
        ({"data": {"limit": 3}}, "data.limit: a world makes its own prompts and pairs; see the sizes in `world`"),
        ({"data": {"preferences": {"path": "nope"}}}, "data.preferences: a world makes its own prompts and pairs"),
        (
            {"arms": {"sso_v1": {"offline": True, "iterations": 1}}},
            "arms.sso_v1.offline: in a world no job",
        ),
        ({"seeds": [-1]}, "`seeds.0`: input should be greater than or equal to 0"),
        (with_own(winner="y-"), "`objectives.mine.0`: y- is both winner and loser; a contrast needs two responses"),
        ({"evaluation": {"tasks": None}}, r"`evaluation.tasks: null`: give a list, `\[\]` where nothing is asked"),
        ({"arms": {"sso": {"evaluation": {"judged": None}}}}, "`evaluation.judged: null`: give a list"),
        ({"arms": {"sso": {"evaluation": {"task": []}}}}, r"arms.sso.evaluation: unknown key `task`; .*`tasks`\?"),
        ({"backbones": {"llama": {"evaluation": {"task": []}}}}, "backbones.llama.evaluation: unknown key `task`"),
        ({"evaluation": {"judge": {"kind": "reward"}}}, "`evaluation.judge`: `kind: reward` needs `path`"),
        ({"evaluation": {"judge": {"path": "m"}}}, "the judge is of `kind: oracle`; leave one out"),
        ({"evaluation": {"judges": {"mt_bench": {"kind": "openai"}}}}, "judges.mt_bench: `kind: openai` needs `model`"),
        ({"rewards": {"sso": {"version": "v1"}}}, "rewards.sso.version: its arms are of v2; give `version: v2`"),
        *(
            ({"arms": {"sso": {"evaluation": own}}}, f"evaluation.{key}: one for all, so arm 'sso' and 'qwen2' can't")
            for key, own in {
                "rewardbench": {"rewardbench": "mine.jsonl"},
                "files": {"files": {"reference": "mine.json"}},
                "judge": {"judge": {"pairs": 9}},
            }.items()
        ),
        ({"arms": {"sso": 3}}, "`arms.sso`: must be a mapping, `key: value`, of the keys of Arm"),
    ],
)
def test_a_bad_key_is_one_sentence(over, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        load(MICRO, over)
    assert str(MICRO) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"seeds: [1]\nseeds: [2]\n", r"`seeds` stands twice; leave one out at line 2, column 1"),
        (b"arms: {sso: {label: a, label: b}}\n", "`label` stands twice; leave one out at line 1, column 24"),
        (b"seeds: [1\n", "not valid YAML: while parsing a flow sequence at line 1, column 8"),
        (b"title: \xff\n", r"not UTF-8 text \(byte 7\); save it as UTF-8"),
    ],
)
def test_what_is_no_plain_yaml_is_told_of_configs_and_of_settings(tmp_path, text, sentence):
    (tmp_path / "c.yaml").write_bytes(text)
    for read_it in (load, as_settings(Training)):
        with pytest.raises(InputError, match=f"c.yaml: .*{sentence}"):
            read_it(str(tmp_path / "c.yaml"))


def test_a_key_that_a_merge_brings_may_be_said_again(tmp_path):
    (tmp_path / "c.yaml").write_text("a: &a {beta: 0.1, gamma: 1}\nb: {<<: *a, beta: 0.3}\n")
    assert read_yaml(tmp_path / "c.yaml")["b"] == {"beta": 0.3, "gamma": 1}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", r"q.jsonl:1: not valid JSON"),
        ("[1]", r"q.jsonl:1: a list, but every line must be a JSON object"),
        ('{"text": "a"}', r"q.jsonl:1: `prompt`: field required"),
        ('{"prompt": []}', r"q.jsonl:1: `prompt`: list should have at least 1 item"),
        ('{"prompt": [{"role": "robot", "content": ""}]}', r"q.jsonl:1: `prompt.0.role`"),
        ('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}', r"q.jsonl:2: id 'a' stands in line 1 too"),
        ("", "holds no record"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, sentence):
    (tmp_path / "q.jsonl").write_text(line)
    with pytest.raises(InputError, match=sentence):
        read(tmp_path / "q.jsonl", Query)
    with pytest.raises(InputError, match=r"none.jsonl: no such file"):
        read(tmp_path / "none.jsonl", Query)
    (tmp_path / "l.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(InputError, match=r"l.jsonl:1: not UTF-8"):
        read(tmp_path / "l.jsonl", Query)


def test_records_round_trip_and_strings_are_prompts(tmp_path):
    rows = [
        Triple(id="1", prompt="Hi\u2028there", system_good="g", system_bad="b", chosen="c", rejected="r", original="o")
    ]
    write(tmp_path / "t.jsonl", rows)
    assert read(tmp_path / "t.jsonl", Triple) == rows
    assert json.loads((tmp_path / "t.jsonl").read_text())["prompt"][0]["role"] == "user"


def test_an_own_objective_is_carried_by_the_trainings_that_name_it_and_by_no_other():
    plain = load(ROOT / "config" / "smoke.yaml")
    given = {"objectives": {**OWN, "unused": OWN["mine"]}, "arms": USED, "trainings": {"own": {"objective": "mine"}}}
    experiment = parse(merge(read_yaml(ROOT / "config" / "smoke.yaml"), given), "first layer")
    assert json.loads(text(experiment.arms["sso"].generator))["objectives"] == {
        "mine": [{**OWN["mine"][0], "weight": 1.0, "on_policy_weight": False}]
    }
    assert experiment.trainings["own"].objectives.keys() == {"mine"}
    for name, arm in experiment.arms.items():
        for stage in ("generator", "policy"):
            if (name, stage) != ("sso", "generator"):
                assert getattr(arm, stage) == getattr(plain.arms[name], stage)
    # What results/<experiment>/config.json holds is read again.
    assert parse(json.loads(text(experiment)), "config.json") == experiment


def test_an_arm_may_leave_the_own_objective_of_its_named_training():
    given = {"objectives": OWN, "trainings": {"own": {"objective": "mine"}}}
    arms = {
        "sso": {"generator": {"use": "own", "objective": None}},
        "l_plus": {"generator": {"use": "own", "objective": "l_plus"}},
    }
    experiment = load(MICRO, {**given, "arms": arms})
    assert experiment.arms["sso"].generator.objectives.keys() == {"mine"}
    assert not experiment.arms["l_plus"].generator.objectives
    assert parse(json.loads(text(experiment)), "config.json") == experiment


def test_without_own_objectives_settings_read_as_they_always_did():
    for settings in (Training(objective="sso_v2"), load(MICRO)):
        assert '"objectives"' not in text(settings) + settings.model_dump_json()


def test_numbers_of_an_own_objective_may_come_as_text_from_a_command_line():
    assert load(MICRO, with_own(weight="0.5")).objectives["mine"][0].weight == 0.5


def test_a_mistake_in_the_shipped_objectives_is_told_by_every_config(tmp_path, monkeypatch):
    (tmp_path / "config").mkdir()
    file = tmp_path / "config" / "objectives.yaml"
    monkeypatch.setattr("sso.objective.ROOT", tmp_path)
    load_objectives.cache_clear()
    try:
        for row, said in {
            "winner: y+, sft: gama": "`mine.0.sft`: unknown weight 'gama'; did you mean `gamma`?",
            "winer: y+": "unknown key `mine.0.winer`; did you mean `winner`?",
        }.items():
            file.write_text(f"mine: [{{context: x, loser: y-, {row}}}]")
            with pytest.raises(InputError) as caught:
                load(MICRO)
            assert str(caught.value) == f"{file}: {said}"
    finally:
        load_objectives.cache_clear()


def test_reading_a_config_loads_no_torch():
    code = "import sys, sso.config; sso.config.load('config/micro.yaml'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    "name", ["smoke", "smoke.yaml", "config/smoke.yaml", str(ROOT / "config" / "smoke.yaml"), "../up/base.yaml"]
)
def test_a_config_anywhere_extends_any_other(tmp_path, monkeypatch, name):
    for folder in ("here", "up", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "up" / "base.yaml").write_text("extends: middle.yaml\n")
    (tmp_path / "up" / "middle.yaml").write_text("extends: config/smoke.yaml\n")
    (tmp_path / "here" / "mine.yaml").write_text(f"extends: {name}\nexperiment: mine\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    smoke = load(ROOT / "config" / "smoke.yaml")
    assert load("../here/mine.yaml") == smoke.model_copy(update={"experiment": "mine"})


def test_a_file_beside_a_config_comes_before_a_shipped_one(tmp_path):
    (tmp_path / "smoke.yaml").write_text("extends: micro\nexperiment: beside\n")
    (tmp_path / "mine.yaml").write_text("extends: smoke.yaml\n")
    assert load(tmp_path / "mine.yaml").experiment == "beside"


def test_extends_that_leads_nowhere_or_in_a_circle_is_one_sentence(tmp_path):
    for name, parent in {"a": "b.yaml", "b": "c.yaml", "c": "a.yaml", "d": "smok", "e": "[a]"}.items():
        (tmp_path / f"{name}.yaml").write_text(f"extends: {parent}\n")
    for name, said in {
        "a": r"a.yaml: `extends` leads back to the file itself \(a.yaml -> b.yaml -> c.yaml -> a.yaml\); leave one of "
        r"them out\.",
        "d": r"d.yaml: `extends: smok`: no such file beside it and no such shipped config; did you mean `smoke`\?",
        "e": r"e.yaml: `extends`: must be the path of a file, relative to this one, or a shipped config's name\.",
    }.items():
        with pytest.raises(InputError, match=f"{said}$"):
            load(tmp_path / f"{name}.yaml")


def test_the_example_of_the_docs_is_a_config(tmp_path):
    text = (ROOT / "docs" / "training.md").read_text()
    example = re.search(r"## Own objectives.*?```yaml\n(.*?)```", text, re.DOTALL)[1]
    (tmp_path / "mine.yaml").write_text(example)
    experiment = experiments.load([tmp_path / "mine.yaml"], {})
    assert experiment.arms["sso"].generator.objectives == experiment.objectives
    assert len(yaml.safe_load(example)["objectives"]["plus_and_original"]) == 2
