"""Rows of data sets in the wild, told by one reader, and the tokens of dialogues that training scores."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardbench.data import read_pairs
from sso import chat, dialogues, preferences
from sso.cli import main
from sso.commands.training import read_records
from sso.errors import InputError
from sso.records import Message
from sso.settings import Preferences
from sso.train import fine_tune
from sso.train.settings import Sft
from sso.train.sft import tokens
from tests.conftest import REPOSITORY
from tests.test_tokenizers import TEMPLATE, checkpoint

SYSTEM, ASKED, SAID, AGAIN = "Answer as a geographer.", "Name a river.", "The Tyne.", "And in the south?"
ROUND = [("system", SYSTEM), ("user", ASKED), ("assistant", SAID), ("user", AGAIN)]
SIDES = {"chosen": "The Test.", "rejected": "No."}
MESSAGES = [{"role": role, "content": text} for role, text in ROUND]
SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text} for role, text in ROUND if text
]


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(turns: list[Message]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns]


# Preference sets: nothing beside the prompt is lost.


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": SHAREGPT},
        {"system": SYSTEM, "conversations": SHAREGPT[1:]},
        {"system": "", "prompt": MESSAGES},
        {"system_prompt": SYSTEM, "history": [[ASKED, SAID]], "prompt": AGAIN},
        {"system": SYSTEM, "instruction": AGAIN, "input": "", "history": [[ASKED, SAID]]},
        {"system_message": SYSTEM, "history": MESSAGES[1:3], "question": AGAIN},
        {"system": SYSTEM, "prompt": f"\n\nHuman: {ASKED}\n\nAssistant: {SAID}\n\nHuman: {AGAIN}\n\nAssistant:"},
        {"system": SYSTEM, "prompt": [{**turn, "content": [{"text": turn["content"]}]} for turn in MESSAGES[1:]]},
        # The dialogue's own system message goes before the column's.
        {"system": "Be brief.", "messages": MESSAGES},
    ],
    ids=["sharegpt", "column", "empty column", "plain", "alpaca", "messages", "transcript", "parts", "both"],
)
def test_system_and_history_columns_belong_to_the_prompt(row):
    [pair] = preferences.parse([row | SIDES], "set").pairs
    assert texts(pair.prompt) == ROUND


# One reader for one format: everything that takes pairs takes the same ones.

ANSWER = [{"role": "assistant", "content": "Green."}]
WILD = {
    "dialogue": {"id": "d", "chosen": [*MESSAGES[1:], *ANSWER], "rejected": [*MESSAGES[1:], MESSAGES[2]]},
    "empty": {"prompt": ASKED, "chosen": "  ", "rejected": "No."},
    "equal": {"prompt": ASKED, "chosen": "No.", "rejected": "No. "},
    "list": {"prompt": ASKED, "chosen": [], "rejected": "No."},
    "user last": {"chosen": MESSAGES[1:2], "rejected": MESSAGES[1:]},
    "null id": {"id": None, "prompt": ASKED, **SIDES},
    "another": {"id": None, "prompt": AGAIN, **SIDES},
    "twice": {"id": "d", "prompt": AGAIN, **SIDES},
    "null": {"prompt": None, **SIDES},
}


def test_all_that_read_pairs_read_the_same_ones(tmp_path, capsys):
    path = jsonl(tmp_path / "wild.jsonl", [*WILD.values()])
    found, left_out = preferences.read(path)
    assert [(pair.id, texts(pair.prompt)[-1][1], pair.chosen[-1].content) for pair in found] == [
        ("d", AGAIN, "Green."),
        ("5", ASKED, "The Test."),
        ("6", AGAIN, "The Test."),
        ("d#7", AGAIN, "The Test."),
    ]
    assert texts(found[0].prompt) == ROUND[1:]
    assert left_out == {"empty_side": 1, "equal_sides": 1, "missing_side": 1, "not_a_dialogue": 1, "no_prompt": 1}
    said = capsys.readouterr().err
    assert f"warning: {path}: left out 1 rows (equal sides): 2 (row 3)" in said and said.count("warning") == 5
    summary: dict = {}
    assert read_records(path, summary) == found and summary == left_out
    alike = [pair.model_dump(exclude={"margin", "source"}) for pair in found]
    assert [p.model_dump(exclude={"margin", "source"}) for p in read_pairs(path).pairs] == alike
    loaded, _ = preferences.load(Preferences(path=str(path)))
    assert [p.model_dump(exclude={"margin", "source"}) for p in loaded] == alike


def test_a_file_of_no_pair_is_told_in_one_sentence(tmp_path, capsys):
    model = checkpoint(tmp_path / "m")
    path = jsonl(tmp_path / "none.jsonl", [WILD["equal"], WILD["list"]])
    loss = {"objective": "pairs", "base_loss": "dpo"}
    chosen = ("--data", path, "--out", tmp_path / "out", "--settings", json.dumps(loss))
    for command in (
        ("train", "--model", model, *chosen),
        ("reference", "--model", model, "--objectives", "pairs", *chosen),
        ("loss", "--policy", model, "--reference", model, "--triples", path, "--objective", "pairs"),
    ):
        assert main([str(word) for word in command]) == 2
        said = f"error: {path}: no usable pair (1 equal sides: 0 (row 1), 1 missing side: 1 (row 2))"
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Dialogues for supervised fine-tuning.

DIALOGUE = [*MESSAGES, *ANSWER]
TOOL = {"role": "tool", "content": "12 degrees"}


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"messages": DIALOGUE}, [*ROUND, ("assistant", "Green.")]),
        ({"system": None, "messages": DIALOGUE[1:]}, [*ROUND[1:], ("assistant", "Green.")]),
        (
            {"messages": [{"role": "system", "content": None}, *DIALOGUE[1:]]},
            [*ROUND[1:], ("assistant", "Green.")],
        ),
        ({"system": SYSTEM, "conversations": [*SHAREGPT[1:], {"from": "gpt", "value": "Green."}]}, ...),
        ({"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in DIALOGUE]}, ...),
        ({"system": SYSTEM, "instruction": AGAIN, "history": [[ASKED, SAID]], "output": "Green."}, ...),
        ({"prompt": MESSAGES, "completion": ANSWER}, ...),
        ({"messages": [*DIALOGUE[:2], TOOL, *DIALOGUE[2:]]}, "tools, media or reasoning"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]}, "tools,"),
        ({"tools": "[{}]", "messages": DIALOGUE}, "tools, media or reasoning"),
        ({"tools": "[]", "messages": DIALOGUE}, ...),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": "a"}]}, *ANSWER]}, "tools,"),
        ({"messages": [DIALOGUE[2], *DIALOGUE[1:]]}, "assistant first"),
        ({"messages": [*DIALOGUE[:2], {"role": "assistant", "content": None}]}, "not a dialogue"),
        ({"messages": [*MESSAGES, {"role": "assistant", "content": " "}]}, "empty answer"),
        ({"messages": MESSAGES[:2]}, "no answer"),
        ({"messages": None}, "no prompt"),
        ({}, "no prompt"),
        ({"messages": "Name a river."}, "no answer"),
        ({"messages": [1]}, "not a dialogue"),
    ],
)
def test_a_row_in_the_wild_is_read_or_named(row, expected):
    found = dialogues.read([{"id": "first", **row}], lambda own, _: dialogues.dialogue(own))
    if isinstance(expected, str):
        [(reason, ids)] = found.left_out.items()
        assert reason.startswith(expected) and ids == ["first"] and not found.made
    else:
        assert texts(found.made[0]) == (expected if isinstance(expected, list) else [*ROUND, ("assistant", "Green.")])


def test_rows_that_cannot_be_trained_on_are_named_and_counted(tmp_path, capsys):
    rows = [{"messages": DIALOGUE}, {"messages": None}, {"messages": [*DIALOGUE[:2], TOOL]}, {"id": "x", "messages": 3}]
    path = jsonl(tmp_path / "sft.jsonl", rows)
    tokenizer = chat.load_tokenizer(checkpoint(tmp_path / "m"))
    made, counts = fine_tune.tokenized(Sft(data=str(path), max_length=256), tokenizer)
    assert counts["examples"] == len(made) == 1
    assert {key: n for key, n in counts.items() if n and key != "examples"} == {
        "left_out_dialogues": 3,
        "no_prompt": 1,
        "tools_media_or_reasoning": 1,
        "not_a_dialogue": 1,
    }
    assert f"{path}: left out 1 rows (not a dialogue): x (row 4)" in capsys.readouterr().err
    with pytest.raises(InputError, match=rf"{path}: no dialogue to train on \(1 no prompt: 0 \(row 1\)"):
        fine_tune.tokenized(Sft(data=str(jsonl(path, rows[1:2])), max_length=256), tokenizer)


TOKENIZED = """
import sys
from sso.chat import load_tokenizer
from sso.train import fine_tune
from sso.train.settings import Sft

start, data, sources = sys.argv[1:]
assert fine_tune.__file__.startswith(sources)
made, _ = fine_tune.tokenized(Sft(data=data, max_length=256), load_tokenizer(start))
print(made._fingerprint, made[0]["labels"][-1])
"""


def test_an_updated_suite_tokenizes_anew_and_the_same_one_does_not(tiny_checkpoint, tmp_path):
    """The cache of `datasets` knows what a function calls by its name alone."""
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    data, said = jsonl(tmp_path / "sft.jsonl", [{"messages": turns}]), []
    shutil.copytree(REPOSITORY / "sso", tmp_path / "sso", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "sso/train/sft.py"
    given = source.read_text()
    updated = given.replace("made[start:end] = ids[start:end]", "made[start:end] = [7] * (end - start)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", TOKENIZED, str(tiny_checkpoint), str(data), str(tmp_path)]
    for text in (given, given, updated):
        source.write_text(text)
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split())
    assert said[0] == said[1]
    assert said[2][0] != said[0][0] and said[2][1] == "7" != said[0][1]


def test_many_dialogues_are_tokenized_by_the_cores_of_the_job_to_the_same_rows(tmp_path, monkeypatch, capsys):
    from datasets import Dataset

    asked, plain = [], Dataset.map

    def spy(self, *args, **given):
        asked.extend([given["num_proc"]] if given["desc"] == "tokenize" else [])
        return plain(self, *args, **given)

    monkeypatch.setattr(Dataset, "map", spy)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.delenv("SSO_CORES", raising=False)
    monkeypatch.setattr(fine_tune, "ROWS_A_PROCESS", 5)
    tokenizer = chat.load_tokenizer(checkpoint(tmp_path / "m"))
    odd = {4: {"messages": None}, 9: {"id": "ours", "messages": DIALOGUE[:2]}, 16: {"messages": [1]}}
    rows = [odd.get(i) or {"messages": [*DIALOGUE, {"role": "user", "content": str(i)}, *ANSWER]} for i in range(17)]
    made = []
    for threads in ("1", "2", "64"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        path = jsonl(tmp_path / f"{threads}.jsonl", rows)  # a file of its own: what was mapped once is not mapped again
        found, counts = fine_tune.tokenized(Sft(data=str(path), max_length=256), tokenizer)
        said = capsys.readouterr().err.replace(str(path), "FILE").splitlines()
        made.append((found.to_dict(), counts, [line for line in said if line.startswith("warning")]))
    assert asked == [None, 2, 3]  # one process a core, none of them for fewer rows than are worth it
    assert made[0] == made[1] == made[2] and made[0][1]["examples"] == 14
    assert made[0][2][-1] == "warning: FILE: left out 1 rows (not a dialogue): 16 (row 17)"


# Labels are the ids where they stand.

TEMPLATES = {
    "plain": TEMPLATE,
    "strips": TEMPLATE.replace("m['content']", "m['content'] | trim"),
    "strips the past": TEMPLATE.replace("m['content']", "(m['content'] if loop.last else m['content'] | trim)"),
    "drops reasoning": TEMPLATE.replace("m['content']", "(m['content'] if loop.last else m['content'].split('!')[-1])"),
    "spells the past in another way": TEMPLATE.replace(
        "m['content']", "(m['content'] if loop.last or m['role'] == 'user' else m['content'] | upper)"
    ),
}
SAYING = st.text("a b.\n!é", min_size=1, max_size=12).filter(lambda text: text.strip())


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t")
    return {name: chat.load_tokenizer(checkpoint(folder / name, text)) for name, text in TEMPLATES.items()}


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(said=st.lists(st.tuples(SAYING, SAYING), min_size=1, max_size=4), system=st.sampled_from(["", "Be brief."]))
def test_scored_labels_are_the_ids_where_a_sampled_answer_stands(tokenizers, name, said, system):
    tokenizer = tokenizers[name]
    turns = [Message(role="system", content=system)] if system else []
    for asked, answer in said:
        turns += [Message(role="user", content=asked), Message(role="assistant", content=answer)]
    row = tokens(tokenizer, turns)
    ids, labels = row["input_ids"], row["labels"]
    assert all(label in (-100, own) for own, label in zip(ids, labels, strict=True)) and len(labels) == len(ids)
    starts = {tuple(chat.encode_prompt(tokenizer, turns[:i])): i for i, m in enumerate(turns) if m.role == "assistant"}
    begins = [i for i, label in enumerate(labels) if label != -100 and (i == 0 or labels[i - 1] == -100)]
    for begin in begins:
        end = next((i for i in range(begin, len(ids)) if labels[i] == -100), len(ids))
        # A model that is asked so far has just these ids before its answer, and the answer is what was said.
        answer = turns[starts[tuple(ids[:begin])]]
        assert tokenizer.decode(ids[begin : end - 1]).strip() == answer.content.strip()
        assert ids[end - 1] == chat.end_of_turn(tokenizer)
    # The last answer is always scored; earlier ones where the template keeps them as they were said, but for one that
    # begins with a line break, which makes one token with the break before it.
    assert tuple(ids[: begins[-1]]) == max(starts, key=len)
    if name == "plain":
        assert len(begins) == 1 + sum(answer[0] != "\n" for _, answer in said[:-1])


def test_an_earlier_answer_that_the_template_changes_is_not_scored_and_counted(tmp_path, tokenizers, capsys):
    turns = [("user", "hi"), ("assistant", "well! yes"), ("user", "and?"), ("assistant", "hm! no")]
    path = jsonl(tmp_path / "sft.jsonl", [{"messages": [{"role": r, "content": c} for r, c in turns]}])
    made, counts = fine_tune.tokenized(Sft(data=str(path), max_length=256), tokenizers["drops reasoning"])
    assert counts["answers_not_scored"] == 1 and "1 earlier answers of 1 dialogues are not scored" in (
        capsys.readouterr().err
    )
    scored = [token for token in made[0]["labels"] if token != -100]
    assert tokenizers["plain"].decode(scored).startswith("hm! no")


@pytest.mark.parametrize("first", [0, 1, 4])
def test_logits_before_the_first_answer_are_left_out_and_nothing_changes(tiny_checkpoint, first):
    import torch
    from transformers import DataCollatorForSeq2Seq

    from sso.chat import load_model, load_tokenizer

    tokenizer, model = load_tokenizer(tiny_checkpoint), load_model(tiny_checkpoint).double()
    tokenizer.padding_side = "right"
    examples = []
    for start, length in ((first + 2, 7), (first, 9)):
        ids = list(range(5, 5 + length))
        examples.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    kwargs = {"padding": True, "pad_to_multiple_of": 8}
    found = []
    for collator in (fine_tune.AnswersCollator, DataCollatorForSeq2Seq):
        batch = collator(tokenizer, **kwargs)([dict(example) for example in examples])
        model.zero_grad()
        out = model(**batch, num_items_in_batch=torch.tensor(10))
        out.loss.backward()
        found.append((out.loss.item(), [p.grad.clone() for p in model.parameters()], out.logits.shape[1]))
    (loss, gradients, positions), (whole_loss, whole, all_positions) = found
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(gradients, whole, strict=True))
    assert (positions, all_positions) == (16 - max(0, first - 1), 16)
