"""The page on made-up results: escaped, self-contained, its figures the CSV's, and what a browser makes of it."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

import report
from report import claims, first, page, printed, samples, trail
from report.collect import Collected, collect
from report.measured import Estimate, Measured
from sso.config import load
from tests.browser import Browser, missing
from tests.conftest import REPOSITORY
from tests.test_report import dump, experiment, jsonl, rows_of, tree
from workflow import ending
from workflow.experiment import Grid
from workflow.experiment import load as load_experiment

HOSTILE = "</div></script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
"""What a model, a query or an id might say."""
STRANGE = "a\x1b[31mred\x1b[0m \x00 \u202eright to left {{ 7 * 7 }} ${{x}} <b>&amp; \ufffd"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, and rows of tables by section, of a page whose every tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: dict[str, list[list[dict]]] = {}
        self.section, self.ids = "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        self.tags.append((tag, about))
        self.ids += [about["id"]] if "id" in about else []
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = about["id"]
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.rows[self.section][-1].append({**about, "text": ""})

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and "tr" in self.open and ("td" in self.open or "th" in self.open):
            self.rows[self.section][-1][-1]["text"] += data


def texts(made, results: Path) -> None:
    """Triples, pairs and answers for every job that makes some, with hostile text in the first."""
    grid = Grid(made)
    prompt = [{"role": "user", "content": f"{HOSTILE} {STRANGE}"}]
    names = [f"q{i}" for i in range(40)]
    for job in grid:
        path = results / Path(job.output).relative_to(grid.root)
        if job.rule == "sample":
            said = {"chosen": HOSTILE, "rejected": STRANGE, "original": "yo", "system_good": HOSTILE, "system_bad": "b"}
            jsonl(path, [{"id": name, "prompt": prompt, **said} for name in names])
        elif job.rule in ("pairs", "generated_pairs"):
            sides = {side: [{"role": "assistant", "content": side + HOSTILE}] for side in ("chosen", "rejected")}
            jsonl(path, [{"id": name, "prompt": prompt, **sides} for name in names])
        elif job.rule == "answer":
            rows = [{"id": name, "prompt": prompt, "output": STRANGE + "\n" * 3, "model": "m"} for name in names]
            jsonl(path / "answers.jsonl", rows)
    steps = [[step, {"loss": 1 / step, "x:y+>y-/margin": 0.1 * step}] for step in range(1, 400)]
    record = {"wall_s": 1.0, "cpu_s": 1.0, "peak_rss_mb": 1.0, "git_commit": "abc", "metrics": steps}
    job = next(job for job in grid.of("policy") if job.arm == "sso")
    dump(results / f"{job.backbone}/s0/policy/sso.run.json", {"stage": "train", **json.loads(job.mark), **record})


def hostile():
    """An experiment whose own words can't be trusted either."""
    return experiment(title=f"micro {HOSTILE}", arms={"sso": {"label": f"SSO {HOSTILE}"}})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    made = hostile()
    results = tree(made, tmp_path_factory.mktemp("page") / "micro")
    texts(made, results)
    report.build(Grid(made), results, results / "report")
    return results / "report" / "report.html"


@pytest.fixture(scope="module")
def parsed(built):
    return Page(built.read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else(built, parsed):
    text = built.read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    for tag, about in parsed.tags:
        assert tag not in ("img", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in about)
        assert tag != "link" or about["href"] == "data:,"
    assert not re.search(r"url\((?!#)|@import", text)
    # No address but the paper's leads off this machine; what it leads to is there.
    addresses = {about["href"] for tag, about in parsed.tags if tag == "a"} - {first.PAPER}
    for address in addresses:
        parts = urlparse(address)
        assert not parts.scheme and not parts.netloc
        if parts.path:
            assert (built.parent / unquote(parts.path)).is_file(), address
        else:
            assert parts.fragment in parsed.ids
    # The first seed's: two backbones with eight arms, and two of three iterations.
    assert len([a for a in addresses if a.endswith("scores.json")]) == 2 * (8 + 2 * 3)


def test_only_the_pages_own_script_may_run(built, parsed):
    text = built.read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1 == [tag for tag, _ in parsed.tags].count("script")
    policy = next(about["content"] for tag, about in parsed.tags if about.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_what_models_say_is_text(built):
    text = built.read_text(encoding="utf-8")
    assert HOSTILE not in text and "owned" in text and "&lt;script&gt;document.title" in text
    assert "{{ 7 * 7 }}" in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert "a␛[31mred␛[0m ␀" in text


def test_no_id_stands_twice(parsed):
    assert len(parsed.ids) == len(set(parsed.ids))


def test_headings_and_heads_for_screen_readers(parsed):
    heads = [about for tag, about in parsed.tags if tag == "th"]
    assert heads and all(about["scope"] in ("row", "col") for about in heads)
    charts = [about for tag, about in parsed.tags if tag == "svg"]
    assert len(charts) >= 4 and all(about["role"] == "img" and about["aria-label"] for about in charts)
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert ("html", {"lang": "en"}) in parsed.tags


def test_the_pages_figures_are_the_csvs(built, parsed):
    rows = rows_of(built.parent / "tables/v2_table1.csv")
    shown = [row for row in parsed.rows["v2_table1"] if "data-v" in row[1] and not row[0]["text"].startswith("(SSO")]
    heads = parsed.rows["v2_table1"][0][1:]
    assert len(shown) == len(rows) > 6
    for ours, theirs in zip(shown, rows, strict=True):
        assert ours[0]["text"] == theirs["label"]
        metrics = [key.removesuffix("_seeds") for key in theirs if key.endswith("_seeds")]
        # The win rate, which decides, stands first; n stands in the heads.
        metrics.sort(key=lambda metric: metric != "alpaca_eval2_wr")
        for head, cell, metric in zip(heads, ours[1:], metrics, strict=True):
            assert float(cell["data-v"]) == pytest.approx(float(theirs[metric]))
            assert head["text"].endswith(f"n {theirs[metric + '_n']}") and "seed" not in cell["text"]
            if theirs[metric + "_paper"]:
                paper = float(re.search(r"paper ([\d.]+)", cell["text"]).group(1))
                assert paper == pytest.approx(float(theirs[metric + "_paper"]))
            else:
                assert "paper" not in cell["text"]


def test_it_says_what_it_is(built):
    text = built.read_text(encoding="utf-8")
    assert "Micro, oracle judge, tiny models." in text
    assert "paired two-way t over" in text and "SSO improves on PBAA." in text


def test_samples_are_the_same_queries_for_every_arm(built):
    made = experiment()
    read = samples.collect(Grid(made), built.parent.parent)
    assert {group.title for group in read.pairs} == {a.label for a in made.arms.values() if a.version == "v2"} - {"SFT"}
    ids = [[s.id for s in group.samples] for group in read.pairs]
    assert len(ids[0]) == 20 and all(other == ids[0] for other in ids)
    # Rows i % 5 == 4 of SSO's pairs are those that the judge turned round, see tests/test_report.py.
    sso = next(group for group in read.pairs if group.title == "SSO")
    for sample in sso.samples:
        wanted = "prefers the rejected one" if int(sample.id[1:]) % 5 == 4 else "prefers this one"
        assert wanted in sample.texts[0].note
    assert [(group.title, len(group.samples)) for group in read.answers] == [("Answers", 20)]
    last = [a.label + (f", iteration {a.iterations}" if a.iterations > 1 else "") for a in made.arms.values()]
    assert [t.label for t in read.answers[0].samples[0].texts] == last
    # The principle stands beside what it made, and only there.
    control = next(group for group in read.pairs if group.title == "control: y+ against yo")
    assert [t.principle for t in sso.samples[0].texts] == ["", ""]  # no principles file in the made-up tree
    assert [t.principle for t in control.samples[0].texts] == [HOSTILE, ""]
    assert {group.title for group in read.triples} >= {"SSO v1: iteration 2", "PBAA v1: iteration 3"}


def test_the_same_results_give_the_same_page(built, tmp_path):
    report.build(Grid(hostile()), built.parent.parent, tmp_path / "again")
    assert (tmp_path / "again/report.html").read_bytes() == built.read_bytes()


def test_much_text_is_cut_so_that_the_page_stays_small():
    read = samples.Samples("b", 0)
    said = [samples.Text("a", "x" * 9000) for _ in range(20)]
    many = [samples.Sample("q", "p" * 9000, [replace(text) for text in said]) for _ in range(100)]
    read.answers = [samples.Group("", "", many)]
    limit = samples.cut(read)
    assert limit == samples.BUDGET // 2000
    assert many[0].texts[0].text == "x" * limit + f" […{9000 - limit} more characters]"


def test_visible_leaves_text_alone():
    assert page.visible("line\n\ttab ü 漢 🙂") == "line\n\ttab ü 漢 🙂" and page.visible(3) == 3


def test_the_first_screen_has_the_three_figures_and_where_they_are_from(built, parsed):
    """The figures are comparisons.csv's, over both backbones; the paper's are differences of what it prints."""
    text = built.read_text(encoding="utf-8")
    start = text[text.index("<header>") : text.index("</header>")]
    rows = {(r["a"], r["b"], r["metric"], r["backbone"]): r for r in rows_of(built.parent / "tables/comparisons.csv")}
    label = experiment(arms={"sso": {"label": f"SSO {HOSTILE}"}}).arms["sso"].label
    large = re.findall(r'<span class="large">([^<]+)</span>', start)
    for said, metric, digits in zip(large, ("alpaca_eval2_wr", "mean_probability", "accuracy"), (2, 4, 4), strict=True):
        assert said.lstrip("+") == f"{float(rows[label, 'PBAA', metric, 'all']['difference']):.{digits}f}"
    printed = {
        (r["backbone"], r["method"]): float(r["value"])
        for r in rows_of(REPOSITORY / "results/paper/results.csv")
        if (r["version"], r["table"], r["metric"]) == ("v2", "1", "alpaca_eval2_wr")
    }
    for backbone in ("Qwen2-7B-SFT", "Llama3-8B-SFT"):
        assert f"{printed[backbone, 'sso'] - printed[backbone, 'pbaa']:+.1f} ({backbone})" in start
    assert start.count("a picture only") == 2 and first.PAPER in start and "<b>oracle</b>" in start


def test_a_raw_win_rate_is_no_figure_of_the_first_screen(tmp_path):
    """Where length control can't be fitted, its place stays empty."""
    made = load("config/paper_v2.yaml")
    results = tree(made, tmp_path / "paper_v2")
    for path in results.rglob("pairwise.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        jsonl(path, [{**row, "preference": 1.0} for row in rows])
    known = Measured(collect(Grid(made), results))
    rate = first.strip(known, claims.claims(known))[0]
    assert rate["name"] == "win rate" and rate["text"] == "" and rate["why"].startswith("raw")


def test_what_is_told_elsewhere_is_the_figures_of_the_first_screen_over_all_backbones():
    def row(claim: str, backbone: str | None, verdict: str, text: str, figure: str = "", raw: bool = False):
        fits = ("raw: why",) if raw else ()
        effect = text and Estimate(1.0, 0.0, 2.0, 1, None, 200, "", fits)
        about = {"figure": figure} if figure else {}
        return claims.ClaimRow(claim, backbone, verdict, text or "no such arm", "t", about, "m", None, effect or None)

    rows = [
        row("A", "all", "holds", "WR, A: 4.98 [3, 6]; smallest effect of interest 1 points"),
        row("B", "qwen2", "holds", "WR, B: 9 [8, 10]", "win rate"),
        row(
            "B", "all", "negligible", "WR, B: 0.1† [0, 0.2]; smallest effect of interest 1; † raw", "win rate", raw=True
        ),
        row("C", None, "not tested", "", "pair accuracy"),
        row("D", "all", "does not hold", "WR, D: -9 [-10, -8]", "win rate"),
        row("E", "all", "not tested (no interval)", "p: 1", "on-policyness"),
        row("F", "llama", "holds", "F: 1 [0, 2]"),
        row("G", "all", "holds", "G: 1 [0, 2]"),
    ]
    assert {name: own.claim for name, own in first.headline(rows).items()} == {
        "win rate": "D",
        "pair accuracy": "C",
        "on-policyness": "E",
    }
    told = first.told(Measured(Collected(experiment())), rows, {})
    assert told["headline"] == [
        'WR, D: -9 [-10, -8] (all backbones): "D" does not hold',
        'WR, A: 4.98 [3, 6] (all backbones): "A" holds',
        'WR, B: 0.1† [0, 0.2]; † raw (all backbones): "B" negligible',
    ]
    assert told["claims"][1:3] == ["B **negligible** (" + rows[2].difference + ")", "C **not tested** (no such arm)"]
    assert len(told["claims"]) == 7 and told["tables"] == told["ours"] == [] and told["judge"] == ""
    assert told["counts"] == [
        "7 claims of the paper: holds 3, does not hold 1, negligible 1, not tested 1, not tested (no interval) 1"
    ]


def test_the_papers_difference_is_the_claims_own():
    """The first iteration's length from the last one's; a table with the last one alone tells nothing of it."""
    known = Measured(Collected(experiment()))
    spec = next(own for own in known.content["claims"] if "grow longer" in own["claim"])
    found = printed.difference(known, spec, "length", "qwen2")
    assert (found.backbone, found.text) == ("Qwen2-7B-SFT", "391")
    assert printed.difference(known, spec, "nll", "qwen2") is None
    # What the paper does not claim has none, though it prints a figure that such a claim could go by.
    said = {
        claim: first.paper_says(known, claims.ClaimRow(claim, "qwen2", "holds", "", "", own, own["metric"]))
        for own in known.content["claims"]
        for claim in [own["claim"]]
    }
    assert said["v1: SSO's quality rises over the iterations."] == ["+4.4 (AlpacaEval 2 LC, Qwen2-7B-SFT)"]
    assert not any(said[own["claim"]] for own in known.content["claims"] if own.get("ours"))


def test_best_and_differences_to_pbaa_stand_in_tables(built, parsed):
    columns = rows_of(built.parent / "tables/v2_table1.csv")
    own = [row for row in columns if row["backbone"] == "qwen2"]
    rows = parsed.rows["v2_table1"][1 : len(own) + 2]
    best = max(float(row["alpaca_eval2_wr"]) for row in own)
    marked = [float(row[1]["data-v"]) for row in rows if row[1].get("class") == "best"]
    assert marked and set(marked) == {best}
    assert rows[-1][0]["text"].endswith("- (PBAA)")
    by = {row["arm"]: float(row["alpaca_eval2_wr"]) for row in own}
    assert float(rows[-1][1]["data-v"]) == pytest.approx(by["sso"] - by["pbaa"])
    # Less is more on-policy; of lengths neither is better.
    quality = parsed.rows["v2_figure3"]
    places = {cell["text"].partition(" (")[0].strip(): i for i, cell in enumerate(quality[0])}
    shown = [row for row in quality if "data-v" in row[1] and " - (" not in row[0]["text"]]
    nll = [(float(row[places["NLL, rejected"]]["data-v"]), row[places["NLL, rejected"]].get("class")) for row in shown]
    assert min(nll)[1] == "best" and max(nll)[1] is None
    assert not any(row[places["length, chosen"]].get("class") for row in shown)


def test_a_checkpoint_without_a_judge_gets_a_page_of_value(tmp_path):
    """config/local_model.yaml: what needs no judge is there, and what is not tested stands in a line."""
    made = load_experiment(["config/local_model.yaml"], {"model": "DIR", "queries": "prompts.jsonl"})
    results = tree(made, tmp_path / "local_model")
    texts(made, results)
    for path in results.rglob("data_quality.json"):
        values = json.loads(path.read_text())
        dump(path, {name: value for name, value in values.items() if name != "accuracy"} | {"judge": None})
        path.with_name("data_quality_pairs.jsonl").unlink()
    for path in results.rglob("judged/*"):
        path.unlink()
    for job in Grid(made).of("principles"):
        path = results / Path(f"{job.output}.run.json").relative_to(Grid(made).root)
        dump(path, {"stage": "principles", **json.loads(job.mark), "summary": {"written": 16, "fallbacks": 3}})
    report.build(Grid(made), results, results / "report")
    text = (results / "report/report.html").read_text(encoding="utf-8")
    parsed = Page(text)
    assert "<small>judge</small> <b>none</b>" in text and "judge: none" in text and "oracle" not in text.lower()
    assert text.count("not measured</span>") == 2 and "<small>no judge</small>" in text
    assert 'id="headline"' not in text and "None yet" not in text and "v1" not in text[: text.index("<main>")]
    rows = {row[0]["text"]: row for row in parsed.rows["v2_figure3"][1:]}
    heads = [cell["text"] for cell in parsed.rows["v2_figure3"][0]]
    assert [head.partition(" (")[0] for head in heads[1:]] == [
        *("mean probability", "NLL, both", "NLL, chosen", "NLL, rejected"),
        *("length, chosen", "length, rejected", "equal pairs"),
    ]
    assert rows["SSO"][-1]["text"].startswith("1") and "% of pairs" in rows["SSO"][-1]["text"]
    # Why, in a line each: what a judge could test, and what no judge could.
    assert "15 claims of the paper: holds 1, not tested (no judge) 4, not tested (no such arm) 10." in text
    assert "3 more of our own, which the paper does not make: holds 2, not tested (no interval) 1." in text
    reasons = dict(re.findall(r"<summary>(Not tested \([^<]*): (\d+) claims</summary>", text))
    assert reasons == {"Not tested (no judge)": "4", "Not tested (no such arm)": "10"}
    assert "this experiment has no v2 arm l_plus" in text.lower() and "lacks one of" not in text
    assert "SSO improves on the starting model." in text and "the SFT model" not in text[: text.index('id="health"')]
    assert "v2, table 1" not in text[: text.index("no results yet")] and "SSO improves on PBAA." in text
    fallbacks = next(row for row in parsed.rows["health"] if row[0]["text"] == "fallback principles")
    assert [cell["text"] for cell in fallbacks[1:4]] == ["3", "16", "1"]
    assert "principles/v2_1.jsonl" in fallbacks[4]["text"]


def test_health_is_not_clean_where_nobody_counted():
    """A record without the count is left out; no verdict was unreadable where judges ran and none counts any."""
    of = [
        {"path": "a.run.json", "rule": "judge", "summary": {}},
        {"path": "b.run.json", "rule": "sample", "summary": {}},
    ]
    rows = {row["name"]: row["count"] for row in trail.health(of)}
    assert rows == {"unreadable verdicts": 0, "queries left out, too long": 0}
    of[0]["summary"] = {"unreadable": 2}
    unreadable = next(row for row in trail.health(of) if row["name"] == "unreadable verdicts")
    assert unreadable["count"] == 2 and unreadable["worst"] == "../a.run.json"


def test_equal_texts_stand_once_and_say_whose_they_are():
    said = [samples.Text("a", "same", "n1"), samples.Text("b", "same", "n2"), samples.Text("c", "other", "n1")]
    sample = samples.Sample("q", "p", said)
    merged = [(t.label, t.text, t.note) for t in sample.merged()]
    assert merged == [("a · b", "same", "a: n1; b: n2"), ("c", "other", "n1")]
    assert sample.differs == "text verdict"
    assert samples.Sample("q", "p", [said[0], samples.Text("r", "far", reference=True)]).differs == ""


def test_every_verdict_keeps_the_names_that_it_is_of():
    """Of n names with one text: one note where all agree, else each note behind its own names."""
    notes = ["tie", "below", "tie", "", "over"]
    texts = [samples.Text(name, "same", note) for name, note in zip("abcde", notes, strict=True)]
    (one,) = samples.Sample("q", "p", texts).merged()
    assert one.label == "a · c · b · d · e" and one.note == "a · c: tie; b: below; e: over"
    assert samples.Sample("q", "p", texts[::2][:2]).merged()[0].note == "tie"


@pytest.mark.parametrize("draws", [1, 4])
def test_a_verdict_over_several_draws_says_so_and_which_one_is_shown(draws, tmp_path):
    made = experiment(seeds=[0], evaluation={"samples": draws})
    results = tree(made, tmp_path / "micro")
    texts(made, results)
    (group,) = samples.collect(Grid(made), results).answers
    # The starting model has two of its own, which it needs to be compared with.
    assert group.draws == max(draws, 2) and group.samples
    notes = {text.note.partition(":")[0] for sample in group.samples for text in sample.texts if text.label == "SSO"}
    assert notes == {"judge" if draws == 1 else "judge, mean of 4 draws"}
    report.build(Grid(made), results, tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    assert f"Shown: the first of an arm's draws (up to {max(draws, 2)}); the verdict: their mean" in page


def local(tmp_path: Path, preferences: dict[str, list[float | None]], **given) -> tuple[Grid, Path]:
    """config/local_model.yaml with a judge of the held-out prompts whose verdicts on an arm's answers are given."""
    judge = {"kind": "openai", "model": "j"}
    made = load_experiment(["config/local_model.yaml"], {"model": "DIR", "queries": "p.jsonl", "judge": judge, **given})
    grid, results = Grid(made), tree(made, tmp_path / "local_model")
    for path in [*results.rglob("judged/*"), *results.rglob("data_quality*")]:
        path.unlink()
    for job in grid.of("judge"):
        arm, folder = str(job.arm), results / Path(job.output).relative_to(grid.root)
        prompt = [{"role": "user", "content": "Do it."}]
        own = preferences.get(arm, [])
        many = len(next(iter(preferences.values())))
        said = [{"id": f"q{i}", "prompt": prompt, "output": f"{arm} {i}", "model": arm} for i in range(many)]
        jsonl(results / Path(str(job.inputs["answers"])).relative_to(grid.root) / "against_start_answers.jsonl", said)
        known = [one for one in own if one is not None]
        value = 100 * sum(known) / len(known) if known else None
        entry = {"value": value, "stderr": None, "n": len(known), "unreadable": len(own) - len(known)}
        dump(folder / "scores.json", {"start_wr": entry} if own else {})
        if own:
            jsonl(folder / "against_start.jsonl", [{"id": f"q{i}", "preference": one} for i, one in enumerate(own)])
        summary = {"verdicts": 2 * len(own), "unreadable": 2 * entry["unreadable"]} if own else {}
        dump(Path(f"{folder}.run.json"), {"stage": "judge", **json.loads(job.mark), "summary": summary})
    report.build(grid, results, results / "report")
    return grid, results


def ended(grid: Grid, results: Path) -> list[str]:
    """What a run's end says of a report."""
    return list(ending.told(grid.experiment, results, ""))


def test_with_a_judge_of_held_out_prompts_the_first_screen_shows_its_win_rate_under_its_own_name(tmp_path):
    grid, results = local(tmp_path, {"pbaa": [0.5, 0.0] * 60, "sso": [1.0, 0.5, 0.5, 0.5] * 30})
    text = (results / "report/report.html").read_text()
    start = text[text.index("<header>") : text.index("</header>")]
    assert "win rate against the starting model, SSO - PBAA" in start and "AlpacaEval" not in start
    # 62.5 - 25 of 100; what the paper prints is another measure.
    assert '<span class="large">+37.50</span>' in start and "paper: prints none" in start
    assert "asked about no pairs" in start and "lacks one of" not in text
    rows = rows_of(results / "report/tables/comparisons.csv")
    assert [row["difference"] for row in rows if row["metric"] == "start_wr"] == ["37.5"]
    verdicts = {row["claim"]: row for row in rows_of(results / "report/tables/claims.csv")}
    untested = verdicts["SSO improves on PBAA."]
    assert (
        untested["verdict"] == "not tested (not asked for)"
        and "win rate against the starting" in untested["difference"]
    )
    (group,) = samples.collect(grid, results).answers
    assert [(t.label, t.note, t.reference) for t in group.samples[0].texts if t.label != "SSO"] == [
        ("Checkpoint", "the reference", True),
        (
            "PBAA",
            "judge: a tie with the reference"
            if int(group.samples[0].id[1:]) % 2 == 0
            else "judge: below the reference (0)",
            False,
        ),
    ]
    end = ended(grid, results)
    assert "--table against_start" in end[-2] and "win rate against the starting model" in end[2]


@pytest.mark.parametrize("readable", [[], [1.0]])
def test_a_judge_that_nobody_can_read_is_told_at_the_end_on_the_first_screen_and_in_health(readable, tmp_path):
    """Where one verdict could be read, there is a figure, and health alone tells of the others."""
    own = [*readable, *[None] * (4 - len(readable))]
    grid, results = local(tmp_path, {"pbaa": own, "sso": own})
    text = (results / "report/report.html").read_text()
    start = text[text.index("<header>") : text.index("</header>")]
    row = next(row for row in Page(text).rows["health"] if row[0]["text"] == "unreadable verdicts")
    warned = [line for line in ended(grid, results) if line.startswith("warning")]
    if readable:
        assert [cell["text"] for cell in row[1:3]] == ["12", "16"] and warned == [] and "unreadable" not in start
        return
    assert [cell["text"] for cell in row[1:3]] == ["16", "16"]
    assert warned == ["warning: the judge (j) gave no readable verdict: 16 of 16 verdicts unreadable."]
    assert "<small>16 of 16 verdicts unreadable</small>" in start
    assert "Left out, no verdict of the judge could be read: 1" in text
    assert "gave no readable verdict: 16 of 16" in (results / "report/tables/v2_against_start.md").read_text()


def test_passwords_in_addresses_stay_out(tmp_path):
    made = experiment(tracking_uri="http://user:hunter2@server:5000", seeds=[0])
    results = tree(made, tmp_path / "micro")
    report.build(Grid(made), results, results / "report")
    assert "hunter2" not in (results / "report/report.html").read_text()


browser = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@browser
def test_in_a_browser(built, tmp_path):
    """No console message, nothing foreign runs, a click sorts, samples are filtered, paper shows all, a phone needs no
    sideways scrolling, dark is dark."""
    bad = tmp_path / "bad.html"
    bad.write_text("<!doctype html><title>t</title><script>nothing.here</script>")
    order = "return [...document.querySelector('#v2_table1 tbody').rows].map(r => r.cells[2].dataset.v)"
    wide = "return document.documentElement.scrollWidth"
    colour = "return getComputedStyle(document.body).backgroundColor"
    with Browser(tmp_path / "profile") as chromium:
        chromium.open(bad)
        assert any("nothing is not defined" in message for message in chromium.console())
        chromium.device(1280, 900)
        chromium.open(built)
        assert chromium.run("return document.title") == f"micro {HOSTILE}: report"
        assert chromium.run(colour) == "rgb(255, 255, 255)"
        before = chromium.run(order)
        chromium.click("#v2_table1 thead th:nth-child(3) button")
        down = chromium.run(order)
        assert down == sorted(before, key=float, reverse=True) != before
        chromium.click("#v2_table1 thead th:nth-child(3) button")
        assert chromium.run(order) == sorted(before, key=float)
        chromium.click("#v2_table1 thead th:nth-child(1) button")
        labels = chromium.run(order.replace("r.cells[2].dataset.v", "r.cells[0].textContent"))
        assert labels == sorted(labels, key=str.lower, reverse=True)
        # Samples: a text to find, and where arms differ; the made-up arms say the same.
        shown = "return [...document.querySelectorAll('#read article')].filter(a => !a.hidden).length"
        every = chromium.run(shown)
        choose = "const e = document.querySelector('{}'); e.value = '{}';"
        choose += "e.dispatchEvent(new Event('input', {{bubbles: true}}))"
        chromium.run(choose.format("#find", "nobody says this"))
        assert chromium.run(shown) == 0 < every
        chromium.run(choose.format("#find", "Y+, UNDER"))
        assert 0 < chromium.run(shown) < every
        chromium.run(choose.format("#find", ""))
        chromium.run(choose.format("#show", "verdict"))
        assert 0 < chromium.run(shown) < every
        # Paper, A4 across: light whatever the screen is, nothing folded with or without the script, nothing cut.
        chromium.device(1047, 720, dark=True, paper=True)
        chromium.open(built)
        folded = "return [...document.querySelectorAll('details > *:last-child')].filter(e => !e.offsetHeight).length"
        cut = "return [...document.querySelectorAll('.scroll, pre')]"
        cut += ".filter(e => e.scrollWidth > e.clientWidth + 1).length"
        assert chromium.run(folded) == 0 and chromium.run(cut) == 0
        assert chromium.run(colour) == "rgb(255, 255, 255)" and chromium.run(wide) <= 1047
        assert chromium.run("return document.querySelectorAll('details[open]').length") == 0
        opened = (
            "dispatchEvent(new Event('beforeprint')); return document.querySelectorAll('details:not([open])').length"
        )
        closed = "dispatchEvent(new Event('afterprint')); return document.querySelectorAll('details[open]').length"
        assert chromium.run(opened) == 0 and chromium.run(closed) == 0
        printed = chromium.pdf()
        assert printed.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", printed)) > 5
        chromium.device(360, 740, dark=True)
        chromium.open(built)
        chromium.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert chromium.run(wide) == 360
        assert chromium.run(colour) == "rgb(20, 23, 27)"
        chromium.screenshot(tmp_path / "phone.png")
        assert chromium.console() == []
    assert (tmp_path / "phone.png").stat().st_size > 10_000
