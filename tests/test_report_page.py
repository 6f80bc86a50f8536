"""The page on made-up results: escaped, self-contained, its figures the CSV's, and what a browser makes of it."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

import report
from report import first, page, samples
from tests.browser import Browser, missing
from tests.test_report import dump, experiment, jsonl, rows_of, tree
from workflow.experiment import Grid

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
    job = grid.find("policy", {"backbone": "qwen2", "seed": 0, "run": "sso"})
    dump(results / "qwen2/s0/policy/sso.run.json", {"stage": "train", **json.loads(job.mark), **record})


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
    assert len([a for a in addresses if a.endswith("scores.json")]) > 50


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
            assert head["text"].endswith(f"n {theirs[metric + '_n']}") and "seeds 0 1" in cell["text"]
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
    assert len(read.answers) == 20
    last = [a.label + (f", iteration {a.iterations}" if a.iterations > 1 else "") for a in made.arms.values()]
    assert [t.label for t in read.answers[0].texts] == last
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
    read.answers = [
        samples.Sample("q", "p" * 9000, [samples.Text("a", "x" * 9000) for _ in range(20)]) for _ in range(100)
    ]
    limit = samples.cut(read)
    assert limit == samples.BUDGET // 2000
    assert read.answers[0].texts[0].text == "x" * limit + f" […{9000 - limit} more characters]"


def test_visible_leaves_text_alone():
    assert page.visible("line\n\ttab ü 漢 🙂") == "line\n\ttab ü 漢 🙂" and page.visible(3) == 3


def test_passwords_in_addresses_stay_out(tmp_path):
    made = experiment(tracking_uri="http://user:hunter2@server:5000", seeds=[0])
    results = tree(made, tmp_path / "micro")
    report.build(Grid(made), results, results / "report")
    assert "hunter2" not in (results / "report/report.html").read_text()


browser = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@browser
def test_in_a_browser(built, tmp_path):
    """No console message, nothing foreign runs, a click sorts, a phone needs no sideways scrolling, dark is dark."""
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
        chromium.device(360, 740, dark=True)
        chromium.open(built)
        chromium.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert chromium.run(wide) == 360
        assert chromium.run(colour) == "rgb(20, 23, 27)"
        chromium.screenshot(tmp_path / "phone.png")
        assert chromium.console() == []
    assert (tmp_path / "phone.png").stat().st_size > 10_000
