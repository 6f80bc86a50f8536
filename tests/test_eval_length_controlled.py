"""The length-controlled win rate: by simulation, and on the official annotations against the official leaderboard."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.benchmarks import alpaca_eval
from eval.cli import main
from eval.length_controlled import fit_difficulty, read_annotations, read_table, simulated_baselines
from eval.length_controlled import length_controlled as controlled
from sso.config import OFFICIAL_DIFFICULTY, load
from sso.errors import InputError
from workflow.check import check
from workflow.experiment import Grid


def length_controlled(rows, table=None):
    """By model, as scores.json has it."""
    return {model: controlled(own, table).as_dict() for model, own in rows.items()}


def rows_of(preferences, lengths, reference_lengths) -> list[dict]:
    return [
        {"id": str(i), "preference": p, "length": a, "reference_length": b}
        for i, (p, a, b) in enumerate(zip(preferences, lengths, reference_lengths, strict=True))
    ]


def simulated(theta: float, phi: float, n: int = 4000, seed: int = 0) -> list[dict]:
    """Preferences of a judge who likes length: logit = theta - phi tanh(standardised reference - own)."""
    rng = np.random.default_rng(seed)
    own, reference = rng.integers(200, 400, n), rng.integers(50, 250, n)
    gap = reference - own
    p = 1 / (1 + np.exp(-(theta - phi * np.tanh(gap / gap.std(ddof=1)))))
    return rows_of((rng.random(n) < p).astype(float).tolist(), own.tolist(), reference.tolist())


def test_length_control_takes_the_length_out_and_is_deterministic():
    rows = {"biased": simulated(0.0, 1.5), "fair": simulated(0.4, 0.0, seed=1)}
    rates = length_controlled(rows)
    assert alpaca_eval.win_rate(rows["biased"])["value"] > 70
    assert abs(rates["biased"]["value"] - 50) < 3 * rates["biased"]["stderr"] < 15
    assert rates["fair"]["value"] == pytest.approx(100 / (1 + math.exp(-0.4)), abs=3 * rates["fair"]["stderr"])
    assert length_controlled(rows) == rates


def test_the_error_of_the_controlled_rate_is_that_of_repeated_experiments():
    runs = [length_controlled({"m": simulated(0.3, 1.0, 600, seed)})["m"] for seed in range(25)]
    spread = np.std([run["value"] for run in runs], ddof=1)
    assert np.mean([run["stderr"] for run in runs]) == pytest.approx(spread, rel=0.4)


def test_without_length_differences_both_rates_agree():
    rows = rows_of([1, 0, 1, 0.5] * 5, [10] * 20, [12] * 20)
    rate = length_controlled({"m": rows})["m"]
    assert {k: rate[k] for k in ("value", "stderr", "n")} == alpaca_eval.win_rate(rows) and rate["model"] == "raw"


def case(wins: int) -> list[dict]:
    rng = np.random.default_rng(wins)
    won = set(rng.choice(805, wins, replace=False))
    return rows_of([float(i in won) for i in range(805)], rng.integers(20, 180, 805).tolist(), [100] * 805)


@pytest.mark.parametrize("wins, rate", [(0, 0.0), (1, 0.124), (2, 0.248), (40, 5.0), (805, 100.0)])
def test_rates_near_the_ends_stay_there_and_say_how(wins, rate):
    found = controlled(case(wins))
    assert found.value == pytest.approx(rate, abs=0.3 if wins == 40 else 0.01)
    assert (found.model == "raw") == bool(found.reason) == (wins != 40)


def test_equal_lengths_give_the_raw_rate_exactly():
    rows = rows_of([1, 0, 0, 0.25] * 30, [10] * 120, [10] * 120)
    assert controlled(rows).value == alpaca_eval.win_rate(rows)["value"]
    assert controlled(rows).model == "no difficulties"


def test_value_and_error_are_of_one_fit():
    """Influences are derivatives by an item's weight: against the fit anew without the item, and a bootstrap."""
    rows = simulated(0.4, 1.0, 300)
    found = controlled(rows)
    assert np.mean([*found.items.values()]) == pytest.approx(found.value, abs=1e-9)
    without = [controlled([r for j, r in enumerate(rows) if j != i]).value for i in range(40)]
    predicted = [found.value - (found.items[i] - found.value) / 299 for i in range(40)]
    assert np.corrcoef(without, predicted)[0, 1] > 0.99
    rng = np.random.default_rng(0)
    draws = [controlled([rows[i] for i in rng.integers(300, size=300)]).value for _ in range(400)]
    assert found.as_dict()["stderr"] == pytest.approx(np.std(draws, ddof=1), rel=0.12)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, None]), st.integers(0, 500), st.integers(0, 500)), min_size=12)
)
def test_length_control_is_finite_for_any_annotations(triples):
    rows = rows_of(*zip(*triples, strict=True))
    rate = length_controlled({"m": rows})["m"]
    known = [t for t in triples if t[0] is not None]
    if known:
        assert 0 <= rate["value"] <= 100 and rate["n"] == len(known)
        assert rate["stderr"] is None or math.isfinite(rate["stderr"])


def population(models: int, prompts: int, seed: int = 0) -> tuple[np.ndarray, list[list[dict]]]:
    """Difficulties, and annotations of models of different strength by the benchmark's own law."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 1.5, prompts)
    reference = rng.integers(500, 3000, prompts)
    files = []
    for strength in rng.normal(-1, 1, models):
        own = rng.integers(300, 3000, prompts)
        gap = reference - own
        p = 1 / (1 + np.exp(1.6 * np.tanh(gap / gap.std(ddof=1)) - hard - strength))
        files.append(rows_of((rng.random(prompts) < p).astype(float).tolist(), own.tolist(), reference.tolist()))
    return hard, files


def test_difficulties_are_recovered_from_many_models_annotations():
    hard, files = population(40, 300)
    for row in files[0][:30]:
        row["preference"] = None  # unread replies are left out
    fitted = fit_difficulty(files)
    assert np.corrcoef(fitted, hard)[0, 1] > 0.9
    assert fitted.std() == pytest.approx(hard.std(), rel=0.15)
    few = fit_difficulty(files[:2])
    assert np.corrcoef(few, hard)[0, 1] < 0.8 and few.std() < 0.8 * hard.std()
    with pytest.raises(InputError, match="same prompts"):
        fit_difficulty([files[0], files[1][:-1]])


def test_the_error_of_the_regularised_rate_is_that_of_repeated_experiments():
    hard, _ = population(1, 400)
    rng, runs = np.random.default_rng(5), []
    reference, own = rng.integers(500, 3000, 400), rng.integers(300, 3000, 400)
    table = simulated_baselines(hard, reference)
    gap = reference - own
    p = 1 / (1 + np.exp(1.6 * np.tanh(gap / gap.std(ddof=1)) - 0.8 * hard + 1))
    for _ in range(25):
        rows = rows_of((rng.random(400) < p).astype(float).tolist(), own.tolist(), reference.tolist())
        runs.append(length_controlled({"m": rows}, table)["m"])
    spread = np.std([run["value"] for run in runs], ddof=1)
    # The error also counts the prompts as drawn, which these experiments hold fixed.
    assert spread < np.mean([run["stderr"] for run in runs]) < 2 * spread
    assert {run["model"] for run in runs} == {"simulated baselines"}


def test_a_copy_of_the_hubs_file_is_used_as_it_is(tmp_path):
    hard, (rows, *_) = population(2, 200)
    reference = [row["reference_length"] for row in rows]
    table = simulated_baselines(hard, reference)
    table.frame.to_csv(tmp_path / "df_gamed.csv", index=False)
    copy = read_table(tmp_path / "df_gamed.csv", reference)
    assert copy.official and not table.official
    assert np.allclose(copy.difficulty(range(200)), hard)
    mine, theirs = (length_controlled({"m": rows}, t)["m"] for t in (table, copy))
    assert mine["value"] == pytest.approx(theirs["value"], abs=1e-6)
    assert (mine["model"], theirs["model"]) == ("simulated baselines", "official")


def test_bad_difficulty_files_are_told_in_one_sentence(tmp_path):
    path = tmp_path / "d.csv"
    with pytest.raises(InputError, match="no such file"):
        read_table(path, [1, 2])
    pd.DataFrame({"index": [0]}).to_csv(path)
    with pytest.raises(InputError, match="lacks the column `instruction_difficulty`"):
        read_table(path, [1])
    pd.DataFrame({"index": [0], "instruction_difficulty": [1.0]}).to_csv(path)
    with pytest.raises(InputError, match="no difficulty of prompt 1"):
        read_table(path, [1, 2])
    with pytest.raises(InputError, match="hub"):
        read_table("hub", [1])
    (tmp_path / "a.json").write_text('[{"preference": 1}]')
    with pytest.raises(InputError, match=r"a\.json: not a file of alpaca_eval"):
        read_annotations(tmp_path / "a.json")


OFFICIAL = {"gemma-2b-it": "Gemma Instruct (2B)", "phi-2-sft": "Phi-2 SFT"}


def leaderboard(folder: Path) -> dict[str, dict[str, float]]:
    with (folder / "leaderboard.csv").open() as lines:
        rows = {row["name"]: row for row in csv.DictReader(lines)}
    return {model: {k: float(v) for k, v in rows[name].items() if k != "name"} for model, name in OFFICIAL.items()}


@pytest.mark.shared_data
def test_official_annotations_give_the_official_win_rates(shared_data, tmp_path, capsys):
    folder = shared_data / "alpaca_eval"
    files = [folder / f"annotations_{model}.json" for model in OFFICIAL]
    out = tmp_path / "rates.json"
    difficulty = folder / "instruction_difficulty.csv"
    assert main(["winrate", *map(str, files), "--difficulty", str(difficulty), "--out", str(out)]) == 0
    rates = json.loads(out.read_text())
    for model, official in leaderboard(folder).items():
        found = rates[f"annotations_{model}"]
        assert found["raw"]["value"] == pytest.approx(official["win_rate"], abs=1e-9) and found["raw"]["n"] == 805
        assert int(found["length"]) == official["avg_length"]
        assert found["length_controlled"]["value"] == pytest.approx(official["length_controlled_winrate"], abs=0.06)
    assert "annotations_phi-2-sft" in capsys.readouterr().out


@pytest.mark.shared_data
def test_difficulties_of_two_models_alone_are_poor_and_say_so(shared_data):
    """What a refit from the files at hand is worth: it needs many models."""
    folder = shared_data / "alpaca_eval"
    files = {model: read_annotations(folder / f"annotations_{model}.json") for model in OFFICIAL}
    official = pd.read_csv(folder / "instruction_difficulty.csv")["instruction_difficulty"]
    fitted = fit_difficulty(list(files.values()))
    assert 0.4 < np.corrcoef(fitted, official)[0, 1] < 0.7


def test_the_error_of_the_packages_fit_is_that_of_drawing_other_prompts():
    rng, n = np.random.default_rng(1), 500
    hard, lengths, own = rng.normal(0, 1.5, n), rng.integers(500, 3000, n), rng.integers(300, 3000, n)
    gap = lengths - own
    p = 1 / (1 + np.exp(1.6 * np.tanh(gap / gap.std(ddof=1)) - 0.8 * hard + 1))
    rows = rows_of((rng.random(n) < p).astype(float).tolist(), own.tolist(), lengths.tolist())
    stated = length_controlled({"m": rows}, simulated_baselines(hard, lengths))["m"]
    drawn = []
    for _ in range(60):
        some = rng.integers(n, size=n)
        table = simulated_baselines(hard[some], lengths[some])
        drawn.append(length_controlled({"m": [rows[i] for i in some]}, table)["m"])
    assert {entry["model"] for entry in drawn} == {"simulated baselines"}
    # 60 draws know a standard deviation to 9%.
    assert stated["stderr"] == pytest.approx(np.std([entry["value"] for entry in drawn], ddof=1), rel=0.25)


def test_an_experiments_difficulties_are_fetched_by_its_data_job_and_checked_before_anything_runs():
    for version in ("v1", "v2"):
        named = load(f"config/paper_{version}.yaml").evaluation.difficulty
        assert re.sub("@[0-9a-f]{40}", "", named) == OFFICIAL_DIFFICULTY != named  # pinned
    made = Grid(load("config/paper_v2.yaml", {"evaluation": {"difficulty": "hub"}}))
    assert json.loads(made.find("data", {}).params["settings"])["files"]["difficulty.csv"] == named
    assert made.data_files["difficulty"].endswith("difficulty.csv")
    none = load("config/paper_v2.yaml", {"evaluation": {"difficulty": None}})
    assert "difficulty" not in Grid(none).data_files
    with pytest.raises(InputError, match=r"evaluation\.difficulty: nowhere\.csv: no such file"):
        check(load("config/paper_v2.yaml", {"evaluation": {"difficulty": "nowhere.csv"}}))
    with pytest.raises(InputError, match=r"evaluation\.difficulty: one for all"):
        load("config/paper_v2.yaml", {"arms": {"sso": {"evaluation": {"difficulty": "own.csv"}}}})
    with pytest.raises(InputError, match=r"evaluation\.difficulty"):
        load("config/micro.yaml", {"evaluation": {"difficulty": "hub"}})
