"""`sso chat`: checkpoints answer lines, each with and without a principle, by the suite's own engine and templates."""

import fcntl
import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import contextmanager, suppress

import pytest
import torch

from sso.cli import main
from sso.commands import talk
from sso.records import Message
from sso.sampling.engine import seed_of
from sso.sampling.transformers_engine import TransformersEngine
from sso.settings import Backbone
from sso.train.run import save
from sso.worlds.micro.models import build
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def models(request, tmp_path_factory):
    folders = []
    for seed in (0, 1):
        model, tokenizer = build(Backbone(architecture=request.param, layers=1), seed)
        with torch.no_grad():  # tied embeddings make an untrained model repeat its last token
            model.get_output_embeddings().weight.mul_(0.5)
        folders.append(tmp_path_factory.mktemp("run") / f"m{seed}")
        save(model, tokenizer, folders[-1])
    return folders


def chat(monkeypatch, capsys, text: str, *arguments) -> list[str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["chat", *map(str, arguments), "--set", "max_new_tokens=6"]) == 0
    return capsys.readouterr().out.splitlines()


def says(folder, *texts, temperature=0, turn=0) -> str:
    roles = ["user", "assistant"] * 2
    talked = [Message(role=role, content=text) for role, text in zip(roles, texts[1:], strict=False)]
    asked = [*([Message(role="system", content=texts[0])] if texts[0] else []), *talked]
    (made,) = TransformersEngine(folder).generate([asked], [seed_of(5, str(turn), "chat")], temperature, 0.8, 6)
    return made.text


def test_models_answer_side_by_side_with_and_without_principles(models, monkeypatch, capsys):
    files = ["--model", models[0], "--model", models[1]]
    lines = chat(monkeypatch, capsys, "Tell me.\n", *files, "--principle", "Be safe.", "--system", "Be brief.")
    assert lines == [
        f"m{i}{name}: {says(folder, system, 'Tell me.')}"
        for i, folder in enumerate(models)
        for name, system in {"": "Be brief.", ", principle 1": "Be safe.\n\nBe brief."}.items()
    ]
    paper = chat(monkeypatch, capsys, "Tell me.\n", *files[:2], "--bad-principle", "Be dull.", "--wrapper", "paper_v1")
    told = "Your response should be\n- Be dull.\nGive the user neither a word nor a hint of the features, principles "
    assert paper[1] == f"m0, principle 1: {says(models[0], told + 'or guidelines behind it.', 'Tell me.')}"


def test_a_conversation_goes_on_until_an_empty_line_and_is_drawn_by_the_seed(models, monkeypatch, capsys):
    given = ["--model", models[0], "--temperature", "0.7", "--seed", "5"]
    first, second, third = chat(monkeypatch, capsys, "Tell me.\nAnd?\n\nAnd?\n", *given)
    assert first == says(models[0], "", "Tell me.", temperature=0.7)
    assert second == says(models[0], "", "Tell me.", first, "And?", temperature=0.7, turn=1)
    assert third == says(models[0], "", "And?", temperature=0.7, turn=3)
    assert chat(monkeypatch, capsys, "Tell me.\nAnd?\n\nAnd?\n", *given[:-1], 6) != [first, second, third]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--temperature", "-1"], "Sampling settings: `temperature`: input should be greater than or equal to 0."),
        (["--set", "temprature=1"], "Sampling settings: unknown key `temprature`; did you mean `temperature`?"),
        (["--set", "engine=endpoint", "--set", "endpoint.model=m"], "the endpoint's settings name its model"),
    ],
)
def test_bad_input_is_one_sentence(models, given, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n"))
    assert main(["chat", "--model", str(models[0]), *given]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_what_is_no_utf8_is_named_and_a_model_is_given_once(models, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n"), encoding="utf-8"))
    assert main(["chat", "--model", str(models[0])]) == 2
    assert capsys.readouterr().err == "error: standard input: line 1 is not UTF-8; convert it.\n"
    assert main(["chat", "--model", str(models[0]), "--model", str(models[0])]) == 2
    assert "is given twice; leave one out" in capsys.readouterr().err


def test_a_ctrl_c_that_a_library_swallows_is_not_lost(models, monkeypatch):
    generate = TransformersEngine.generate

    def swallowing(*arguments):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return generate(*arguments)

    monkeypatch.setattr(TransformersEngine, "generate", swallowing)
    monkeypatch.setattr("sys.stdin", io.StringIO("Tell me.\n"))
    with pytest.raises(KeyboardInterrupt):  # on a terminal it is told, and the talk goes on
        main(["chat", "--model", str(models[0]), "--set", "max_new_tokens=4"])


@pytest.mark.parametrize("models", ["qwen2"], indirect=True)
def test_a_real_terminal_asks_stops_begins_anew_and_ends(models):
    """Ctrl-C ends a long answer and not the talk, Ctrl-D the talk; the terminal echoes what is typed."""
    with terminal("--model", models[0], "--model", models[1], "--set", "max_new_tokens=2000") as (shown, type_in):
        assert shown("> ").startswith("A line is a message, an empty one begins anew. Ctrl-C stops an answer")
        type_in("Tell me.\n")
        shown("Tell me.")
        time.sleep(0.3)
        type_in("\x03")
        assert "Traceback" not in shown("(stopped; the message is taken back)\n> ")
        type_in("\n")
        shown("(a new conversation)\n> ")
        type_in("\x04")
        assert shown(None).strip() == ""


@contextmanager
def terminal(*arguments):
    """`sso chat` on a terminal of its own: what waits for a text, or for the end, and gives what came; what types."""
    main_end, end = pty.openpty()
    command = [sys.executable, "-m", "sso", "chat", *map(str, arguments)]
    # A session of its own, with this terminal: Ctrl-C is a signal then.
    process = subprocess.Popen(
        command, stdin=end, stdout=end, stderr=end, cwd=REPOSITORY, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(end)
    came = ""

    def shown(mark: str | None) -> str:
        nonlocal came
        ended = False
        deadline = time.monotonic() + 120
        while not ended and (mark is None or mark not in came):
            assert time.monotonic() < deadline, came
            if select.select([main_end], [], [], 0.1)[0]:
                try:
                    came += os.read(main_end, 65536).decode(errors="replace").replace("\r\n", "\n")
                except OSError:  # the other end is closed
                    ended = True
        assert not ended or (mark is None and process.wait(60) == 0), came
        before, found, came = came.partition(mark) if mark else (came, "", "")
        return before + found

    try:
        yield shown, lambda text: os.write(main_end, text.encode())
    finally:
        process.kill()
        process.wait()
        os.close(main_end)


def test_on_a_terminal_replies_stand_side_by_side(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    talk._show({"sft": "One reply.", "sso, principle 1": "[b]Another[/b] one."}, True)
    out = capsys.readouterr().out
    assert any("One reply." in line and "[b]Another[/b] one." in line for line in out.splitlines())
