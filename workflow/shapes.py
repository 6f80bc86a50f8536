"""Sizes of models, from their folder, the config that trains them from scratch, or workflow/models.yaml."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sso.errors import InputError
from sso.settings import ROOT, Backbone

MODELS = ROOT / "workflow" / "models.yaml"
FROM_SCRATCH_VOCABULARY = 512
"""Rough, of the micro-world's tokenizer."""


@dataclass(frozen=True)
class Shape:
    """A model's size."""

    parameters: float
    layers: int
    hidden: int
    kv: int
    """Width of one layer's keys."""
    vocabulary: int
    intermediate: int = 0
    """Width inside the MLP; 0: unknown, and taken to be four times ``hidden``."""

    @property
    def kept(self) -> float:
        """Bytes that a layer keeps of a token for its backward pass, in bfloat16.

        Both norms' inputs in float32, before and after scaling (16 a unit of width), what they hand on (4), queries,
        keys and values before and after rotation (4 each), attention's output (2); in the MLP the gate, its activation,
        the other branch and their product (8 a unit of its width).
        """
        return 26 * self.hidden + 8 * self.kv + 8 * (self.intermediate or 4 * self.hidden)

    def adapted(self, rank: int, modules: str | list[str] = "all-linear") -> float:
        """Parameters of adapters on these linear maps of each layer, rank x (inputs + outputs); unknown names and
        patterns count as all of them."""
        wide = self.intermediate or 4 * self.hidden
        attention = dict.fromkeys(("q_proj", "o_proj"), 2 * self.hidden)
        attention |= dict.fromkeys(("k_proj", "v_proj"), self.hidden + self.kv)
        sides = attention | dict.fromkeys(("gate_proj", "up_proj", "down_proj"), self.hidden + wide)
        named = modules if isinstance(modules, list) and set(modules) <= set(sides) else list(sides)
        return float(rank * self.layers * sum(sides[name] for name in named))


@cache
def _table() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(MODELS.read_text(encoding="utf-8"))


def shape(name: str, names: Mapping[str, str]) -> Shape:
    """A model's shape, from its folder or from workflow/models.yaml; ``names`` maps local paths back to hub names."""
    config = Path(name) / "config.json"
    if config.is_file():
        about = json.loads(config.read_text(encoding="utf-8"))
        hidden, layers, vocabulary = about["hidden_size"], about["num_hidden_layers"], about["vocab_size"]
        heads = about["num_attention_heads"]
        width = about.get("head_dim") or hidden // heads
        kv = width * about.get("num_key_value_heads", heads)
        wide = about["intermediate_size"]
        layer = 2 * hidden * (heads * width + kv) + 3 * hidden * wide
        ends = (1 if about.get("tie_word_embeddings") else 2) * vocabulary * hidden
        return Shape(layers * layer + ends, layers, hidden, kv, vocabulary, wide)
    known = _table().get(name.partition("@")[0]) or _table().get(names.get(name, ""))
    if known is None:
        raise InputError(f"{name}: its size is unknown; add it to {MODELS.relative_to(ROOT)}.")
    return Shape(**{**known, "parameters": known["parameters"] * 1e9})


def from_scratch(about: Backbone) -> Shape:
    """The shape of a backbone that is trained from scratch."""
    hidden, kv = about.hidden_size, about.hidden_size // about.heads * about.kv_heads
    layer = hidden**2 * 2 * (1 + about.kv_heads / about.heads) + 3 * hidden * (4 * hidden)
    vocabulary = FROM_SCRATCH_VOCABULARY
    return Shape(about.layers * layer + vocabulary * hidden, about.layers, hidden, kv, vocabulary)
