"""docs/architecture.md holds: imports go one way, and what it says of adding something was tried here."""

import ast
import json
from pathlib import Path

import pytest
import yaml

from eval import benchmarks
from eval.cli import main
from sso.config import load
from sso.errors import InputError
from sso.worlds.micro.data import write_all
from sso.worlds.settings import MicroWorld
from tests.conftest import REPOSITORY
from workflow.experiment import Grid

ROOMS = ("sso", "eval", "rewardbench", "report", "workflow")
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for room in ROOMS
    for path in (REPOSITORY / room).rglob("*.py")
}


def floor(module: str) -> int:
    """How high a module stands: it imports from its own floor and from lower ones."""
    room, _, rest = module.partition(".")
    if rest in ("cli", "__main__") or module.startswith("sso.commands"):
        return len(ROOMS) + 2
    if module.endswith(".settings") or module in ("sso.errors", "sso.records"):
        return 0
    # Objectives are data that settings name.
    return 1 if module in ("sso.config", "sso.objective") else 2 + ROOMS.index(room)


def imported(module: str) -> set[str]:
    """Modules of this house that a module imports, when it is loaded or later."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            found |= {name} if name else set()
    return found - {module}


def test_imports_go_one_way():
    up = [
        f"{module} -> {other}"
        for module in MODULES
        for other in imported(module)
        if floor(other) > floor(module) and floor(module) > 0  # settings look up names in their own room
    ]
    assert up == []


def test_settings_import_only_settings_and_what_their_own_room_knows_by_name():
    for module in (name for name in MODULES if name.endswith("settings")):
        room = module.partition(".")[0]
        strange = [o for o in imported(module) if floor(o) > 0 and o.partition(".")[0] != room]
        assert strange == [], module


@pytest.mark.parametrize("room", ["workflow", "sso/library", "sso/commands", "eval/benchmarks"])
def test_files_are_read_in_one_sitting(room):
    for path in (REPOSITORY / room).rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 270, path


# To add X, touch Y.

JUDGED = '''"""Answers in seven words."""

from eval.benchmarks import alpaca_eval
from eval.benchmarks.record import Column, Judged, Judging, Load, Verdicts
from sso.records import Query, read


def judge(by, how, answers, files):
    rows = [{"id": answer.id, "score": float(len(answer.output.split()) == 7)} for answer in answers]
    mean = 100 * sum(row["score"] for row in rows) / len(rows)
    scores = {"seven_words": {"value": mean, "stderr": None, "n": len(rows)}}
    return Verdicts(rows, scores, rows, lambda some, draw: [row["score"] for row in some], "seven_words")


BENCHMARKS = (
    Judged(
        "seven_words",
        columns={"seven_words": Column("Seven words")},
        prompts=("eval",),
        files={},
        reads=("eval",),
        read=lambda data: (data / "eval.jsonl", read(data / "eval.jsonl", Query)),
        answer=lambda *asked: alpaca_eval.answer(*asked, "seven_words"),
        answers="seven_words_answers",
        inputs=lambda data: {"eval": data / "eval.jsonl"},
        judge=judge,
        judged="seven_words",
        load=Load(100),
        judging=Judging(0, 0, 0),
        items=lambda rows: {"seven_words": {row["id"]: 100 * row["score"] for row in rows}},
    ),
)
'''
STOCK = '''"""ARC, the easy part."""

from eval.benchmarks.record import Column, LmEval, Load

BENCHMARKS = (
    LmEval("arc", stock="arc_easy", folder="arc", columns=("question", "choices", "answerKey"),
           column=Column("ARC"), load=Load(2376, 40, 0, scored=4)),
)
'''


@pytest.fixture
def another(tmp_path, monkeypatch):
    """Put a module into the room of benchmarks."""

    def put(name: str, text: str) -> None:
        folder = tmp_path / "more"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(folder)])
        clear()

    def clear() -> None:
        from report.measured import specs

        cached = (benchmarks.records, benchmarks.of_lm_eval, benchmarks.of_judges, benchmarks.micro, benchmarks.tasks)
        for function in (*cached, benchmarks.files, benchmarks.columns, specs):
            function.cache_clear()

    yield put
    monkeypatch.undo()
    clear()


def test_a_judged_benchmark_is_a_module_and_a_line_of_the_config(another, tiny_checkpoint, tmp_path):
    over = {"evaluation": {"judged": ["alpaca_eval", "seven_words"], "tasks": []}}
    with pytest.raises(InputError, match=r"unknown judged benchmark 'seven_words'"):
        load("config/smoke.yaml", over)
    another("seven_words", JUDGED)
    experiment = load("config/smoke.yaml", over)
    (job,) = [job for job in Grid(experiment).of("judge") if job.arm == "base"]
    assert job.reads("data")[0].endswith("eval.jsonl")
    data, answers, judged = tmp_path / "data", tmp_path / "answers", tmp_path / "judged"
    world = MicroWorld(train_queries=8, sft_examples=8, eval_queries=8, benchmark_items=4)
    write_all(world, data, 1)
    settings = ["--data", str(data), "--settings", experiment.evaluation.model_dump_json()]
    assert main(["answer", "--model", str(tiny_checkpoint), *settings, "--out", str(answers)]) == 0
    oracle = ["--world", world.model_dump_json()]
    assert main(["judge", "--answers", str(answers), *settings, *oracle, "--out", str(judged)]) == 0
    scores = json.loads((judged / "scores.json").read_text())
    assert scores["seven_words"]["n"] == 8 and "low" in scores["seven_words"] and "alpaca_eval2_wr" in scores
    from report.collect import Collected
    from report.measured import Measured

    assert Measured(Collected(experiment)).content["metrics"]["seven_words"]["label"] == "Seven words"


def test_a_stock_benchmark_is_a_module_and_a_line_of_the_config(another):
    from eval.sources import check
    from workflow.costs import unpriced

    over = {"evaluation": {"tasks": [{"name": "real_arc"}]}}
    with pytest.raises(InputError, match="unknown task 'real_arc'"):
        check(load("config/paper_v2.yaml", over).evaluation)
    another("arc", STOCK)
    experiment = load("config/paper_v2.yaml", over)
    check(experiment.evaluation)
    assert unpriced(experiment) == [] and benchmarks.columns()["arc"].label == "ARC"


def test_a_table_is_an_entry_of_tables_yaml():
    from report import tables
    from report.collect import Collected
    from report.measured import Measured, specs

    content = {
        **specs(),
        "tables": yaml.safe_load("mine: {title: Mine, version: v2, rows: [pbaa, sso], columns: [gsm8k]}"),
    }
    made = tables.table(Measured(Collected(load("config/micro.yaml")), content), "mine")
    assert made.applies and made.pending["qwen2"] == ["PBAA", "SSO"]  # nothing was run


def test_an_arm_and_a_backbone_are_lines_of_the_config():
    over = {
        "backbones": {"wide": {"architecture": "qwen2", "hidden_size": 96}},
        "arms": {"sso_strong": {"label": "SSO, beta 1", "generator": {"use": "generator"}, "policy": {"beta": 1.0}}},
    }
    made = Grid(load("config/smoke.yaml", over))
    found = {(job.backbone, job.arm) for job in made.of("policy")}
    assert {("wide", "sso_strong"), ("qwen2", "sso_strong"), ("wide", "sso")} <= found


def test_the_page_names_files_that_are_there():
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    for part in page.split("`")[1::2]:
        path = part.split(":")[0]
        if "/" in path and " " not in path and path.endswith((".py", ".yaml", ".smk", "/")) and "<" not in path:
            assert (REPOSITORY / path).exists() or Path(path).name.startswith("NAME"), part
