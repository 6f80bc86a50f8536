"""Where everything of an experiment lies; nobody else knows the path scheme.

A *cell* is one backbone with one seed. A *run* is what is evaluated: an arm, or an iteration of it (`sso_v1/it2`).
"""

from typing import Any

from sso.config import Experiment

PATTERNS = {
    "config": "{root}/config.json",
    "data": "{root}/data",
    "preferences": "{root}/data/{part}.jsonl",
    "principles": "{writer}/principles/{guidelines}.jsonl",
    "convert": "{root}/{backbone}/checkpoint",
    "sft": "{cell}/sft",
    "sample": "{cell}/triples/{set}/triples.jsonl",
    "reference": "{cell}/triples/{set}/reference.safetensors",
    "generator": "{cell}/generator/{arm}",
    "pairs": "{cell}/pairs/{arm}/pairs.jsonl",
    "generated_pairs": "{cell}/pairs/{arm}/pairs.jsonl",
    "pairs_reference": "{cell}/pairs/{arm}/reference.safetensors",
    "data_quality": "{cell}/pairs/{arm}/data_quality.json",
    "policy": "{cell}/policy/{run}",
    "answer": "{cell}/eval/{run}/answers",
    "judge": "{cell}/eval/{run}/judged",
    "mix": "{cell}/reward/{reward}/pairs.jsonl",
    "reward_model": "{cell}/reward/{reward}/model",
    "rewardbench": "{cell}/reward/{reward}/rewardbench.json",
    "report": "{root}/report",
    "mlflow": "{root}/mlflow.done",
}
"""Paths of outputs, by rule (and `pairs_reference`, the second output of the rules that make pairs)."""


class Paths:
    """The places of one experiment under ``<results>/<experiment>``."""

    def __init__(self, experiment: Experiment, results: str = "results"):
        self.root = f"{results}/{experiment.experiment}"
        cell = self.root + "/{backbone}/s{seed}"
        # Principles that a policy writes itself are its cell's; all others are shared.
        writer = cell if experiment.principles.kind == "policy" else self.root
        self._fixed = {"root": self.root, "cell": cell, "writer": writer}

    def pattern(self, name: str) -> str:
        """The path of an output with Snakemake's wildcards in it."""
        pattern = PATTERNS[name]
        for key, value in self._fixed.items():
            pattern = pattern.replace("{" + key + "}", value)
        return pattern

    def path(self, name: str, **wildcards: Any) -> str:
        """The path of an output."""
        return self.pattern(name).format(**wildcards)

    def log(self, rule: str) -> str:
        """Where a rule's messages go; a pattern."""
        return f"{self.root}/logs/{self.pattern(rule).removeprefix(self.root + '/')}.log"

    def benchmark(self, rule: str) -> str:
        """Where Snakemake writes a job's wall time and peak memory; a pattern."""
        return f"{self.root}/benchmarks/{self.pattern(rule).removeprefix(self.root + '/')}.tsv"
