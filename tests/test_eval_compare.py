"""`sso-eval compare`: two folders of scores, on the same items."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.cli import main
from eval.compare import compare
from sso.errors import InputError
from sso.records import write, write_text


def run_folder(
    path: Path, right: dict[str, list[float]], preference: list[float] | None = None, doc: str = "d"
) -> Path:
    """What `answer` and `judge` leave, with scores of items by benchmark."""
    tasks = {}
    for name, scores in right.items():
        tasks[f"real_{name}"] = {"samples": {str(i): s for i, s in enumerate(scores)}}
        items = [{"id": str(i), "doc": f"{doc}{i}", "score": s} for i, s in enumerate(scores)]
        write(path / "answers/items" / f"real_{name}.jsonl", items)
    write_text(path / "answers/lm_eval.json", json.dumps({"tasks": tasks}))
    if preference:
        rows = [{"id": str(i), "preference": p, "length": 10} for i, p in enumerate(preference)]
        write(path / "judged/pairwise.jsonl", rows)
        write_text(path / "judged/scores.json", "{}")
    return path


def flips(n: int, better: int, worse: int) -> tuple[list[float], list[float]]:
    """Two arms on ``n`` items: A alone is right on ``better``, B alone on ``worse``."""
    a = [1.0] * better + [0.0] * worse + [1.0] * (n - better - worse)
    b = [0.0] * better + [1.0] * worse + [1.0] * (n - better - worse)
    return a, b


def test_a_real_difference_is_told_from_chance(tmp_path, capsys):
    (sure_a, sure_b), (weak_a, weak_b) = flips(200, 30, 2), flips(200, 9, 4)
    a = run_folder(tmp_path / "a", {"gsm8k": sure_a, "math": weak_a}, [0.7] * 50)
    b = run_folder(tmp_path / "b", {"gsm8k": sure_b, "math": weak_b}, [0.7] * 50)
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "c.json")]) == 0
    found = {entry["benchmark"]: entry for entry in json.loads((tmp_path / "c.json").read_text())}
    assert {name: entry["differs"] for name, entry in found.items() if name != "length"} == {
        "alpaca_eval2_wr": False,
        "gsm8k": True,
        "math": False,
    }
    gsm8k = found["gsm8k"]
    assert gsm8k["difference"]["mean"] == pytest.approx(14) and gsm8k["a"]["n"] == 200
    assert gsm8k["difference"]["low"] > 8 and gsm8k["a"]["low"] < 99 < gsm8k["a"]["high"]
    assert gsm8k["mcnemar"] == pytest.approx(gsm8k["permutation"], abs=2e-3)
    assert gsm8k["holm"] == pytest.approx(4 * gsm8k["p"]) and found["alpaca_eval2_wr"]["p"] == 1
    out = capsys.readouterr().out
    assert "A higher" in out and "200" in out and out.count("no") >= 2


def test_equal_items_at_an_end_have_the_exact_bound_and_no_interval_passes_an_end(tmp_path):
    some = [1.0] * 19 + [0.0]
    a, b = (run_folder(tmp_path / n, {"math": [1.0] * 20, "mmlu": some}, [0.5] * 20) for n in "ab")
    found = {c.benchmark: c for c in compare([(a, b)])}
    reach = 100 * (1 - 0.025 ** (1 / 20))  # Clopper and Pearson's, of 20 in 20
    math, mmlu, half = found["math"], found["mmlu"], found["alpaca_eval2_wr"]
    assert (math.a.low, math.a.high) == (pytest.approx(100 - reach), 100)
    assert (math.difference.low, math.difference.high) == (pytest.approx(-reach), pytest.approx(reach))
    assert mmlu.a.high == 100 and mmlu.a.low < 95 and not math.differs
    # Equal, but on no end: nothing tells of the noise.
    assert half.a.low is None and half.difference.high == pytest.approx(reach)
    again = tuple(run_folder(tmp_path / f"{n}1", {"math": [1.0] * 20}) for n in "ab")
    assert [c.a for c in compare([(a, b), again])] == [replace(math.a, n=40, seeds=2, seed_spread=0)]


def test_folders_of_answers_or_judgements_are_found_from_either(tmp_path):
    a, b = flips(40, 5, 1)
    for name, scores in (("a", a), ("b", b)):
        run_folder(tmp_path / name, {"mmlu": scores}, [0.5, 1.0])
    whole = compare([(tmp_path / "a", tmp_path / "b")])
    for part in ("answers", "judged"):
        assert compare([(tmp_path / "a" / part, tmp_path / "b" / part)]) == whole
    assert {c.benchmark for c in whole} == {"mmlu", "alpaca_eval2_wr", "length"}


def test_seeds_are_a_second_level(tmp_path):
    rng = np.random.default_rng(0)
    pairs = []
    for seed, better in enumerate((30, 1, 30, 1)):
        a, b = flips(200, better, 31 - better)
        order = rng.permutation(200)
        arms = [
            run_folder(tmp_path / f"{arm}{seed}", {"mmlu": [s[i] for i in order]}) for arm, s in (("a", a), ("b", b))
        ]
        pairs.append(tuple(arms))
    (one,) = compare(pairs[:1])
    (all_seeds,) = compare(pairs)
    assert one.differs and not all_seeds.differs
    assert (all_seeds.a.n, all_seeds.a.seeds, all_seeds.mcnemar) == (800, 4, None)
    assert all_seeds.p == all_seeds.difference.p and one.p == one.permutation


def test_other_questions_and_empty_folders_are_refused(tmp_path):
    a = run_folder(tmp_path / "a", {"mmlu": [1.0, 0.0]})
    with pytest.raises(InputError, match="item 0 of mmlu is another question"):
        compare([(a, run_folder(tmp_path / "b", {"mmlu": [1.0, 0.0]}, doc="e"))])
    with pytest.raises(InputError, match="no scored item in common"):
        compare([(a, run_folder(tmp_path / "c", {"math": [1.0]}))])
    same = run_folder(tmp_path / "same", {"mmlu": [1.0, 0.0]})
    longer = [run_folder(tmp_path / name, {"mmlu": [1.0, 0.0, 1.0]}) for name in ("x", "y")]
    with pytest.raises(InputError, match="mmlu: the seeds hold different items"):
        compare([(a, same), tuple(longer)])
    others = [run_folder(tmp_path / name, {"math": [1.0]}) for name in ("o", "p")]
    with pytest.raises(InputError, match="no benchmark in common"):
        compare([(a, same), tuple(others)])
    with pytest.raises(InputError, match="are one folder; give the runs of two arms"):
        compare([(a, tmp_path / "same" / ".." / "a")])
    with pytest.raises(InputError, match="given twice, which would count one seed as two"):
        compare([(a, same), (a, same)])
    (tmp_path / "d").mkdir()
    with pytest.raises(InputError, match="holds no scores; give a run's folder"):
        compare([(a, tmp_path / "d")])
