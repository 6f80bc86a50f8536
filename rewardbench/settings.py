"""Settings of reward models: what they are trained on, and how."""

from typing import Literal

from pydantic import Field, model_validator

from sso.settings import Preferences, Settings
from sso.train.settings import Optimization


class Source(Preferences):
    """Pairs that go into a reward model: an arm's, a preference set's (`path`), or the micro-world's annotated ones."""

    path: str | None = None  # type: ignore[assignment]  # the other kinds of source have none
    arm: str | None = None
    world: bool = False
    """The micro-world's annotated set: its own procedure's responses to queries of its own, labelled by the oracle."""
    weight: float | None = Field(None, gt=0)
    """Share of the mixture, beside the others' weights; the mixture is as large as the scarcest source allows."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Source":
        if (self.path is not None) + (self.arm is not None) + self.world != 1:
            raise ValueError("a source is one of `arm`, `path` (a preference set) and `world: true`")
        if self.weight is not None and self.limit is not None:
            raise ValueError("a source has a `limit` or a `weight`, not both")
        return self


class Mixture(Settings):
    """Which pairs a reward model is trained on."""

    arm: str | None = None
    """Short for one source, this arm's pairs."""
    sources: list[Source] = []
    """Where the pairs are from."""
    dedupe: bool = True
    """A prompt that an earlier source has is not taken from a later one. Pairs that repeat wholly never count twice."""
    ngram: int = Field(13, ge=0)
    """Pairs whose prompt shares so many words in a row with a RewardBench prompt are left out; 0: none are."""

    @model_validator(mode="after")
    def _coherent(self) -> "Mixture":
        if self.arm is not None and self.sources:
            raise ValueError("give `arm` or `sources`, not both")
        if len({source.weight is None for source in self.sources}) > 1:
            raise ValueError("sources: all have a `weight`, or none has")
        return self

    @property
    def parts(self) -> list[Source]:
        """The sources, `arm` among them."""
        return self.sources or ([Source(arm=self.arm)] if self.arm else [])


class Reward(Mixture, Optimization):
    """A Bradley-Terry reward model on pairs of arms and preference sets."""

    label: str
    """What tables call it."""
    version: Literal["v1", "v2"] = "v2"
    """The paper's version whose table the model stands in."""
    method: str | None = None
    """The paper's name of its data in results/paper/results.csv, e.g. `skywork+sso`."""
    base: str | None = None
    """A checkpoint to start from, e.g. meta-llama/Meta-Llama-3-8B-Instruct; None: the backbone's starting model."""
    backbones: list[str] | None = None
    """Backbones in whose cells it is trained; None: all that have the arms."""
    learning_rate: float = Field(5e-4, gt=0)
    """The highest, after the warm-up."""
    epochs: float = Field(2, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_length: int = Field(4096, ge=8)
    """Tokens of a prompt with a response; longer pairs are left out, nothing is cut."""
    margin: float = Field(0.0, ge=0)
    """m in -log sigmoid(r_w - r_l - m), times the pair's own margin where its set has one."""
    centering: float = Field(0.0, ge=0)
    """Weight of (r_w + r_l)^2, which keeps rewards around zero (Eisenstein et al. 2023)."""
