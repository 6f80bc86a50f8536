"""Attention within a forest, in transformers' own interface: plain causal attention, once for each path.

All else in a model works on single tokens, so a forest's tokens can lie in one row without padding. For attention
alone each path, from a root to a leaf, is gathered whole. On CUDA in half precision that is one call of a flash kernel
for paths of any lengths: queries stay where they are, each path's own tokens behind one another, and only keys and
values are gathered. Elsewhere paths of like length go together in rows, so the kernel needs no mask, and causal
attention never sees the padding at a row's end; what tokens that paths share have in later rows is not used.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import embedding
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sso.errors import InputError

NAME = "forest"
LIKE = 0.85
"""Rows of one kernel call are at least this part as long as the longest."""
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Never cuDNN's, which makes a plan on the CPU for every new shape, and shapes here are new in every micro-batch."""
MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose logits are the head's output as it is, without bias, scale or cap, and whose attention is all of
transformers' interface."""
WIDEST = 256
"""Of a head, for flash kernels."""


@dataclass(frozen=True)
class Layout:
    """Where tokens lie for attention.

    In rows; a slot is a place in the rows of all groups, counted through:
    token: [slots], the token in each slot; padding repeats one.
    home: [tokens], the slot whose output is each token's.
    shapes: rows and width of each group.

    One path behind the other:
    keys: [sum of paths' lengths], the tokens of each path.
    own_ends, key_ends: [paths + 1], int32; where each path's own tokens, and its keys, end.
    longest: the most own tokens, and the most keys.
    """

    token: Tensor
    home: Tensor
    shapes: tuple[tuple[int, int], ...]
    keys: Tensor
    own_ends: Tensor
    key_ends: Tensor
    longest: tuple[int, int]

    def moved(self, move: Any) -> "Layout":
        """The same with ``move`` of each tensor."""
        tensors = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **{name: move(tensor) for name, tensor in tensors.items()})


def whole_numbers(values: Sequence[int]) -> Tensor:
    """The values, int64; `torch.tensor` takes ten times as long."""
    return torch.from_numpy(np.fromiter(values, np.int64, len(values)))


def layout(paths: Sequence[Sequence[int]], own: Sequence[int]) -> Layout:
    """Layout of ``paths``, each the positions of its tokens in the forest's row; its last ``own[i]`` are in no path
    before it, and follow on those of the path before."""
    groups: list[list[int]] = []
    for i in sorted(range(len(paths)), key=lambda i: (-len(paths[i]), i)):
        if not groups or len(paths[i]) < LIKE * len(paths[groups[-1][0]]):
            groups.append([])
        groups[-1].append(i)
    rows: list[int] = []
    home = torch.empty(sum(own), dtype=torch.long)
    shapes = []
    for members in groups:
        width = len(paths[members[0]])
        shapes.append((len(members), width))
        for i in members:
            path, first = paths[i], len(rows) + len(paths[i]) - own[i]
            home[path[-own[i]] : path[-1] + 1] = torch.arange(first, first + own[i])
            rows += [*path, *[path[-1]] * (width - len(path))]
    lengths = [len(path) for path in paths]
    own_ends, key_ends = (torch.tensor([0, *counts]).cumsum(0).int() for counts in (own, lengths))
    keys = whole_numbers([token for path in paths for token in path])
    return Layout(whole_numbers(rows), home, tuple(shapes), keys, own_ends, key_ends, (max(own), max(lengths)))


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, *, forest: Layout, **rest: Any
) -> tuple[Tensor, None]:
    """Attention of one row of tokens that lie as ``forest`` says. query, key, value: [1, heads, tokens, width]."""
    dtype = computes_in(query)
    half = dtype in (torch.float16, torch.bfloat16)
    if query.is_cuda and half and query.shape[-1] <= WIDEST and not rest.get("dropout"):
        made = _in_one_call(module, query[0].to(dtype), key[0].to(dtype), value[0].to(dtype), forest, rest)
    else:
        made = _in_rows(module, query[0], key[0], value[0], forest, rest)
    return made[None], None


def computes_in(query: Tensor) -> torch.dtype:
    """What attention computes in: under autocast queries and keys come out of their rotation in float32."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _gather(values: Sequence[Tensor], where: Tensor) -> list[Tensor]:
    """[len(where), heads, width] of each of ``values`` [heads, tokens, width].

    As an embedding, whose backward pass adds in a fixed order.
    """
    heads = [v.shape[0] for v in values]
    rows = torch.cat([v.transpose(0, 1) for v in values], 1)
    made = embedding(where, rows.flatten(1)).view(len(where), *rows.shape[1:])
    return list(made.split(heads, 1))


def _in_one_call(module: Any, query: Tensor, key: Tensor, value: Tensor, forest: Layout, rest: Any) -> Tensor:
    """By one flash kernel; causal, so a path's own tokens are the last of its keys. [tokens, heads, width]."""
    keys, values = _gather((key, value), forest.keys)
    made = varlen_attn(
        query.transpose(0, 1).contiguous(),
        keys,
        values,
        forest.own_ends,
        forest.key_ends,
        *forest.longest,
        scale=rest.get("scaling"),
        window_size=(-1, 0),
        enable_gqa=True,
    )
    assert isinstance(made, Tensor)  # a pair only where it is asked for more
    return made


def _in_rows(module: Any, query: Tensor, key: Tensor, value: Tensor, forest: Layout, rest: Any) -> Tensor:
    """By groups of rows. [tokens, heads, width]."""
    rest["is_causal"] = True
    spread = _gather((query, key, value), forest.token)
    parts = zip(*(s.split([rows * width for rows, width in forest.shapes]) for s in spread), strict=True)
    made = []
    with sdpa_kernel(KERNELS):
        for (rows, width), part in zip(forest.shapes, parts, strict=True):
            q, k, v = (p.view(rows, width, *p.shape[1:]).transpose(1, 2) for p in part)
            made.append(sdpa_attention_forward(module, q, k, v, None, **rest)[0].flatten(0, 1))
    together = torch.cat(made)
    return embedding(forest.home, together.flatten(1)).view(-1, *together.shape[1:])


def layout_of(config: Any, wanted: str) -> str:
    """`forest` or `padded`: what is ``wanted``; `auto`: a forest, where a model of this config computes in it what it
    would in rows.

    Raises:
        InputError: a forest is wanted that this model can't take.
    """
    kinds = getattr(config, "layer_types", None)
    full = set(kinds) == {"full_attention"} if kinds else not getattr(config, "sliding_window", None)
    fits = config.model_type in MODELS and full
    if wanted == "forest" and not fits:
        raise InputError(f"layout: `forest` does not work with this {config.model_type} model; use `padded` or `auto`.")
    return "forest" if wanted != "padded" and fits else "padded"


@contextmanager
def forests(model: Any, wanted: bool = True) -> Iterator[None]:
    """Within, the model takes forests, if that is ``wanted``; its own attention again afterwards."""
    before = model.config._attn_implementation
    if wanted:
        model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


AttentionInterface.register(NAME, attend)
# No mask is registered under the name, and so none is made.
