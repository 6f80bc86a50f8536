"""Tasks that lm-eval alone knows, by name, and tasks of one's own files: from the config to the report."""

import json
from pathlib import Path

import pytest
import yaml

from eval import stock
from eval.cli import main
from eval.settings import Evaluation, Task
from eval.sources import check, find
from report.collect import Collected
from report.measured import Measured
from sso.config import load
from sso.errors import InputError
from tests.test_eval_harness import Scripted
from workflow.check import check_tasks
from workflow.costs import unpriced
from workflow.experiment import Grid

ROWS = [{"question": f"What is {i} plus one?", "answer": str(i + 1), "options": [str(i), str(i + 1)]} for i in range(4)]


@pytest.fixture
def own(tmp_path) -> Path:
    """A folder with tasks of one's own: options, replies, and a group of both."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    shared = {**data, "test_split": "test", "doc_to_text": "question", "num_fewshot": 0, "metadata": {"version": 3}}
    choose = {
        "task": "plus_one",
        "output_type": "multiple_choice",
        "doc_to_choice": "options",
        "doc_to_target": 1,
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    }
    digits = [{"function": "regex", "regex_pattern": r"(\d+)"}, {"function": "take_first"}]
    say = {
        "task": "plus_one_said",
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {"name": "first", "filter": [{"function": "take_first"}]},
            {"name": "digits", "filter": digits},
        ],
    }
    for made in (choose, say, {**choose, "task": "plus_one_again"}):
        (folder / f"{made['task']}.yaml").write_text(yaml.safe_dump({**shared, **made}))
    (folder / "both.yaml").write_text(yaml.safe_dump({"group": "both", "task": ["plus_one", "plus_one_again"]}))
    return folder


def task(name: str, **given) -> dict:
    return {"name": name, "kind": "lm_eval", **given}


def ready(given: dict) -> stock.Ready:
    (source,) = find(Evaluation(tasks=[Task(**given)]), None)
    return stock.build(source, 64)


def test_replies_are_scored_by_the_filter_that_is_asked_for(own):
    from lm_eval.evaluator import evaluate

    replies = {"What is 0 plus one?": "1", "What is 1 plus one?": "it is 2", "What is 2 plus one?": "3!"}
    for metric, expected in ((None, [1, 0, 0, 0]), ("exact_match,digits", [1, 1, 1, 0])):
        made = ready(task("plus_one_said", include_path=str(own), metric=metric))
        lm = Scripted({**replies, "What is 3 plus one?": "no"})
        out = evaluate(lm=lm, task_dict={"tasks": made.tasks}, bootstrap_iters=0, apply_chat_template=True)
        samples = [sample for sample in out["samples"]["plus_one_said"] if sample["filter"] == made.filter]
        assert made.scores(sorted(samples, key=lambda sample: sample["doc_id"])) == expected
        assert out["results"]["plus_one_said"][f"exact_match,{made.filter}"] == sum(expected) / 4


def test_a_tasks_own_room_for_a_reply_stays_unless_another_is_given(own):
    for given, room in (({}, 5), ({"max_new_tokens": 7}, 7)):
        (made,) = ready(task("plus_one_said", include_path=str(own), **given)).tasks.values()
        assert made.config.generation_kwargs["max_gen_toks"] == room


def test_a_folder_of_answers_and_its_scores_hold_ones_own_tasks(tiny_checkpoint, own, tmp_path):
    tasks = [task("plus_one", include_path=str(own), metric="acc_norm"), task("both", include_path=str(own), limit=3)]
    settings = json.dumps({"judged": [], "tasks": tasks, "batch_size": 4})
    answers, judged = tmp_path / "answers", tmp_path / "judged"
    shared = ["--settings", settings, "--data", str(tmp_path)]
    assert main(["answer", "--model", str(tiny_checkpoint), *shared, "--out", str(answers)]) == 0
    made = json.loads((answers / "lm_eval.json").read_text())["tasks"]
    assert (made["plus_one"]["metric"], made["plus_one"]["n"], made["plus_one"]["version"]) == ("acc_norm", 4, 3)
    assert made["both"]["n"] == 3 and set(made["plus_one"]["metrics"]) == {"acc,none", "acc_norm,none"}
    assert made["plus_one"]["value"] == made["plus_one"]["metrics"]["acc_norm,none"]
    assert main(["judge", "--answers", str(answers), *shared, "--out", str(judged)]) == 0
    scores = json.loads((judged / "scores.json").read_text())
    assert scores["plus_one"]["value"] == 100 * made["plus_one"]["value"] and 0 <= scores["plus_one"]["low"] <= 100


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (task("arc_easi"), "lm-eval has no task or group 'arc_easi'; did you mean `arc_easy`"),
        (task("plus_one", include_path="/nowhere"), "include_path: /nowhere: no such folder"),
        (task("gsm8k"), "would stand in the column of our own benchmark; take real_gsm8k"),
    ],
)
def test_a_task_that_is_not_there_is_told_at_config_time(given, said):
    with pytest.raises(InputError) as error:
        check(load("config/smoke.yaml", {"evaluation": {"tasks": [given]}}).evaluation)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "real_gsm8k", "metric": "acc"}, "`include_path` and `metric` are for `kind: lm_eval`"),
        (task("arc_easy", file="rows.jsonl"), "a task of lm-eval's names its own data"),
    ],
)
def test_settings_of_the_other_kind_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        load("config/smoke.yaml", {"evaluation": {"tasks": [given]}})


def test_a_metric_without_a_score_an_item_and_code_of_a_model_are_refused(own):
    with pytest.raises(InputError, match=r"plus_one has no metric 'mcc'; known: acc,none, acc_norm,none"):
        ready(task("plus_one", include_path=str(own), metric="mcc"))
    made = yaml.safe_load((own / "plus_one.yaml").read_text())
    made["metric_list"] = [{"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}]
    (own / "plus_one.yaml").write_text(yaml.safe_dump(made))
    with pytest.raises(InputError, match=r"mcc is no mean over items"):
        ready(task("plus_one", include_path=str(own)))
    (own / "plus_one.yaml").write_text(yaml.safe_dump({**made, "unsafe_code": True}))
    with pytest.raises(InputError, match="runs code that the model writes"):
        ready(task("plus_one", include_path=str(own)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (task("arc_easy", metric="acc_nrm"), "arc_easy has no metric 'acc_nrm'; known: acc,none, acc_norm,none"),
        (
            task("triviaqa", metric="exact_match,strict"),
            "no metric 'exact_match,strict'; known: exact_match,remove",
        ),
        (
            task("wikitext"),
            "is of type loglikelihood_rolling, which gives no score for each item; leave it out",
        ),
        (task("humaneval"), "humaneval runs code that the model writes"),
        (task("lambada_openai", metric="perplexity"), "lambada_openai: perplexity is no mean over items (perplexity)"),
        (task("blimp", metric="mcc"), "blimp has no metric 'mcc'; known: acc,none"),
    ],
)
def test_what_the_files_of_a_task_say_is_told_at_dry_run(given, said):
    experiment = load("config/smoke.yaml", {"evaluation": {"tasks": [given]}})
    with pytest.raises(InputError) as error:
        check_tasks(experiment)
    assert said in str(error.value)


def test_tasks_that_give_a_mean_pass_the_dry_run(own):
    tasks = [task(name, include_path=str(own)) for name in ("plus_one", "both")]
    tasks += [
        task("lambada_openai", metric="acc"),
        task("hellaswag", metric="acc_norm"),
        task("bbh"),
        task("mmlu_stem"),
    ]
    tasks += [task("triviaqa", metric="exact_match,remove_whitespace"), task("arc_challenge")]
    check_tasks(load("config/smoke.yaml", {"evaluation": {"tasks": tasks}}))


def test_files_are_read_as_people_write_them(own):
    """With comments, a byte order mark, blanks, no version; a neighbour that is no UTF-8 is nobody's business."""
    text = (own / "plus_one.yaml").read_text()
    text = text.replace("task: plus_one", "task : plus_one  # mine").replace("metadata:\n  version: 3\n", "")
    (own / "plus_one.yaml").write_text(text, encoding="utf-8-sig")
    (own / "odd.yaml").write_bytes(b"task: caf\xe9\n")
    made = ready(task("plus_one", include_path=str(own)))
    assert made.tasks and not (next(iter(made.tasks.values())).config.metadata or {}).get("version")
    with pytest.raises(InputError, match=r"no task or group 'plus_on'; .*own has .*; did you mean `plus_one`"):
        ready(task("plus_on", include_path=str(own)))


def test_a_change_of_ones_own_files_is_a_change_of_the_answers_inputs(own):
    tasks = [task("plus_one", include_path=str(own))]
    grid = Grid(load("config/smoke.yaml", {"evaluation": {"tasks": tasks}}))
    for job in grid.of("answer"):
        assert {str(own / "plus_one.yaml"), str(own / "rows.jsonl")} <= set(job.reads("mirrors"))


def test_the_plan_says_that_it_has_no_price_and_the_report_gets_a_table():
    tasks = [{"name": "real_gsm8k"}, task("arc_easy"), task("hellaswag", metric="acc_norm")]
    made = load("config/paper_v2.yaml", {"evaluation": {"tasks": tasks}})
    check(made.evaluation)
    assert unpriced(made) == ["arc_easy", "hellaswag"]
    content = Measured(Collected(made)).content
    assert content["tables"]["v2_own_tasks"]["columns"] == ["arc_easy", "hellaswag"]
    assert content["metrics"]["hellaswag"]["unit"] == "%"
    assert "v2_own_tasks" not in Measured(Collected(load("config/paper_v2.yaml"))).content["tables"]
    assert len(Grid(made)) == len(Grid(load("config/paper_v2.yaml")))
