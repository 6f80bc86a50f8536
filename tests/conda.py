"""A conda that makes environments whose Python only tells how it was started; the rest is as conda does it."""

import json
import os
import sys
from pathlib import Path

CONDA = r"""#!/bin/sh
case "$1 $2" in
"info --json") echo '{{"conda_prefix": "{base}", "platform": "linux-64"}}' ;;
"config --get") echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
"env create")
    for last; do :; done  # the environment's folder
    mkdir -p "$last/bin" && cp "{base}/python" "$last/bin/python" ;;
*) echo "conda 26.1.0" ;;
esac
"""
# With one environment active, another takes its place in PATH, wherever that is.
ACTIVATE = r"""
export PATH=$(echo "$PATH" | sed "s|$CONDA_PREFIX/bin|$1/bin|") CONDA_PREFIX="$1"
"""
# It has none of the suite's libraries, as vLLM's environment has none of its pins: the suite comes with the command.
PYTHON = r"""#!/bin/sh
command="$*"
while [ $# -gt 1 ]; do [ "$1" = --out ] && out="$2"; shift; done
{python} -S -c '
import importlib.util, json, os, sys, sso
print("started", json.dumps([sys.argv[1:], sso.__file__, bool(importlib.util.find_spec("yaml")), os.environ["PATH"]]))
' "$0" "$command" && touch "$out"
"""


def environment(folder: Path) -> dict[str, str]:
    """Environment variables with that conda's base active."""
    base = folder / "conda"
    (base / "bin").mkdir(parents=True)
    python = Path(sys.executable).resolve()
    texts = {"bin/conda": CONDA.format(base=base), "bin/activate": ACTIVATE, "python": PYTHON.format(python=python)}
    for name, text in texts.items():
        (base / name).write_text(text)
        (base / name).chmod(0o755)
    path = f"{base}/bin{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "CONDA_PREFIX": str(base), "CONDA_SHLVL": "1"}


def config(checkpoint: Path) -> str:
    """An experiment whose first job with an environment of its own comes soon."""
    principles = {"kind": "checkpoint", "path": str(checkpoint), "engine": "vllm"}
    return json.dumps({"extends": "smoke", "experiment": "mine", "principles": principles})


def started(results: Path) -> tuple[list[str], str, bool, str]:
    """What the environment's Python told of its start by the last of that experiment's `principles`: its name and
    arguments, where the suite was found, whether the suite's libraries were, and PATH."""
    *_, log = sorted((results / "logs").rglob("principles*/*.log"))
    return json.loads(log.read_text().partition("started ")[2])
