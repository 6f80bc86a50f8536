"""Settings of the worlds with an exact oracle."""

from typing import Literal

from pydantic import Field

from sso.settings import Settings

Law = Literal["zipf", "uniform"]


class World(Settings):
    """The micro-world: a procedural language with an exact oracle (docs/microworld.md)."""

    name: Literal["a1", "base"] = "a1"
    """Noise law: in `a1` bad principles mostly elicit near misses, in `base` mostly gross flaws."""
    queries: Law = "zipf"
    """How often the queries of training, tuning and evaluation, the annotated set's and the benchmarks' name an entity:
    by the Zipf(1) law of SFT's corpus, or all alike, which asks mostly for facts that no model was shown."""
    seed: int = 0
    entities: int = Field(300, ge=20, le=300)
    sft_examples: int = Field(40_000, ge=1)
    train_queries: int = Field(768, ge=1)
    """Queries of one training set; iterative arms get a fresh set each iteration."""
    tune_queries: int = Field(480, ge=1)
    eval_queries: int = Field(1200, ge=1)
    benchmark_items: int = Field(300, ge=1)
    """Items of each lm-eval benchmark, of MT-Bench's look-alike and, out of the evaluation queries, of steering."""
    annotated_pairs: int = Field(1024, ge=1)
    """Pairs of the annotated preference set, which the paper's Skywork set is to the arms' pairs: 80k to 60k."""
