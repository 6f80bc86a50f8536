"""IFEval's checkers, offline: hand-made answers that follow and that break each of the 25 kinds of instruction."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from eval.benchmarks import ifeval

ASK = "Write two lines about tea."
CASES = {
    "change_case:capital_word_frequency": (
        {"capital_relation": "at least", "capital_frequency": 2},
        "I like TEA and COFFEE.",
        "I like tea and COFFEE-free days. it is so",
    ),
    "change_case:english_capital": ({}, "THIS IS AN ENGLISH SENTENCE ABOUT TEA.", "THIS IS an English sentence."),
    "change_case:english_lowercase": ({}, "this is an english sentence about tea.", "This is an english sentence."),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": ASK},
        f"{ASK}\nTea is warm.\nTea is old.",
        "Tea is warm.\nTea is old.",
    ),
    "combination:two_responses": ({}, "Tea is warm.\n******\nTea is old.", "Tea is warm.\n***\nTea is old."),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        "Dear [name], meet me at [place].",
        "Dear [name], meet me.",
    ),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Bye.\nP.S. Buy tea.", "Bye.\nAlso buy tea."),
    "detectable_format:constrained_response": ({}, "My answer is maybe.", "Perhaps."),
    "detectable_format:json_format": ({}, '```json\n{"drink": "tea"}\n```', '{"drink": tea}'),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\nTea.\nSECTION 2\nMore tea.",
        "SECTION 1\nTea and more tea.",
    ),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* tea\n* milk", "* tea\n* milk\n- sugar"),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        "*Green tea* or *black tea*.",
        "*Green tea* or black tea.",
    ),
    "detectable_format:title": ({}, "<<On tea>>\nTea is warm.", "<On tea>\nTea is warm."),
    "keywords:existence": ({"keywords": ["tea", "milk"]}, "Tea with milk.", "Tea with sugar."),
    "keywords:forbidden_words": ({"forbidden_words": ["rock"]}, "A rocket, no stone.", "A hard rock."),
    "keywords:frequency": (
        {"relation": "at least", "keyword": "tea", "frequency": 2},
        "Tea, then more tea.",
        "Tea, then milk.",
    ),
    "keywords:letter_frequency": (
        {"let_relation": "less than", "letter": "z", "let_frequency": 2},
        "A lazy day.",
        "A lazy, hazy day.",
    ),
    "language:response_language": (
        {"language": "de"},
        "Der Tee ist heute sehr warm und schmeckt uns allen gut.",
        "The tea is very warm today and all of us like its taste.",
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"first_word": "milk", "num_paragraphs": 2, "nth_paragraph": 2},
        "Tea is warm.\n\nMilk is cold.",
        "Milk is cold.\n\nTea is warm.",
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        "Tea is warm.\n***\nMilk is cold.",
        "Tea is warm.\n\nMilk is cold.",
    ),
    "length_constraints:number_sentences": (
        {"relation": "less than", "num_sentences": 3},
        # Three full stops, two sentences: what a count of stops would get wrong.
        "Dr. Smith drinks tea. He likes it.",
        "He drinks tea. He likes it. So do I.",
    ),
    "length_constraints:number_words": ({"relation": "at least", "num_words": 4}, "Tea is very warm.", "Tea is warm."),
    "punctuation:no_comma": ({}, "Tea and milk.", "Tea, milk."),
    "startend:end_checker": ({"end_phrase": "Is that all?"}, "Tea is warm. Is that all?", "Is that all? Yes."),
    "startend:quotation": ({}, '"Tea is warm."', '"Tea" is warm.'),
}


def check(kind: str, arguments: dict, reply: str) -> tuple[bool, bool]:
    """Strict and loose verdict, through the function that the task calls."""
    ifeval.load_checkers([kind])
    from lm_eval.tasks.ifeval.utils import process_results

    row = {"key": 0, "prompt": ASK, "instruction_id_list": [kind], "kwargs": [arguments]}
    found = process_results(row, [reply])
    assert [found["prompt_level_strict_acc"]] == found["inst_level_strict_acc"]
    return found["prompt_level_strict_acc"], found["prompt_level_loose_acc"]


@pytest.mark.parametrize("kind", CASES)
def test_a_checker_tells_a_good_answer_from_a_bad_one(kind):
    arguments, good, bad = CASES[kind]
    assert check(kind, arguments, good) == (True, True)
    assert check(kind, arguments, bad)[0] is False
    assert check(kind, arguments, " ") == (False, False)


def test_the_loose_verdict_forgives_a_first_line_a_last_line_and_stars():
    assert check("startend:quotation", {}, 'Sure, here it is:\n"Tea is warm."') == (False, True)
    assert check("startend:end_checker", {"end_phrase": "Bye."}, "Tea.\n**Bye.**") == (False, True)
    assert check("punctuation:no_comma", {}, "a, b\nc, d\ne, f") == (False, False)


@pytest.mark.shared_data
def test_the_cases_are_all_kinds_that_the_benchmark_asks(shared_data):
    rows = [json.loads(line) for line in (shared_data / "ifeval/input_data.jsonl").open()]
    asked = Counter(kind for row in rows for kind in row["instruction_id_list"])
    assert set(asked) == set(CASES) and len(CASES) == 25 and len(rows) == 541


@pytest.mark.shared_data
def test_an_empty_reply_fails_everything_and_every_row_can_be_checked(shared_data):
    from lm_eval.tasks.ifeval.utils import process_results

    ifeval.load_checkers(ifeval.NEEDS_PUNKT)
    rows = [json.loads(line) for line in (shared_data / "ifeval/input_data.jsonl").open()][:150]
    for row in rows:
        assert not any(process_results(row, [""])["inst_level_loose_acc"])
        assert len(process_results(row, ["Tea is warm."])["inst_level_strict_acc"]) == len(row["instruction_id_list"])


def test_the_sentence_tables_are_installed_and_the_import_downloads_nothing():
    """In a process of its own, with an empty NLTK path and no way out."""
    code = """
import socket, sys
def refuse(*_, **__): raise SystemExit("the network was touched")
socket.socket.connect = refuse
from eval.benchmarks import ifeval
ifeval.load_checkers()
assert "nltk" not in sys.modules
import nltk
nltk.data.path[:] = []
ifeval.load_checkers(ifeval.NEEDS_PUNKT)
print(nltk.sent_tokenize("Dr. Smith met Mr. J. Doe. They had tea at 5 p.m. in Rome. Good!"))
"""
    out = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout
    assert out.strip() == str(["Dr. Smith met Mr. J. Doe.", "They had tea at 5 p.m. in Rome.", "Good!"])
