"""The conda environments: pinned, of one mind with pyproject.toml, and refused where they can't resolve."""

import re
import tomllib

import pytest

from tests.conftest import REPOSITORY
from workflow.envs.resolve import FILES, main, pip_part

APART = {"vllm.yaml": {"transformers"}}
"""Packages that an environment pins to another version than the project: the reason that it is there."""

PIN = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,-]+\])?==(?P<version>[\w.+]+)")


def pins(requirements):
    found = [PIN.fullmatch(line.split("#")[0].strip()) for line in requirements]
    return {match["name"].lower(): match["version"] for match in found if match}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_an_environment_is_pinned_and_differs_only_where_it_must(file, project):
    python, requirements = pip_part(file)
    assert python == "3.11"
    own = pins(requirements)
    assert len(own) == len([line for line in requirements if not line.startswith("-e .")]) > 0
    shared = pins(project["dependencies"])
    differ = {name for name, version in own.items() if name in shared and shared[name] != version}
    assert differ == APART.get(file.name, set())


def test_what_does_not_resolve_is_told(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path))
    file = tmp_path / "env.yaml"
    file.write_text("dependencies: [python=3.11, pip, {pip: [torch==2.13.0, torch==2.12.0]}]\n")
    assert main([str(file)]) == 1
    assert "torch==2.12.0" in capfd.readouterr().out
