"""What the documentation shows is what the code reads, and its links lead somewhere."""

import json
import re
import tomllib

import pytest

from sso import dialogues
from sso.config import Experiment
from sso.preferences import usable
from sso.records import Pair, Principles, Query, Triple
from sso.settings import Backbone
from sso.train.sft import answers
from sso.worlds.micro.models import build
from tests.conftest import REPOSITORY
from tests.test_envs import pins

PAGES = [REPOSITORY / "README.md", REPOSITORY / "config/README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FORMATS = (REPOSITORY / "docs/data_formats.md").read_text(encoding="utf-8")


def examples(heading: str) -> list[list[dict]]:
    """The blocks of JSON lines below a heading, each a list of rows."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", FORMATS, re.M | re.S)[1]
    return [list(map(json.loads, block.splitlines())) for block in re.findall(r"```json\n(.*?)\n```", section, re.S)]


@pytest.mark.parametrize(("heading", "kind"), [("Queries", Query), ("Principles", Principles), ("Triples", Triple)])
def test_examples_of_a_format_are_that_format(heading, kind):
    rows = [row for block in examples(heading) for row in block]
    assert rows
    for row in rows:
        made = kind.model_validate(row)
        assert made.prompt[-1].role == "user" and row.keys() <= kind.model_fields.keys()


def test_examples_of_preference_sets_all_make_the_same_pair():
    own, *others = examples("Pairs")
    expected = Pair.model_validate(own[0])
    assert len(others) == 3
    for rows in (own, *others):
        pairs, left_out = usable([{"id": str(i), **row} for i, row in enumerate(rows)], "docs")
        assert len(pairs) == len(rows) and not any(left_out.values())
        for pair in pairs:
            assert (pair.prompt, pair.chosen, pair.rejected) == (expected.prompt, expected.chosen, expected.rejected)


def test_examples_of_dialogues_end_with_an_answer_that_is_trained_on():
    (rows,) = examples("Dialogues for SFT")
    tokenizer = build(Backbone(architecture="qwen2"), 0)[1]
    for row in rows:
        assert len(answers(tokenizer, dialogues.dialogue(row))[1]) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]+)?)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            known = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in known, target


def test_the_configs_page_names_every_key():
    table = (REPOSITORY / "config/README.md").read_text(encoding="utf-8").partition("The keys,")[2]
    named = {key for row in re.findall(r"^\| (`.*?) \|", table, re.M) for key in re.findall(r"`(\w+)`", row)}
    assert named == Experiment.model_fields.keys()


def test_the_lock_file_pins_what_the_project_pins():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = pins((REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines())
    own = {name.replace("_", "-"): version for name, version in pins(project["dependencies"]).items()}
    assert own and own.items() <= locked.items() and len(locked) > 2 * len(own)
