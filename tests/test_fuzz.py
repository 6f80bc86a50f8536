"""Whatever comes in from outside gives a value or one sentence: no other error, no hang.

SSO_FUZZ_CASES says how many cases each test tries; `pytest -m slow tests/test_fuzz.py` tries ten thousand and more.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval import length_controlled
from eval.benchmarks import alpaca_eval, arena_hard, mt_bench
from eval.endpoint_judge import FIVE
from eval.settings import Evaluation, Judge
from eval.verdicts import choice, rating
from rewardbench.data import read_bench, read_pairs
from sso import chat, config
from sso.endpoint import _read
from sso.errors import InputError
from sso.jobs.command import settings as read_settings
from sso.principles import BAD_HEADING, GOOD_HEADING, NAMED, Reply, drawn_features, named_features, parse_guideline
from sso.records import Answer, Message, Pair, Principles, Query, Triple, read, write
from sso.replies import Replies
from sso.sampling.settings import Endpoint, Sampling, Writer
from sso.settings import Backbone
from sso.train.settings import Training
from sso.worlds.micro.models import build
from sso.worlds.settings import MicroWorld
from tests.conftest import REPOSITORY

CASES = int(os.environ.get("SSO_FUZZ_CASES", "60"))
fuzzed = settings(
    max_examples=CASES,
    deadline=timedelta(seconds=10),  # a hang, not a busy machine
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)

KINDS = (Query, Principles, Triple, Pair, Answer)
WORDS = [
    *("id", "prompt", "chosen", "rejected", "good", "bad", "writer", "system_good", "system_bad", "original", "output"),
    *("model", "turn", "turns", "role", "content", "user", "assistant", "system", "messages", "question_id", "uid"),
    *("family", "category", "subset", "choices", "preference", "output_1", "output_2", "instruction", "generator"),
    *("name", "system_prompt", "prompt_template", "features", "fallback", "answer", "source", "second"),
]
TEXT = st.one_of(
    st.sampled_from(WORDS), st.text(max_size=8), st.sampled_from(["\x1b[31m", "../../x", "\0", "{", "NaN"])
)
LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT)
JSON = st.recursive(
    LEAF, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=5)), max_leaves=12
)
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "x"]), "content": TEXT}), max_size=3
)
SOUND = st.fixed_dictionaries(
    {
        "id": TEXT,
        "prompt": st.one_of(TEXT, TURNS),
        **dict.fromkeys(["chosen", "rejected"], st.one_of(TEXT, TURNS)),
        **dict.fromkeys(["good", "bad", "writer", "system_good", "system_bad", "original", "output", "model"], TEXT),
        **dict.fromkeys(["subset", "instruction", "generator", "output_1", "output_2"], TEXT),
        "turns": st.lists(TEXT, max_size=2),
    }
)
"""A row that nearly every reader takes."""


@st.composite
def rows(draw: st.DrawFn) -> bytes:
    """A file: sound rows, some with a value in another's place, some without a key, some bytes flipped or cut off."""
    made = draw(st.lists(st.one_of(SOUND, SOUND, JSON), max_size=3))
    for row in made:
        if isinstance(row, dict) and row and draw(st.booleans()):
            key = draw(st.sampled_from(sorted(row)))
            if draw(st.booleans()):
                row[key] = draw(JSON)
            else:
                del row[key]
    text = "\n".join(json.dumps(row, ensure_ascii=draw(st.booleans())) for row in made)
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(0, 2)) if data else 0):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 3)) == 0 else data)


def told(error: InputError) -> None:
    """What a message must be: one printable line of bounded length."""
    text = str(error)
    assert "\n" not in text and len(text) < 1000 and not re.search(r"[\x00-\x1f\x7f-\x9f]", text), text


@fuzzed
@given(st.one_of(rows(), st.binary(max_size=200)))
def test_records_are_read_whole_or_refused(tmp_path, data):
    path, again = tmp_path / "f.jsonl", tmp_path / "g.jsonl"
    path.write_bytes(data)
    for kind in KINDS:
        try:
            records = read(path, kind)
        except InputError as error:
            told(error)
            continue
        write(again, records)
        assert read(again, kind) == records


READERS = {
    "rewardbench pairs": read_pairs,
    "rewardbench": read_bench,
    "mt_bench": mt_bench.read,
    "mt_bench references": mt_bench.read_references,
    "arena_hard questions": arena_hard.read_questions,
    "arena_hard answers": arena_hard.read_answers,
    "references": alpaca_eval.read_references,
}


@fuzzed
@given(st.one_of(rows(), st.binary(max_size=200)))
def test_benchmark_files_are_read_or_refused(tmp_path, data):
    path = tmp_path / "f.jsonl"
    path.write_bytes(data)
    for reader in READERS.values():
        try:
            reader(path)
        except InputError as error:
            told(error)


@fuzzed
@given(
    st.one_of(
        st.binary(max_size=200), st.one_of(JSON, st.lists(SOUND, max_size=2)).map(lambda v: json.dumps(v).encode())
    )
)
def test_whole_json_files_and_tables_are_read_or_refused(tmp_path, data):
    (tmp_path / "f.json").write_bytes(data)
    (tmp_path / "f.csv").write_bytes(data)
    for reader in (
        lambda: alpaca_eval.read_references(tmp_path / "f.json"),
        lambda: length_controlled.read_annotations(tmp_path / "f.json"),
        lambda: length_controlled.read_table(tmp_path / "f.csv", [3, 4]),
    ):
        try:
            reader()
        except InputError as error:
            told(error)


MARKS = [
    BAD_HEADING,
    GOOD_HEADING,
    "**Good guideline:**",
    "**",
    "#",
    "\n",
    " ",
    "-",
    "`",
    *NAMED,
    ",",
    "Be kind.",
    "]]",
]
VERDICTS = [
    "[[A]]",
    "[[B>>A]]",
    "[[7]]",
    "[[",
    "]]",
    "[7]",
    "Rating:",
    "/10",
    '"',
    "`",
    "```",
    "'",
    "“",
    ">",
    "\n",
    " ",
]
REPLY = st.one_of(
    st.text(max_size=400),
    st.lists(st.sampled_from([*MARKS, *VERDICTS, "</think>"]), max_size=30).map("".join),
    st.tuples(st.sampled_from([*MARKS, *VERDICTS]), st.integers(1, 5000)).map(lambda pair: pair[0] * pair[1]),
)


@fuzzed
@given(REPLY)
def test_replies_of_writers_and_judges_are_parsed_or_set_aside(reply):
    for heading in (BAD_HEADING, GOOD_HEADING):
        guideline = parse_guideline(Reply(reply), heading)
        assert guideline is None or (0 < len(guideline) <= 1200 and "\n" not in guideline)
    features = drawn_features(named_features(Reply(reply)), Random(0))
    assert len(set(features)) == len(features) >= 2
    assert choice(reply, FIVE) in (None, *FIVE)
    grade = rating(reply)
    assert grade is None or 1 <= grade <= 10


HALVES = st.text(st.sampled_from("a\ud83d\ude00\udfff\U0001f600"), max_size=4)
"""Half characters, and whole ones: `json.dumps` writes both as a server might."""
LOGPROBS = st.fixed_dictionaries({"content": st.lists(st.dictionaries(HALVES, HALVES, max_size=2), max_size=2)})


@st.composite
def bodies(draw: st.DrawFn) -> str:
    """What an endpoint might send: any text, any JSON, or a completion with any values in it."""
    content, finish, other = (
        draw(st.one_of(JSON, HALVES)),
        draw(st.one_of(JSON, HALVES)),
        draw(st.one_of(JSON, LOGPROBS)),
    )
    choices = [{"message": {"content": content}, "finish_reason": finish, "logprobs": other}]
    return draw(st.one_of(st.text(max_size=200), st.just(json.dumps({"choices": choices, "usage": other}))))


@fuzzed
@given(bodies())
def test_any_body_of_an_endpoint_is_a_completion_that_can_be_kept_or_none(tmp_path, body):
    made = _read(body)
    assert made is None or (isinstance(made.text, str) and isinstance(made.finish, str | None))
    if made is not None:
        assert isinstance(made.logprobs, list | None)
        assert all(isinstance(n, int | None) for n in (made.prompt_tokens, made.completion_tokens))
        replies = Replies(tmp_path / "replies.db", "http://h/v1", "m")
        replies.put("key", "{}", "prompt", 0, asdict(made))
        assert json.dumps(replies.get("key")) == json.dumps(asdict(made))  # NaN, too
        replies.connection.close()


FIELDS = sorted(
    {name for kind in (Training, Sampling, Judge, Evaluation, MicroWorld, Writer) for name in kind.model_fields}
)
SETTINGS = st.dictionaries(st.one_of(st.sampled_from(FIELDS), TEXT), JSON, max_size=4)


@fuzzed
@given(
    st.one_of(st.text(max_size=100), SETTINGS.map(json.dumps)),
    st.sampled_from([Training, Sampling, Judge, MicroWorld, Endpoint]),
)
def test_settings_are_taken_or_refused(text, kind):
    try:
        assert isinstance(read_settings(kind)(text), kind)
    except InputError as error:
        told(error)


MICRO = config.read_yaml(REPOSITORY / "config" / "micro.yaml")


@fuzzed
@given(st.data())
def test_configs_are_taken_or_refused(tmp_path, data):
    """The micro config with one value, at any depth, replaced, renamed or removed; or any text as YAML."""
    values = json.loads(json.dumps(MICRO))
    place = values
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    old = place[key]
    if isinstance(place, dict) and data.draw(st.booleans()):
        del place[key]
        place[data.draw(TEXT)] = old
    else:
        place[key] = data.draw(JSON)
    text = data.draw(st.one_of(st.just(json.dumps(values)), st.text(max_size=80), st.sampled_from(YAML)))
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        config.load(tmp_path / "c.yaml")
    except InputError as error:
        told(error)


YAML = [
    "extends: c.yaml", "extends: 3", "extends: ../../../etc/passwd", "a: &a {b: *a}", "? [1, 2]\n: 3", "[" * 3000,
    "!!python/object/apply:os.system [touch ran]", "2024-99-99: x", "experiment: 2024-99-99", "- a", "null",
    "experiment: ../../x", "experiment: x\nbackbones: {}", "arms: [1]", "trainings: 5", "arms: {a: 1}",
]  # fmt: skip
CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>"]
HOSTILE = [
    *CONTROL,
    "<|",
    "|>",
    "user",
    "assistant\n",
    "{{ 7*7 }}",
    "{% for m in messages %}",
    "{#",
    "\x1b[2J",
    "</s>",
    "\n\n",
]


@pytest.fixture(scope="module")
def tokenizers():
    return [build(Backbone(architecture=name, layers=1), 0)[1] for name in ("qwen2", "llama")]


@fuzzed
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=6)), min_size=1, max_size=8).map("".join))
def test_no_text_becomes_a_control_token_or_a_template(tokenizers, text):
    for tokenizer in tokenizers:
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)

        def marks(content, tokenizer=tokenizer, special=special):
            messages = [Message(role=role, content=content) for role in ("system", "user", "assistant", "user")]
            return [i for i in chat.encode_prompt(tokenizer, messages) if i in special]

        assert marks(text) == marks("plain")
        ids = chat.encode_response(tokenizer, text)
        assert not special & set(ids[:-1]) and ids[-1] == chat.end_of_turn(tokenizer)


@pytest.mark.slow
def test_ten_thousand_cases():
    cases = 1500
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", __file__]
    done = subprocess.run(
        command, env={**os.environ, "SSO_FUZZ_CASES": str(cases)}, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:]
    count = int(re.search(r"(\d+) passed", done.stdout)[1]) if "passed" in done.stdout else done.stdout.count(".")
    print(f"{count * cases} cases")
    assert count * cases >= 10_000 and not Path(REPOSITORY / "ran").exists()
