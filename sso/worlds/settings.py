"""Settings of the worlds with an exact oracle."""

from operator import not_
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from sso.settings import Settings

Law = Literal["zipf", "uniform"]


class Sizes(Settings):
    """How much a world gives."""

    seed: int = 0
    sft_examples: int = Field(40_000, ge=1)
    train_queries: int = Field(768, ge=1)
    """Queries of one training set; iterative arms get a fresh set each iteration."""
    tune_queries: int = Field(480, ge=1)
    eval_queries: int = Field(1200, ge=1)
    benchmark_items: int = Field(300, ge=1)
    """Items of each lm-eval benchmark, of MT-Bench's look-alike and, out of the evaluation queries, of steering."""
    annotated_pairs: int = Field(1024, ge=1)
    """Pairs of the annotated preference set, which the paper's Skywork set is to the arms' pairs: 80k to 60k."""


class Noise(Settings):
    """How the micro-world's procedure follows principles, of which SFT's corpus is made."""

    good: float = Field(ge=0, le=1)
    """A good principle multiplies the named flaws' rates by this."""
    bad: float = Field(ge=0, le=1)
    """A bad one produces each named flaw with this probability."""
    gross: float = Field(ge=0, le=1)
    """A share of those in the gross form, which never occurs otherwise."""


class MicroWorld(Sizes):
    """The micro-world: a procedural language with an exact oracle (docs/microworld.md)."""

    KIND: ClassVar = "micro"
    TOKENS: ClassVar = {"prompt_tokens": 26, "principle_tokens": 25, "response_tokens": 18}
    """Mean lengths, for the cost model."""
    DIALOGUE: ClassVar = 50
    """Tokens of a dialogue of SFT's corpus."""
    ORACLE: ClassVar = ("name", "seed", "entities")
    """Settings that the oracle's verdicts depend on."""
    BENCHMARKS: ClassVar = ("mt_bench", "steering", "gpqa", "gsm8k", "ifeval", "math", "mmlu", "mmlu_pro")
    """Benchmarks that it has a file of."""
    name: Literal["a1", "base"] = "a1"
    """Noise law: in `a1` bad principles mostly elicit near misses, in `base` mostly gross flaws."""
    noise: Noise | None = Field(None, exclude_if=not_)
    """A law of one's own in its place (docs/micro_results.md)."""
    queries: Law = "zipf"
    """How often the queries of training, tuning and evaluation, the annotated set's and the benchmarks' name an entity:
    by the Zipf(1) law of SFT's corpus, or all alike, which asks mostly for facts that no model was shown."""
    entities: int = Field(300, ge=20, le=300)

    @property
    def title(self) -> str:
        """The world in a few words."""
        own = self.noise and f"noise {self.noise.good:g}, {self.noise.bad:g}, {self.noise.gross:g}"
        return f"micro, {own or self.name}" + (", uniform queries" if self.queries == "uniform" else "")


class RealWorld(Sizes):
    """Real prompts, each with one or two constraints that IFEval's checkers decide exactly (docs/real_lm.md)."""

    KIND: ClassVar = "real"
    TOKENS: ClassVar = {"prompt_tokens": 90, "principle_tokens": 20, "response_tokens": 55}
    DIALOGUE: ClassVar = 155
    ORACLE: ClassVar = ("name",)
    BENCHMARKS: ClassVar = ("steering", "ifeval", "ifeval_new_kinds")
    name: Literal["real"]
    sources: list[str] = []
    """Prompts with real answers: data sets of the hub, or local JSON, JSON Lines or Parquet files. The oracle alone
    needs none."""
    split: str = "train"
    """The split of hub data sets."""
    words: int = Field(60, ge=20)
    """Most words of an answer: a real one's first sentences, so many as have no more."""
    two_constraints: float = Field(0.3, ge=0, le=1)
    """Share of the prompts that have two."""
    sft_examples: int = Field(6000, ge=1)

    @property
    def title(self) -> str:
        """The world in a few words."""
        return "real prompts with checkable constraints"


def kind_of(values: Any) -> type[MicroWorld] | type[RealWorld]:
    """The settings that a world's values are read as."""
    name = values.get("name") if isinstance(values, dict) else getattr(values, "name", None)
    return RealWorld if name == "real" else MicroWorld


World = Annotated[
    Annotated[MicroWorld, Tag("[MicroWorld]")] | Annotated[RealWorld, Tag("[RealWorld]")],
    Discriminator(lambda values: f"[{kind_of(values).__name__}]"),
]
"""Either; tags in brackets are no part of a key, see `sso.settings.sentence`."""
