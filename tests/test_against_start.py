"""Own prompts, own judge: which rows are held out, who is compared with the starting model, and what comes of it."""

import json
from pathlib import Path

import pytest

from eval.benchmarks.against_start import answer, items, judge
from eval.cli import main
from eval.judge import ScoringJudge
from eval.settings import Evaluation
from eval.settings import Judge as JudgeSettings
from sso import hub
from sso.cli import main as sso
from sso.errors import InputError
from sso.records import Answer, Query, read, write
from sso.settings import Data
from tests.conftest import REPOSITORY
from tests.openai_server import serving
from workflow import experiment as experiments
from workflow.check import check
from workflow.costs import Costs
from workflow.experiment import Grid

LOCAL = REPOSITORY / "config" / "local_model.yaml"
ENDPOINT = {"kind": "openai", "model": "j"}


def grid(**given) -> Grid:
    return Grid(experiments.load([LOCAL], {"model": "DIR", "queries": "prompts.jsonl", **given}))


def said(*outputs: str, prompt: str = "Do {}.") -> list[Answer]:
    return [Answer(id=str(i), prompt=prompt.format(i), output=text, model="m") for i, text in enumerate(outputs)]


class Longest(ScoringJudge):
    """The longer answer is the better one."""

    name, scale = "longest", "reward"

    def scores(self, items):
        return [float(len(answer)) for _, answer in items]


def verdicts(tmp_path: Path, ours: list[Answer], start: list[Answer]):
    write(tmp_path / "start.jsonl", start)
    return judge(Longest(), JudgeSettings(), ours, {"against": tmp_path / "start.jsonl"})


# Which prompts.


def test_rows_that_are_trained_on_are_never_held_out(tmp_path):
    """Nor is a row whose prompt is trained on, or held out already, under another id."""
    prompts = ["a", "b", "a", " b\n", "c", "d", "c", "e", "f"]
    write(tmp_path / "q.jsonl", [{"prompt": text} for text in prompts])
    settings = {"data": {"queries": str(tmp_path / "q.jsonl"), "limit": 2, "held_out": 3}}
    assert sso(["data", "--settings", json.dumps(settings), "--out", str(tmp_path / "data")]) == 0
    texts = {
        name: [query.prompt[0].content for query in read(tmp_path / f"data/{name}.jsonl", Query)]
        for name in ("queries1", "queries_all", "held_out")
    }
    assert texts == {"queries1": ["a", "b"], "queries_all": ["a", "b"], "held_out": ["c", "d", "e"]}
    summary = json.loads((tmp_path / "data.run.json").read_text())["summary"]
    assert (summary["queries"], summary["held_out"]) == (2, 3)


def test_rows_of_the_hub_are_held_out_too(monkeypatch):
    from datasets import Dataset

    monkeypatch.setattr(hub, "rows", lambda *_: Dataset.from_dict({"prompt": ["a", "a", "b", "", "c", "d", "e"]}))
    trained, held_out = hub.queries(Data(queries="o/set", limit=2, held_out=2))
    assert [q.prompt[0].content for q in trained + held_out] == ["a", "b", "c", "d"] and len(held_out) == 2
    assert hub.queries(Data(queries="o/set"))[1] == []


def test_too_few_rows_are_told_before_any_work_and_only_where_they_are_asked(tmp_path, tiny_checkpoint):
    write(tmp_path / "q.jsonl", [{"prompt": f"Do {i}."} for i in range(20)])
    given = {"model": str(tiny_checkpoint), "queries": str(tmp_path / "q.jsonl")}
    sentence = (
        r"q.jsonl: `data.held_out` takes 8 prompts, but 4 others stand behind the first 16; give more, or a smaller"
    )
    with pytest.raises(InputError, match=sentence):
        check(experiments.load([LOCAL], {**given, "judge": ENDPOINT}))
    check(experiments.load([LOCAL], given))
    check(experiments.load([LOCAL], {**given, "judge": ENDPOINT, "data": {"held_out": 4}}))


# Which jobs.


@pytest.mark.parametrize("given", [{"judge": ENDPOINT}, {"judge": "RM"}, {"evaluation": {"judge": ENDPOINT}}])
def test_with_a_judge_every_policy_is_compared_with_the_checkpoint(given):
    made = grid(**given)
    base = "results/local_model/local/s0/eval/base/answers"
    held_out = "results/local_model/data/held_out.jsonl"
    assert [job.arm for job in made.of("answer") if job.inputs["data"] == [held_out]] == ["base", "pbaa", "sso"]
    assert held_out in next(iter(made.of("data"))).outputs
    for job in made.of("judge"):
        judged = json.loads(job.params["settings"])["judged"]
        if job.arm == "base":
            assert (judged, job.params["options"], "against" in job.inputs) == ([], [], False)
        else:
            assert (judged, job.inputs["against"]) == (["against_start"], base)
            assert job.params["options"] == ["--against", base]


def test_without_a_judge_nobody_is_asked_and_a_later_judge_changes_no_training():
    before, after = grid(), grid(judge=ENDPOINT)
    assert all(job.settings.judged == [] for job in [*before.of("answer"), *before.of("judge")])
    assert all(job.settings.judged == [] for job in grid(judge=ENDPOINT, evaluation={"judged": []}).of("judge"))
    changed = {job.rule for job in after if before.by_output[job.output].params != job.params}
    assert changed == {"config", "answer", "judge", "data_quality"}


def test_a_judge_of_the_command_line_is_a_reward_model_or_settings():
    assert grid(judge="o/model").experiment.evaluation.judge == JudgeSettings(kind="reward", path="o/model")
    assert grid(judge=ENDPOINT).experiment.evaluation.judge == JudgeSettings(**ENDPOINT)


def test_the_plan_counts_both_orders_of_the_held_out_prompts():
    made = grid(judge=ENDPOINT, data={"held_out": 5}, model="Qwen/Qwen2.5-0.5B-Instruct")
    costs = Costs(made.experiment)
    assert {job.arm: costs.of(job).requests for job in made.of("judge")} == {"base": 0, "pbaa": 10, "sso": 10}
    assert all(costs.of(job).tokens > 0 for job in made.of("answer"))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"data": {"held_out": 0}, "evaluation": {"judged": ["against_start"]}}, "give `data.held_out`"),
        ({"data": {"limit": None}}, "`held_out` takes prompts behind the first `limit`: give `limit` too"),
        ({"arms": {"base": None}}, "give local an arm without `policy`"),
        ({"arms": {"base": {"evaluation": {"judged": []}}}}, "give local an arm without `policy`"),
    ],
)
def test_what_the_comparison_lacks_is_told(given, sentence):
    with pytest.raises(InputError, match=sentence):
        grid(judge=ENDPOINT, **given)


def test_a_world_has_another_measure():
    with pytest.raises(InputError, match="against_start is for prompts of one's own; a world has `sft_wr`"):
        experiments.load([REPOSITORY / "config/smoke.yaml"], {"evaluation": {"judged": ["against_start"]}})


# Which figure.


def test_the_win_rate_counts_ties_half(tmp_path):
    found = verdicts(tmp_path, said("longer", "no", "same"), said("long", "yes", "same")[::-1])
    assert found.scores["start_wr"]["value"] == 50 and found.scores["start_wr"]["n"] == 3
    assert items(found.rows) == {"start_wr": {"0": 100, "1": 0, "2": 50}}
    assert sorted(found.again(found.items, 1)) == [0, 0.5, 1]


def test_an_answer_of_the_starting_model_that_is_missing_is_told(tmp_path):
    with pytest.raises(InputError, match=r"start.jsonl: no answer to '1' \(1 of 2 are missing\)"):
        verdicts(tmp_path, said("a", "b"), said("a"))
    with pytest.raises(InputError, match="answers another prompt"):
        verdicts(tmp_path, said("a"), said("a", prompt="Ask {}."))
    with pytest.raises(InputError, match="give --against, the starting model's answers"):
        judge(Longest(), JudgeSettings(), said("a"), {})


def test_answers_are_greedy_unless_a_temperature_is_given():
    class Seen:
        def generate(self, prompts, **asked):
            from sso.sampling.engine import Generation

            self.asked = asked
            return [Generation("x", 1, True) for _ in prompts]

    def asked(model: str, **settings) -> dict:
        engine, queries = Seen(), [Query(id="q", prompt="Do.")]
        assert len(answer(engine, queries, Evaluation(temperature=0.7, samples=3, **settings), 0, model)) == 1
        return engine.asked

    assert asked("sso")["temperature"] == 0
    warm = [asked(model, decoding={"against_start": {"temperature": 0.5}}) for model in ("sso", "base")]
    assert warm[0]["temperature"] == 0.5 and warm[0]["seeds"] != warm[1]["seeds"]


def test_two_models_are_answered_and_judged_by_command(tmp_path, tiny_checkpoint, capsys):
    """One checkpoint against itself, by a judge behind an endpoint: of equal (greedy) answers nobody is asked."""
    write(tmp_path / "data/held_out.jsonl", [{"id": str(i), "prompt": f"How many are {i} plus 2?"} for i in range(3)])
    with serving(tmp_path / "server") as server:
        judge = {**ENDPOINT, "base_url": server.url}
        settings = json.dumps({"judged": ["against_start"], "max_new_tokens": 8, "judge": judge})
        shared = ["--data", str(tmp_path / "data"), "--settings", settings]
        for name in ("base", "sso"):
            out = ["--name", name, "--out", str(tmp_path / name)]
            assert main(["answer", "--model", str(tiny_checkpoint), *shared, *out]) == 0
        ours, start = (read(tmp_path / name / "against_start_answers.jsonl", Answer) for name in ("sso", "base"))
        assert [one.output for one in ours] == [one.output for one in start] and len(ours) == 3
        files = ["--answers", str(tmp_path / "sso"), "--out", str(tmp_path / "judged")]
        assert main(["judge", *files, *shared]) == 2
        assert "against_start: give --against" in capsys.readouterr().err
        assert main(["judge", *files, *shared, "--against", str(tmp_path / "base")]) == 0
        scores, rows = (tmp_path / "judged" / name for name in ("scores.json", "against_start.jsonl"))
        figure = json.loads(scores.read_text())["start_wr"]
        assert (figure["value"], figure["n"], figure["identical"], server.requests) == (50, 3, 3, [])
        assert [json.loads(row)["preference"] for row in rows.read_text().splitlines()] == [0.5] * 3
        assert json.loads((tmp_path / "judged.run.json").read_text())["summary"]["identical"] == 3
        other = [one.model_copy(update={"output": f"{one.output}!"}) for one in start[:2]]
        write(tmp_path / "base/against_start_answers.jsonl", [*other, start[2]])
        assert main(["judge", *files, *shared, "--against", str(tmp_path / "base")]) == 0
    found = json.loads(scores.read_text())
    assert (found["start_wr"]["identical"], found["judge"]["asked"]) == (1, 4)  # both orders of two


def test_a_config_that_holds_nothing_out_compares_nothing():
    given = {"model": "OWNER/NAME", "queries": "OWNER/PROMPTS", "data": {"limit": None, "held_out": 0}}
    assert experiments.load([REPOSITORY / "config" / "local_model.yaml"], given).evaluation.judged == []
