"""Commands that print figures, given one item or nothing that could be read: a figure without error, or a sentence."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.cli import main
from rewardbench.best_of_n import calibration, curve, plot
from tests.test_report import dump, jsonl


def annotations(path: Path, preferences: list) -> Path:
    path.write_text(
        json.dumps(
            [{"preference": p, "output_1": "a" * 6, "output_2": "a" * (5 + i % 3)} for i, p in enumerate(preferences)]
        )
    )
    return path


@pytest.mark.parametrize(
    "preferences, said",
    [
        ([None] * 5, "m: no readable preference in 5 annotations"),
        ([None], "m: no readable preference in 1 annotations"),
        ([], "m: no readable preference in 0 annotations"),
        ([2], "m: raw 100.00, length-controlled 100.00 (raw: fewer than 10 read annotations), mean length 5, n 1"),
        ([2, 1], "m: raw 50.00 ± 50.00, length-controlled 50.00 ± 50.00 (raw: fewer than 10 read annotations)"),
        ([None, 2], "m: raw 100.00, length-controlled 100.00 (raw: "),
    ],
)
@pytest.mark.parametrize("difficulty", [False, True])
def test_win_rates_of_few_annotations(tmp_path, capsys, preferences, said, difficulty):
    hard = tmp_path / "hard.csv"
    hard.write_text("index,instruction_difficulty\n" + "".join(f"{i},{i}\n" for i in range(9)))
    asked = ["winrate", str(annotations(tmp_path / "m.json", preferences)), "--out", str(tmp_path / "out.json")]
    assert main(asked + (["--difficulty", str(hard)] if difficulty else [])) == 0
    assert said in capsys.readouterr().out
    known = [p for p in preferences if p is not None]
    assert json.loads((tmp_path / "out.json").read_text())["m"]["raw"]["n"] == len(known)


@pytest.mark.parametrize("rows, said", [((5, 5), "fewer than 10 prompts"), ((12, 13), "numbers of rows differ")])
def test_difficulties_that_cannot_be_fitted_anew_are_told(tmp_path, capsys, rows, said):
    files = [
        str(annotations(tmp_path / f"{i}.json", [1, 2] * 6 + [2] * (n - 12) if n > 9 else [1] * n))
        for i, n in enumerate(rows)
    ]
    assert main(["winrate", *files, "--difficulty", "refit"]) == 2
    assert said in capsys.readouterr().err


def judged(folder: Path, preferences: list, grades: list) -> Path:
    rows = [{"id": f"q{i}", "preference": p, "length": 5, "reference_length": 6} for i, p in enumerate(preferences)]
    jsonl(folder / "judged/pairwise.jsonl", rows)
    jsonl(folder / "judged/mt_bench.jsonl", [{"id": f"m{i}/1", "turn": 1, "score": s} for i, s in enumerate(grades)])
    dump(folder / "judged/scores.json", {"alpaca_eval2_wr": {"value": None}, "mt_bench": {"value": None}})
    dump(folder / "answers/lm_eval.json", {"tasks": {}})
    return folder


def test_arms_with_one_readable_item_are_compared_without_an_interval(tmp_path, capsys):
    a, b = judged(tmp_path / "a", [1.0, None], [7]), judged(tmp_path / "b", [0.0, 1.0], [None])
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "out.json")]) == 0
    rows = {row["benchmark"]: row for row in json.loads((tmp_path / "out.json").read_text())}
    assert set(rows) == {"alpaca_eval2_wr", "length"}  # no dialogue was graded in both
    assert rows["alpaca_eval2_wr"]["difference"]["mean"] == 100 and rows["alpaca_eval2_wr"]["difference"]["low"] is None
    assert rows["alpaca_eval2_wr"]["p"] == 1 and not rows["alpaca_eval2_wr"]["differs"]
    assert "100.00" in capsys.readouterr().out


def test_arms_without_a_common_readable_item_are_told(tmp_path, capsys):
    a, b = judged(tmp_path / "a", [], [None]), judged(tmp_path / "b", [], [5])
    assert main(["compare", str(a), str(b)]) == 2
    assert "no scored item in common" in capsys.readouterr().err


def test_the_best_of_n_of_one_query_has_no_error(tmp_path):
    rewards = np.array([[0.2, 0.1, 0.4, 0.3]])
    assert [row["stderr"] for row in curve(rewards, rewards)] == [None] * 3
    assert calibration(rewards[:, :1], rewards[:, :1]) == []
    plot({"best_of_n": curve(rewards, rewards), "calibration": []}, tmp_path / "one.svg")
