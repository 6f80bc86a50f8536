"""The real benchmarks: stock prompts on local rows, gold answers, mirrors, suites, the endpoint, resuming."""

import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from eval import harness, sources, stock
from eval.cli import main
from eval.settings import Evaluation, Mirror, Task
from sso.errors import InputError

GPQA = {
    "Question": "Which one is it?",
    "Correct Answer": "this",
    "Incorrect Answer 1": "that",
    "Incorrect Answer 2": "neither",
    "Incorrect Answer 3": "both",
}
MMLU = {"subject": "anatomy", "question": "Which bone?", "choices": ["w", "x", "y", "z"], "answer": 2}
PRO = {"question": "Which?", "options": list("abcdefghij"), "answer": "C", "category": "computer science"}
CATEGORIES = (
    "biology, business, chemistry, computer science, economics, engineering, health, history, law, math, other, "
    "philosophy, physics, psychology"
).split(", ")
ROWS = {
    "gsm8k": {"question": "One and one?", "answer": "1 + 1 = 2\n#### 2"},
    "math": {"problem": "Solve $x=2$.", "type": "Precalculus", "solution": "So $\\boxed{2}$."},
    "mmlu": MMLU,
    "mmlu_pro": PRO,
    "gpqa": GPQA,
    "ifeval": {
        "key": 1,
        "prompt": "Write.",
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"relation": "at least", "num_sentences": 2}],
    },
}


@pytest.fixture
def mirrors(tmp_path: Path) -> dict[str, Mirror]:
    """Two rows of each benchmark and worked examples beside them."""
    for name, row in ROWS.items():
        shots = [row | {"question": f"{row.get('question')} ({i})"} for i in range(5)]
        shots = [
            s | {"cot_content": f"A: Let's think step by step. {i}. The answer is (C)."} for i, s in enumerate(shots)
        ]
        for split, rows in {"test": [row, row], "train": shots}.items():
            path = tmp_path / "mirrors" / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {name: Mirror(test=str(tmp_path / "mirrors" / name / "test.jsonl")) for name in ROWS}


def ready(task: Task, mirrors: dict[str, Mirror]) -> stock.Ready:
    return stock.build(sources.find(Evaluation(tasks=[task], mirrors=mirrors), None)[0], 16)


class Said:
    """A stand-in for a model that says what ``say`` makes of a document."""

    def __new__(cls, say):
        from lm_eval.api.model import LM

        class Model(LM):
            tokenizer_name, max_length, tokenizer = "said", 10**6, None

            def generate_until(self, requests, disable_tqdm=False):
                return [say(r.doc) for r in requests]

            def loglikelihood(self, requests, disable_tqdm=False):
                return [(0.0 if r.args[1].strip() == say(r.doc) else -1.0, False) for r in requests]

            def apply_chat_template(self, history, add_generation_prompt=True):
                return "|".join(f"{m['role']}: {m['content']}" for m in history)

            loglikelihood_rolling = None

        return Model()


PROMPTS = {
    "real_gsm8k": (
        5,
        ["user: Question: One and one? (", "|assistant: 1 + 1 = 2\n#### 2|user: Question: One and one?\nAnswer:"],
    ),
    "real_math": (4, ["Find the domain of the expression", "|user: Problem:\nSolve $x=2$.\n\nSolution:"]),
    "real_mmlu": (
        5,
        ["questions (with answers) about anatomy.\n\n", "Which bone? (4)\nA. w", "D. z\nAnswer:|assistant: C|"],
    ),
    "real_mmlu_generative": (5, ["about anatomy.\n\n", "|user: Which bone?\nA. w\nB. x\nC. y\nD. z\nAnswer:"]),
    "real_mmlu_pro": (5, ["about computer science. Think step by step", "|assistant: 4. The answer is (C).|", "J. j"]),
    "real_gpqa": (0, ["What is the correct answer to this question:Which one is it?\nChoices:\n(A) "]),
    "real_gpqa_cot": (0, ["Let's think step by step: "]),
    "real_ifeval": (0, ["user: Write."]),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_the_prompt_is_the_stock_one_with_worked_examples_as_turns(mirrors, name):
    shots, parts = PROMPTS[name]
    one = ready(Task(name=name, num_fewshot=shots), mirrors)
    result = harness.run([one], Said(lambda doc: ""))[name]
    prompt = next(iter(one.tasks.values())).instances[0].args[0]
    assert all(part in prompt for part in parts), prompt
    assert prompt.count("|assistant: ") == prompt.count("user: ") - 1 == shots == result["n_shot"]
    assert result["n"] == 2 and result["lm_eval"] == "0.4.13" and result["chat_template"] is True
    assert result["version"] == next(iter(one.tasks.values())).config.metadata["version"]


@pytest.mark.parametrize("name", PROMPTS)
def test_nothing_but_the_data_differs_from_the_stock_task(mirrors, name):
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    one = ready(Task(name=name, num_fewshot=PROMPTS[name][0]), mirrors)
    ((task, made),) = one.tasks.items()
    folder = Path(lm_eval.tasks.__file__).parent / one.source.real.folder
    theirs = TaskManager(include_defaults=False, include_path=str(folder)).task_index[task].cfg
    assert made.config.metadata["version"] == theirs["metadata"]["version"]
    for key in ("output_type", "doc_to_text", "doc_to_choice", "description", "filter_list", "repeats"):
        ours = getattr(made.config, key)
        if key in theirs and not callable(ours):
            assert ours == theirs[key], key
    assert [m["metric"] for m in made.config.metric_list] == [m["metric"] for m in theirs["metric_list"]]
    for key, value in theirs.get("generation_kwargs", {}).items():
        assert key == "max_gen_toks" or made.config.generation_kwargs[key] == value


def test_right_answers_score_one_and_wrong_ones_nothing(mirrors):
    right = {
        "real_gsm8k": "#### 2",
        "real_math": "\\boxed{2}",
        "real_mmlu": "C",
        "real_mmlu_generative": " C \nBecause.",
        "real_mmlu_pro": "So the answer is (C).",
        "real_ifeval": "One. Two.",
    }
    for name, reply in right.items():
        for said, score in ((reply, 1.0), ("#### 3 \\boxed{3} answer is (D)", 0.0)):
            result = harness.run([ready(Task(name=name, num_fewshot=0), mirrors)], Said(lambda _, said=said: said))[
                name
            ]
            assert result["value"] == score, name
    for name in ("real_gpqa", "real_gpqa_cot"):
        for step in (0, 1):
            letters = [f"({chr(65 + (i + step) % 4)})" for i in range(4)]
            say = lambda doc: letters["ABCD".index(doc["answer"][1])]  # noqa: B023, E731
            result = harness.run([ready(Task(name=name), mirrors)], Said(say))[name]
            assert result["value"] == 1 - step


def test_gpqa_options_stand_in_the_same_order_in_every_run(mirrors):
    tasks = [next(iter(ready(Task(name="real_gpqa"), mirrors).tasks.values())) for _ in range(4)]
    assert len({str(task.eval_docs[1]) for task in tasks}) == 1
    assert str(tasks[0].eval_docs[0]) != str(tasks[0].eval_docs[1])  # one question twice: the options are shuffled


def test_the_hubs_gpqa_has_the_order_of_the_seed_and_not_that_of_a_cache(mirrors, tmp_path, monkeypatch):
    """What was prepared before, from another state of the generator, lies in the cache of data sets on disk."""
    import datasets

    data, read = tmp_path / "gpqa.jsonl", datasets.load_dataset
    data.write_text("".join(json.dumps(GPQA | {"Question": f"Question {i}?"}) + "\n" for i in range(20)))
    caching = {"cache_dir": str(tmp_path / "cache"), "data_files": {"train": str(data)}}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: read("json", **caching))
    process = next(iter(ready(Task(name="real_gpqa"), mirrors).tasks.values())).config  # lm-eval's module is loaded
    from lm_eval.tasks.gpqa.zeroshot import utils

    random.seed(0)
    before = utils.process_docs(read("json", **caching)["train"])["answer"]
    random.seed(1)
    assert utils.process_docs(read("json", **caching)["train"])["answer"] == before and process.process_docs is None
    random.seed(2)
    expected = random.getstate()
    found = [next(iter(ready(Task(name="real_gpqa"), {}).tasks.values())).eval_docs["answer"] for _ in range(2)]
    local = {"gpqa": Mirror(test=str(data))}
    assert found[0] == found[1] == next(iter(ready(Task(name="real_gpqa"), local).tasks.values())).eval_docs["answer"]
    assert list(found[0]) != list(before) and random.getstate() == expected and datasets.is_caching_enabled()


def test_a_group_is_scored_by_subject_and_items_keep_the_files_order(tmp_path):
    rows = [MMLU | {"subject": s, "answer": a} for s, a in (("virology", 0), ("anatomy", 1), ("virology", 1))]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    one = ready(Task(name="real_mmlu", num_fewshot=0), {"mmlu": Mirror(test=str(path))})
    result = harness.run([one], Said(lambda doc: "B"))["real_mmlu"]
    assert result["samples"] == {"0": 0.0, "1": 1.0, "2": 1.0}
    assert [item["reply"] for item in result["items"]] == [1, 1, 1]
    assert result["subjects"] == {"mmlu_anatomy": {"value": 1.0, "n": 1}, "mmlu_virology": {"value": 0.5, "n": 2}}
    assert result["metrics"]["acc,none"] == result["value"] == pytest.approx(2 / 3)


def test_the_hubs_data_sets_are_the_stock_ones_with_a_limit_over_all_subjects(mirrors, monkeypatch):
    """Without a mirror lm-eval loads its own data set; here a stand-in for the hub says what was asked."""
    import datasets

    asked = []

    def load(path, name=None, **_):
        asked.append((path, name))
        rows = {"TIGER-Lab/MMLU-Pro": [PRO | {"category": c} for c in CATEGORIES], "Idavidrein/gpqa": [GPQA] * 3}
        rows = rows.get(path, [MMLU] * 2)
        shots = [row | {"cot_content": "A: Let's think step by step. The answer is (C)."} for row in rows] * 5
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_list(shots if split in ("dev", "validation") else rows)
                for split in ("train", "dev", "validation", "test")
            }
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    pro = ready(Task(name="real_mmlu_pro"), {})
    assert set(asked) == {("TIGER-Lab/MMLU-Pro", None)} and len(pro.tasks) == 14
    result = harness.run([pro], Said(lambda doc: f"the answer is ({doc['answer']})"))["real_mmlu_pro"]
    assert (result["value"], result["n"], result["n_shot"]) == (1.0, 14, 5)
    assert "business" in pro.tasks["mmlu_pro_business"].instances[0].args[0]
    asked.clear()
    result = harness.run([ready(Task(name="real_gpqa", limit=2), {})], Said(lambda doc: doc["answer"]))["real_gpqa"]
    assert asked == [("Idavidrein/gpqa", "gpqa_diamond")] and (result["value"], result["n"]) == (1.0, 2)
    asked.clear()
    mmlu = ready(Task(name="real_mmlu", limit=5), {})
    assert len(asked) == 57 and {path for path, _ in asked} == {"cais/mmlu"}
    result = harness.run([mmlu], Said(lambda doc: "C"))["real_mmlu"]
    assert (result["n"], len(result["subjects"]), list(result["samples"])) == (5, 3, ["0", "1", "2", "3", "4"])


def test_a_suite_is_fixed_and_an_endpoint_gets_the_generative_variants():
    four = [(t.name, t.num_fewshot, t.max_new_tokens) for t in sources.suite("v2")]
    assert four == [("real_ifeval", 0, 1280), ("real_gsm8k", 5, 512), ("real_math", 4, 1024), ("real_mmlu", 5, None)]
    names = [t.name for t in sources.suite("v1", endpoint=True)]
    assert names == ["real_gpqa_cot", "real_mmlu_pro", "real_math", "real_gsm8k"]


def test_what_is_missing_is_told_in_one_sentence_before_a_model_is_loaded(mirrors, tmp_path):
    with pytest.raises(InputError, match=r"real_mmlu needs log-likelihoods.*take real_mmlu_generative"):
        sources.find(Evaluation(tasks=[Task(name="real_mmlu")], mirrors=mirrors), None, endpoint=True)
    with pytest.raises(InputError, match=r"real_gsm8k can't be had from the hub .*evaluation.mirrors.gsm8k.test"):
        ready(Task(name="real_gsm8k"), {})
    Path(mirrors["gsm8k"].test).with_name("train.jsonl").unlink()
    with pytest.raises(InputError, match=r"real_gsm8k takes 5 worked examples, but there are 0 .*num_fewshot: 0"):
        ready(Task(name="real_gsm8k"), mirrors)
    path = Path(mirrors["mmlu"].test)
    path.write_text(json.dumps(MMLU | {"subject": "juggling"}) + "\n")
    with pytest.raises(InputError, match=r"test.jsonl:1: lm-eval has no task 'mmlu_juggling'"):
        ready(Task(name="real_mmlu", num_fewshot=0), mirrors)
    path.write_text(json.dumps({"question": "?"}) + "\n")
    with pytest.raises(InputError, match=r"test.jsonl:1: lacks `subject`"):
        ready(Task(name="real_mmlu", num_fewshot=0), mirrors)


def test_a_killed_run_repeats_no_finished_task(tiny_checkpoint, mirrors, tmp_path, monkeypatch, capsys):
    names = ("real_gsm8k", "real_mmlu", "real_math")
    tasks = [{"name": name, "num_fewshot": 0, "max_new_tokens": 4} for name in names[:2]]
    settings = {"tasks": [*tasks, {"name": "real_math", "max_new_tokens": 4}], "judged": []}
    settings["mirrors"] = {name: mirror.model_dump() for name, mirror in mirrors.items()}
    call = [
        "answer",
        "--model",
        str(tiny_checkpoint),
        "--settings",
        json.dumps(settings),
        "--out",
        str(tmp_path / "out"),
    ]
    ran, run = [], harness.run

    class Killed(BaseException):
        pass

    def dies(group, lm):
        ran.append(group[0].source.name)
        if ran == ["real_gsm8k", "real_mmlu"]:
            raise Killed
        return run(group, lm)

    monkeypatch.setattr(harness, "run", dies)
    with pytest.raises(Killed):
        main(call)
    assert not (tmp_path / "out").exists()
    assert main(call) == 0
    assert ran == ["real_gsm8k", "real_mmlu", "real_mmlu", "real_math"]
    assert "real_gsm8k: taken over from the run before" in capsys.readouterr().err
    found = json.loads((tmp_path / "out/lm_eval.json").read_text())["tasks"]
    assert list(found) == list(names) and not list(tmp_path.glob(".out*"))
    assert len((tmp_path / "out/items/real_mmlu.jsonl").read_text().splitlines()) == 2
    main([*call[:-1], str(tmp_path / "whole")])
    assert (tmp_path / "whole/lm_eval.json").read_bytes() == (tmp_path / "out/lm_eval.json").read_bytes()
    changed = settings | {"max_new_tokens": 9}
    ran[:] = ["anew"]
    main([*call[:4], json.dumps(changed), *call[5:]])
    assert ran == ["anew", *names]  # other settings: nothing is taken over


@pytest.fixture
def server():
    """A chat endpoint of this process: counts requests, refuses every one after the first ``allow``."""

    class Handler(BaseHTTPRequestHandler):
        seen, allow = [], 10**6

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.seen.append((body, self.headers.get("Authorization")))
            if len(self.seen) > self.allow:
                self.send_error(400)
                return
            content = None if body["messages"][0]["content"].startswith("Question: 1") else "So #### 2"
            reply = json.dumps({"choices": [{"index": 0, "message": {"content": content}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    Handler.seen = []
    service = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    yield Handler, f"http://127.0.0.1:{service.server_port}/v1"
    service.shutdown()
    service.server_close()


@pytest.mark.parametrize("concurrent", [3, 1])
def test_an_endpoint_is_asked_in_chat_form_and_nothing_twice(server, tmp_path, monkeypatch, capsys, caplog, concurrent):
    handler, url = server
    monkeypatch.setenv("EVALUATED_KEY", "sk-secret")
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(ROWS["gsm8k"] | {"question": f"{i} and one?"}) + "\n" for i in range(6)))
    settings = {"tasks": [{"name": "real_gsm8k", "num_fewshot": 0, "max_new_tokens": 32}]}
    settings |= {"judged": [], "mirrors": {"gsm8k": {"test": str(path)}}}
    hosted = json.dumps({"model": "m", "base_url": url, "concurrency": concurrent, "key_variable": "EVALUATED_KEY"})
    call = ["answer", "--endpoint", hosted, "--settings", json.dumps(settings), "--out"]
    handler.allow = 3
    assert main([*call, str(tmp_path / "refused")]) == 0
    first = capsys.readouterr()
    assert "3 prompts of real_gsm8k refused: " in first.err and "3 refused" in first.out
    assert "sk-secret" not in first.err + first.out
    partly = json.loads((tmp_path / "refused/lm_eval.json").read_text())["tasks"]["real_gsm8k"]
    assert len(partly["refused"]) == 3 and partly["n"] == 6
    assert all(partly["samples"][row] == 0 for row in partly["refused"])
    handler.allow = 10**6
    before = len(handler.seen)
    assert main([*call, str(tmp_path / "refused")]) == 0
    assert len(handler.seen) == before  # what was refused is asked no more
    hosted = json.dumps(json.loads(hosted) | {"ask_again": True})
    call = ["answer", "--endpoint", hosted, "--settings", json.dumps(settings), "--out"]
    cache = ["--cache", str(tmp_path / "answer_replies.db")]
    assert main([*call, str(tmp_path / "out"), *cache]) == 0
    assert len(handler.seen) - before == 3  # unless that is wanted; the replies of the run before are kept
    body, key = min(handler.seen, key=lambda request: request[0]["messages"][0]["content"])
    assert body["messages"] == [{"role": "user", "content": "Question: 0 and one?\nAnswer:"}]
    assert (body["model"], body["max_tokens"], body["temperature"], key) == ("m", 32, 0, "Bearer sk-secret")
    found = json.loads((tmp_path / "out/lm_eval.json").read_text())["tasks"]["real_gsm8k"]
    assert list(found["samples"].values()) == [1, 0, 1, 1, 1, 1]  # a reply without content counts as wrong
    assert (found["n"], found["truncated"]) == (6, None)
    assert "sk-secret" not in caplog.text + "".join(capsys.readouterr())
    written = "".join(p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())
    assert "sk-secret" not in written


@pytest.mark.shared_data
def test_every_official_gsm8k_solution_scores_one(shared_data):
    mirrors = {"gsm8k": Mirror(test=str(shared_data / "gsm8k/test.jsonl"))}
    for say, figure in ((lambda doc: doc["answer"], 1.0), (lambda doc: doc["answer"].replace("#### ", "#### 9"), 0.0)):
        result = harness.run([ready(Task(name="real_gsm8k", num_fewshot=0), mirrors)], Said(say))["real_gsm8k"]
        assert result["value"] == figure and result["n"] == 1319


@pytest.mark.shared_data
@pytest.mark.parametrize("limit", [30, pytest.param(None, marks=pytest.mark.slow)])
def test_every_official_math_solution_scores_one(shared_data, limit):
    mirrors = {"math": Mirror(test=str(shared_data / "math/test.jsonl"))}
    one = ready(Task(name="real_math", num_fewshot=0, limit=limit), mirrors)
    result = harness.run([one], Said(lambda doc: doc["solution"]))["real_math"]
    assert result["value"] == 1.0 and result["n"] == (limit or 5000)
    if limit:
        wrong = harness.run([one], Said(lambda doc: "So $\\boxed{-12345}$."))["real_math"]
        assert wrong["value"] == 0.0


@pytest.mark.shared_data
def test_every_row_of_mmlu_finds_its_subject_and_its_worked_examples(shared_data):
    mirrors = {"mmlu": Mirror(test=str(shared_data / "mmlu/test.jsonl"))}
    one = ready(Task(name="real_mmlu", num_fewshot=5), mirrors)
    assert len(one.tasks) == 57 and sum(map(len, one.rows.values())) == 14042
    assert all(task.config.fewshot_split == "dev" for task in one.tasks.values())
