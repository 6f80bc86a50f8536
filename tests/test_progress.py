"""Progress: lines in a file, a bar in a terminal."""

import json
import os
import pty
import re
import subprocess
import sys
import termios

from sso.cli import main
from sso.jobs.progress import progress
from tests.conftest import REPOSITORY

LOOP = "from sso.jobs.progress import progress; show = progress('sample'); [show(i, 40, 'fine') for i in range(1, 41)]"


def test_a_file_gets_a_line_a_tenth_with_rate_and_remaining_time(capsys):
    show = progress("sample")
    for done in range(1, 401):
        show(done, 400)
    lines = capsys.readouterr().out.splitlines()
    assert 10 <= len(lines) <= 12 and lines[-1].startswith("sample: 400/400, ")
    assert all(re.fullmatch(r"sample: \d+/400, +[\d.?]+it/s, [\d:?]+ left", line) for line in lines), lines


def test_a_terminal_gets_a_bar():
    main_end, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    done = subprocess.Popen([sys.executable, "-c", LOOP], stderr=terminal, stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert done.communicate(timeout=60)[0] == b"" and done.returncode == 0
    shown = os.read(main_end, 65536).decode()
    os.close(terminal)
    assert "\r" in shown and "100%|" in shown and "40/40" in shown and "fine" in shown


def test_a_training_shows_its_steps_and_loss_and_no_dictionaries(tmp_path, capsys):
    turns = [{"role": "user", "content": "who ?"}, {"role": "assistant", "content": "me ."}]
    (tmp_path / "sft.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    files = ["--data", str(tmp_path / "sft.jsonl"), "--out", str(tmp_path / "m")]
    options = ["--backbone", '{"architecture": "llama", "layers": 1}', "--settings", '{"steps": 20, "batch_size": 1}']
    assert main(["sft", *files, *options]) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("sft: ")]
    assert 10 <= len(lines) <= 12 and "{" not in said
    assert re.search(r"^sft: 20/20, .* left, loss [\d.]+$", lines[-1])
