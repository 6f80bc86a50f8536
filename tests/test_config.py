"""Config and records: one sentence for bad input, defaults that hold."""

import json

import pytest

from sso.config import load
from sso.errors import InputError
from sso.records import Query, Triple, read, write
from sso.settings import ROOT
from sso.train.settings import Training

MICRO = ROOT / "config" / "micro.yaml"


@pytest.mark.parametrize("name", ["micro", "micro_base", "micro_full", "micro_base_full", "smoke"])
def test_shipped_configs_load(name):
    experiment = load(ROOT / "config" / f"{name}.yaml")
    assert experiment.experiment == name and experiment.arms["sso"].generator.objective == "sso_v2"


def test_full_is_micro_with_more_seeds():
    micro, full = load(MICRO), load(ROOT / "config" / "micro_full.yaml")
    assert full.seeds == [0, 1, 2, 3, 4]
    assert full.model_copy(update={"seeds": micro.seeds, "experiment": micro.experiment}) == micro


def test_every_policy_has_the_same_number_of_tries():
    arms = load(MICRO).arms.values()
    assert len({len(a.policy.learning_rates) for a in arms if a.policy}) == 1


def test_a_named_setting_is_where_an_arm_starts_from():
    arms = load(MICRO, {"arms": {"sso": {"policy": {"beta": 0.7}}}}).arms
    assert arms["sso"].policy.beta == 0.7 and arms["pbaa"].policy.beta == 0.1
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
        ({"arms": {"sso": {"generator": {"objective": "sso_v9"}}}}, "unknown objective 'sso_v9'; known: pairs"),
        ({"rewards": {"sso": {"arm": "ssso"}}}, "unknown arm 'ssso'; known: base, pbaa"),
        ({"arms": {"sso": {"policy": {"use": "polly"}}}}, "no such training 'polly'"),
        ({"arms": {"sso": {"policy": {"beta": -1}}}}, r"`arms.sso.policy.beta`: input should be greater than 0"),
        ({"data": {"queries": "q.jsonl"}}, "either `world` .* or `data.queries`"),
        ({"experiment": "../up"}, "`experiment`"),
    ],
)
def test_a_bad_key_is_one_sentence(over, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        load(MICRO, over)
    assert str(MICRO) in str(caught.value) and "\n" not in str(caught.value)


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
