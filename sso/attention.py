"""Attention within a forest, in transformers' own interface: plain causal attention, once for each branch.

All else in a model works on single tokens, so a forest's tokens can lie in one row without padding. For attention
alone each branch is laid out behind its context, as it would stand by itself; rows of like length go together, so
the kernel needs no mask, and causal attention never sees the padding at a row's end. A context's attention is
computed again in each of its branches, a small part of the step, and taken from the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "forest"
LIKE = 0.85
"""Rows of one kernel call are at least this part as long as the longest."""


@dataclass(frozen=True)
class Layout:
    """Where tokens lie for attention; a slot is a place in the rows of all groups, counted through.

    token: [slots], the token in each slot; padding repeats one.
    slot: [most branches of a tree, tokens], the slots that hold each token, filled up with a padding slot.
    first: [slots], 1 where a slot is its token's first, else 0.
    shapes: rows and width of each group.
    """

    token: Tensor
    slot: Tensor
    first: Tensor
    shapes: tuple[tuple[int, int], ...]

    def to(self, device: torch.device) -> "Layout":
        """The same on a device."""
        token, slot, first = (t.to(device, non_blocking=True) for t in (self.token, self.slot, self.first))
        return replace(self, token=token, slot=slot, first=first)


def layout(branches: Sequence[Sequence[int]], tokens: int) -> Layout:
    """Layout of ``branches``, each the positions of its context's and its own tokens in a row of ``tokens``."""
    groups: list[list[int]] = []
    for i in sorted(range(len(branches)), key=lambda i: (-len(branches[i]), i)):
        if not groups or len(branches[i]) < LIKE * len(branches[groups[-1][0]]):
            groups.append([])
        groups[-1].append(i)
    rows, real, shapes = [], [], []
    for members in groups:
        width = len(branches[members[0]]) + 1  # the last slot of a row is always padding
        shapes.append((len(members), width))
        for i in members:
            padding = width - len(branches[i])
            rows += [*branches[i], *[branches[i][-1]] * padding]
            real += [True] * len(branches[i]) + [False] * padding
    token = torch.tensor(rows)
    held = torch.tensor(real).nonzero()[:, 0]
    # Slots in the order of their tokens; a slot's rank among those of its token is its row in `slot`.
    by_token, order = token[held].sort(stable=True)
    counts = torch.bincount(by_token, minlength=tokens)
    rank = torch.arange(len(held)) - (counts.cumsum(0) - counts)[by_token]
    slot = torch.full((int(counts.max()), tokens), len(token) - 1)
    slot[rank, by_token] = held[order]
    first = torch.zeros(len(token), 1)
    first[slot[0]] = 1
    return Layout(token, slot, first, tuple(shapes))


class _Spread(torch.autograd.Function):
    """Tokens to slots. A token's gradient is the sum over its slots; that of padding is zero."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, where: Layout) -> Tensor:
        ctx.where = where
        return values.index_select(0, where.token)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        parts = [gradient.index_select(0, slot) for slot in ctx.where.slot]
        return sum(parts[1:], parts[0]), None


class _Collect(torch.autograd.Function):
    """Slots to tokens: each token's first."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, where: Layout) -> Tensor:
        ctx.where = where
        return values.index_select(0, where.slot[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.where.token).mul_(ctx.where.first.to(gradient.dtype)), None


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, *, forest: Layout, **rest: Any
) -> tuple[Tensor, None]:
    """Attention of one row of tokens that lie as ``forest`` says. query, key, value: [1, heads, tokens, width]."""

    def spread(values: Tensor) -> list[Tensor]:
        """The values by group, each [rows, heads, width of the group, width]."""
        _, heads, tokens, width = values.shape
        slots = _Spread.apply(values[0].transpose(0, 1).reshape(tokens, heads * width), forest)
        parts = slots.split([rows * length for rows, length in forest.shapes])
        return [
            part.view(rows, length, heads, width).transpose(1, 2)
            for part, (rows, length) in zip(parts, forest.shapes, strict=True)
        ]

    rest["is_causal"] = True
    groups = zip(spread(query), spread(key), spread(value), strict=True)
    made = [sdpa_attention_forward(module, q, k, v, None, **rest)[0].flatten(0, 1).flatten(1) for q, k, v in groups]
    together = _Collect.apply(torch.cat(made), forest)
    return together.view(1, query.shape[2], query.shape[1], -1), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
