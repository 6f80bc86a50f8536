"""Log-probabilities of responses in contexts: the forward pass that reference scoring and training share.

Two ways give the same numbers to rounding. `padded` rows with the model's own logits are the plain definition, and
serve any causal model. A `forest` runs each context once and the language-model head only at positions that predict
a response token, in tiles of the vocabulary that the backward pass computes again: no [tokens, vocabulary] tensor
is ever in memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sso import attention
from sso.errors import InputError
from sso.objective import Node
from sso.packing import Sample, forest, padded

FOREST_MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose logits are the head's output as it is, without bias, scale or cap, and whose attention is all of
transformers' interface."""
TILE = {"cpu": 1 << 20, "cuda": 1 << 28}
"""Logits in memory at a time. 4 MB on CPU, where larger tiles leave the cache; 1 GB on CUDA."""


class TokenLogps(torch.autograd.Function):
    """log softmax(hidden @ weight.T) at each row's target, tile by tile of the vocabulary.

    The softmax is accumulated in float32 (float64 for float64 input) whatever the dtype of the product. The backward
    pass computes each tile again, so the weight's gradient is written once, tile by tile, and one tile is in memory.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        """hidden [tokens, width], weight [vocabulary, width], target [tokens]; returns [tokens], nats."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.dtype, ctx.wide = dtype, torch.promote_types(dtype, torch.float32)
        ctx.tile = max(128, TILE.get(device, TILE["cuda"]) // max(1, len(hidden)))
        lse = hidden.new_full((len(hidden),), -torch.inf, dtype=ctx.wide)
        chosen = hidden.new_zeros(len(hidden), dtype=ctx.wide)
        with torch.autocast(device, enabled=False):
            rows = hidden.to(dtype)
            for start, tile in _tiles(weight, ctx.tile, dtype):
                logits = (rows @ tile.t()).to(ctx.wide)
                at, inside = _within(target, start, len(tile))
                chosen += logits.gather(1, at[:, None])[:, 0].where(inside, 0)
                lse = torch.logaddexp(lse, logits.logsumexp(1))
        ctx.save_for_backward(hidden, weight, target, lse)
        return chosen - lse

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, target, lse = ctx.saved_tensors
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        gradient = gradient.to(ctx.wide)[:, None]
        into_hidden = hidden.new_zeros(hidden.shape, dtype=ctx.wide) if for_hidden else None
        into_weight = torch.empty_like(weight) if for_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            rows = hidden.to(ctx.dtype)
            for start, tile in _tiles(weight, ctx.tile, ctx.dtype):
                # d logp / d logits = onehot(target) - softmax
                slope = (rows @ tile.t()).to(ctx.wide).sub_(lse[:, None]).exp_().mul_(-gradient)
                at, inside = _within(target, start, len(tile))
                slope.scatter_add_(1, at[:, None], gradient.where(inside[:, None], 0))
                slope = slope.to(ctx.dtype)
                if into_hidden is not None:
                    into_hidden += slope @ tile
                if into_weight is not None:
                    into_weight[start : start + len(tile)] = slope.t() @ rows
        return None if into_hidden is None else into_hidden.to(hidden.dtype), into_weight, None


def _tiles(weight: Tensor, size: int, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(weight), size):
        yield start, weight[start : start + size].to(dtype)


def _within(target: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Targets as columns of a tile, and which of them lie in it."""
    return (target - start).clamp(0, size - 1), (target >= start) & (target < start + size)


@contextmanager
def scoring_head(model: Any, source: Tensor, target: Tensor) -> Iterator[None]:
    """While open, ``model(...)``'s logits are the log-probabilities of ``target`` at flat positions ``source``.

    The head's own forward is replaced, not the model's, so whatever wraps model and head (DDP, ZeRO-3's gathering
    of weights, PEFT, checkpointing) does its work.
    """
    inner = model
    while hasattr(inner, "module"):  # DDP, DeepSpeed; accelerate's own unwrapping imports DeepSpeed to know
        inner = inner.module
    head = inner.get_output_embeddings()
    head.forward = lambda hidden: TokenLogps.apply(hidden.flatten(0, 1)[source], head.weight, target)
    try:
        yield
    finally:
        del head.forward  # the class's own again


def forest_logps(model: Any, batch: dict[str, Any]) -> Tensor:
    """Summed log-probabilities (nats) of a `packing.forest`, the model's attention being `attention.NAME`.
    [samples, nodes]."""
    with scoring_head(model, batch["source"], batch["target"]):
        each = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            forest=batch["layout"],
            use_cache=False,
        ).logits
    # There are at most as many branches as nodes; their exact number would be waited for on CUDA.
    branches = each.new_zeros(batch["branch_of"].numel()).index_add(0, batch["owner"], each)
    return branches[batch["branch_of"]]


def padded_logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Summed log-probabilities (nats) of `packing.padded` rows. [samples, nodes]."""
    scored = batch["response_mask"]
    longest = scored.shape[1]
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        logits_to_keep=longest + 1,
        use_cache=False,
    ).logits[:, :-1]
    targets = batch["input_ids"][:, -longest:]
    wide = logits[scored].to(torch.promote_types(logits.dtype, torch.float32))
    each = -cross_entropy(wide, targets[scored], reduction="none")
    return each.new_zeros(scored.shape).masked_scatter(scored, each).sum(1).view_as(batch["tokens"])


class Scorer:
    """Scores the nodes of samples with one model, in the layout that it can take."""

    def __init__(self, model: Any, nodes: Sequence[Node], pad: int, layout: str = "auto"):
        """``layout`` is a Training's.

        Raises:
            InputError: a forest is asked for, but this model can't take one.
        """
        self.nodes, self.pad = list(nodes), pad
        config = model.config
        kinds = getattr(config, "layer_types", None)
        full = set(kinds) == {"full_attention"} if kinds else not getattr(config, "sliding_window", None)
        fits = config.model_type in FOREST_MODELS and full
        if layout == "forest" and not fits:
            raise InputError(
                f"layout: `forest` does not work with this {config.model_type} model; use `padded` or `auto`."
            )
        self.layout = "forest" if layout != "padded" and fits else "padded"

    @contextmanager
    def attention(self, model: Any) -> Iterator[None]:
        """The attention that the layout needs; the model's own again afterwards."""
        before = model.config._attn_implementation
        if self.layout == "forest":
            model.set_attn_implementation(attention.NAME)
        try:
            yield
        finally:
            model.set_attn_implementation(before)

    def batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The samples' tensors, on CPU."""
        return forest(samples, self.nodes) if self.layout == "forest" else padded(samples, self.nodes, self.pad)

    def __call__(self, model: Any, batch: dict[str, Any]) -> Tensor:
        """Summed log-probabilities (nats, at least float32) of a `batch` on the model's device. [samples, nodes].

        Call it within `attention`.
        """
        return forest_logps(model, batch) if self.layout == "forest" else padded_logps(model, batch)
