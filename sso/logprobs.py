"""Log-probabilities of responses in contexts: the forward pass that reference scoring and training share.

Two ways give the same numbers to rounding. `padded` rows with the model's own logits are the plain definition, and
serve any causal model. A `forest` runs each context once and the language-model head only at positions that predict
a response token, in tiles of the vocabulary that the backward pass computes again: no [tokens, vocabulary] tensor
is ever in memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sso import attention
from sso.jobs.distributed import forward_of, unwrapped
from sso.objective import Node
from sso.packing import Sample, forest, padded

TILE = {"cpu": 1 << 20, "cuda": 1 << 28}
"""Logits in memory at a time. 4 MB on CPU, where larger tiles leave the cache; 1 GB on CUDA."""
ALIGNED = 256
"""A tile is a multiple of so many words: matrix kernels of GPUs take operands whose rows begin at multiples of 16
bytes, or fall back on slow ones."""


class TokenLogps(torch.autograd.Function):
    """log softmax(hidden @ weight.T) at each row's target, tile by tile of the vocabulary.

    The softmax is accumulated in float32 (float64 for float64 input) whatever the dtype of the product. The backward
    pass computes each tile again, so the weight's gradient is written once, tile by tile, and one tile is in memory.
    A row of it is `ALIGNED` however many tokens and words there are, for the sake of the matrix kernels.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        """hidden [tokens, width], weight [vocabulary, width], target [tokens]; returns [tokens], nats."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.dtype, ctx.wide = dtype, torch.promote_types(dtype, torch.float32)
        lse = hidden.new_full((len(hidden),), -torch.inf, dtype=ctx.wide)
        chosen = hidden.new_zeros(len(hidden), dtype=ctx.wide)
        with torch.autocast(device, enabled=False):
            for start, _, logits in _tiles(hidden.to(dtype), weight):
                at, inside = _within(target, start, logits.shape[1])
                chosen += logits.gather(1, at)[:, 0].where(inside, 0)
                most = logits.amax(1).to(ctx.wide)
                lse = torch.logaddexp(lse, torch.sub(logits, most[:, None]).exp_().sum(1).log_() + most)
        logp = chosen - lse
        ctx.save_for_backward(hidden, weight, target, lse, logp)
        return logp

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, target, lse, logp = ctx.saved_tensors
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        # d logp / d logits = onehot(target) - softmax. Its sign and the gradient are put to what it is multiplied with.
        scale = -gradient.to(ctx.wide)[:, None]
        at_target = logp.expm1().to(ctx.dtype)
        into_hidden = hidden.new_zeros(hidden.shape, dtype=ctx.wide) if for_hidden else None
        into_weight = torch.empty_like(weight) if for_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            rows = hidden.to(ctx.dtype)
            scaled = (hidden * scale).to(ctx.dtype)
            for start, tile, slope in _tiles(rows, weight):
                at, inside = _within(target, start, len(tile))
                if slope.dtype == ctx.wide:
                    slope.sub_(lse[:, None]).exp_()
                else:
                    slope.copy_(torch.sub(slope, lse[:, None]).exp_())
                slope.scatter_(1, at, at_target.where(inside, slope.gather(1, at)[:, 0])[:, None])
                if into_hidden is not None:
                    into_hidden += slope @ tile
                if into_weight is not None:
                    into_weight[start : start + len(tile)] = slope.t() @ scaled
        return None if into_hidden is None else into_hidden.mul_(scale).to(hidden.dtype), into_weight, None


def _tiles(rows: Tensor, weight: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Where each tile of the vocabulary begins, its weights, and its logits, which the next tile's overwrite."""
    tile = TILE.get(rows.device.type, TILE["cuda"]) // max(1, len(rows))
    width = min(max(tile // ALIGNED, 1), -(-len(weight) // ALIGNED)) * ALIGNED
    space = rows.new_empty(len(rows), width)
    if rows.dtype == torch.bfloat16:
        space.zero_()  # oneDNN's kernels read past a row's last logit, where a NaN may lie
    for start in range(0, len(weight), width):
        part = weight[start : start + width].to(rows.dtype)
        yield start, part, torch.mm(rows, part.t(), out=space[:, : len(part)])


def _within(target: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Targets as columns of a tile [tokens, 1], and which of them lie in it [tokens]."""
    return (target - start).clamp(0, size - 1)[:, None], (target >= start) & (target < start + size)


def scoring_head(model: Any, source: Tensor, target: Tensor) -> AbstractContextManager[None]:
    """While open, ``model(...)``'s logits are the log-probabilities of ``target`` at flat positions ``source``.

    The head's own forward is replaced, not the model's, so whatever wraps model and head (DDP, ZeRO-3's gathering
    of weights, PEFT, checkpointing) does its work.
    """
    head = unwrapped(model).get_output_embeddings()
    return forward_of(head, lambda hidden: TokenLogps.apply(hidden.flatten(0, 1)[source], head.weight, target))


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
    sums = each.new_zeros(batch["tokens"].numel()).index_add(0, batch["owner"], each[batch["scored"]])
    return sums.view_as(batch["tokens"])


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
        self.layout = attention.layout_of(model.config, layout)

    def attention(self, model: Any) -> AbstractContextManager[None]:
        """The attention that the layout needs; the model's own again afterwards."""
        return attention.forests(model, self.layout == "forest")

    def batch(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The samples' tensors, on CPU."""
        return forest(samples, self.nodes) if self.layout == "forest" else padded(samples, self.nodes, self.pad)

    def __call__(self, model: Any, batch: dict[str, Any]) -> Tensor:
        """Summed log-probabilities (nats, at least float32) of a `batch` on the model's device. [samples, nodes].

        Call it within `attention`.
        """
        return forest_logps(model, batch) if self.layout == "forest" else padded_logps(model, batch)
