"""A job of an experiment: one command of the workflow, and what it is about, as fields.

Rules, costs, plan, report and records read these fields; nobody parses a path or a settings' text back. Jobs are made
by workflow/, from a config.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from sso.objective import Node

MARK = "SSO_JOB"
"""The environment variable in which a rule tells its command which job it is; the command's record keeps it."""

Portion = Literal["iteration", "all", "generator", "annotated"]
"""Which queries a job works on: one iteration's, all, the first ones that a generator learns from, or the annotated
pairs' own."""


@dataclass(frozen=True)
class Job:
    """One command of the workflow."""

    rule: str
    wildcards: Mapping[str, str]
    output: str
    """The first of its outputs, which names it."""
    outputs: tuple[str, ...]
    inputs: Mapping[str, str | list[str]] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    """What its command line takes beside inputs and outputs: text, or lists of arguments."""
    settings: BaseModel | None = None
    """The settings that ``params`` state as text, as the model that checked them."""
    arm: str | None = None
    """The arm that the job is for; None for a job that arms share."""
    iteration: int = 0
    """Number of the iteration in an arm that has several; else 0."""
    log: str = ""
    """Where its messages go."""
    version: str = ""
    queries: Portion = "iteration"
    responses: tuple[str, ...] = ()
    """What is drawn for each query: y+, y-, yo, second."""
    nodes: tuple[Node, ...] = ()
    """What it scores of each sample."""

    @property
    def backbone(self) -> str | None:
        """The backbone of the job's cell; None for a job that all cells share."""
        return self.wildcards.get("backbone")

    @property
    def seed(self) -> int | None:
        """The seed of the job's cell; None for a job that all seeds share."""
        return int(self.wildcards["seed"]) if "seed" in self.wildcards else None

    @property
    def reward(self) -> str | None:
        """The reward model that it makes, feeds or scores."""
        return self.wildcards.get("reward")

    @property
    def name(self) -> str:
        """Rule and wildcards, as `policy backbone=qwen2 seed=0 run=sso`."""
        return " ".join([self.rule, *(f"{key}={value}" for key, value in self.wildcards.items())])

    @property
    def mark(self) -> str:
        """What `MARK` holds while the job's command runs, and what its record keeps: JSON."""
        about = {"rule": self.rule, "wildcards": dict(self.wildcards), "arm": self.arm, "iteration": self.iteration}
        return json.dumps(about)

    def reads(self, *names: str) -> list[str]:
        """All input paths, or those of ``names``, flat."""
        values = [value for name, value in self.inputs.items() if not names or name in names]
        return [path for value in values for path in ([value] if isinstance(value, str) else value)]


def this_job() -> dict[str, Any]:
    """What the rule says of the job that this process runs: `rule`, `wildcards`, `arm`, `iteration`; {} without one."""
    return json.loads(os.environ.get(MARK) or "{}")
