"""The forest and the tiled head against the plain definition, on both architectures."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from sso import attention, logprobs
from sso.errors import InputError
from sso.logprobs import Scorer, TokenLogps
from sso.packing import Sample
from tests.test_packing import NODES

ids = st.lists(st.integers(1, 89), min_size=1, max_size=12)
samples = st.lists(
    st.builds(
        Sample,
        st.just("s"),
        st.fixed_dictionaries(dict.fromkeys(("x", "x+", "x-"), ids)),
        st.fixed_dictionaries(dict.fromkeys(("y+", "y-", "yo"), ids)),
    ),
    min_size=1,
    max_size=3,
)


def tiny(architecture: str, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=90,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        **settings,
    )
    return AutoModelForCausalLM.from_config(config)


MODELS = {name: tiny(name, tie_word_embeddings=name == "qwen2") for name in ("qwen2", "llama")}


def gradients(model, batch, scorer):
    """Scores and the gradients of a weighted sum of them, so that a mix-up of nodes shows."""
    model.zero_grad()
    with scorer.attention(model):
        logp = scorer(model, batch)
    weights = torch.arange(1, logp.numel() + 1, dtype=logp.dtype).view_as(logp) / logp.numel()
    (logp * weights / batch["tokens"]).sum().backward()
    return logp.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("architecture", MODELS)
@settings(max_examples=25)
@given(samples)
def test_forest_equals_padded_in_scores_and_gradients(architecture, given_samples):
    model, made = MODELS[architecture], {}
    for layout in ("forest", "padded"):
        scorer = Scorer(model, NODES, 0, layout)
        made[layout] = gradients(model, scorer.batch(given_samples), scorer)
    (logp, grad), (expected, slope) = made["forest"], made["padded"]
    torch.testing.assert_close(logp, expected, rtol=1e-5, atol=1e-4)
    assert (grad - slope).norm() <= 1e-5 * slope.norm()


def varlen(query, key, value, own_ends, key_ends, longest, most_keys, *, scale, window_size, enable_gqa):
    """What torch says that `varlen_attn` computes, one sequence after the other; causal at the lower right, as flash
    attention is from 2.1 on. No kernel here runs on the CPU: on a card tests/test_gpu.py compares them."""
    assert (window_size, enable_gqa) == ((-1, 0), True) and own_ends.dtype == key_ends.dtype == torch.int32
    made = []
    for (a, b), (c, d) in zip(pairwise(own_ends.tolist()), pairwise(key_ends.tolist()), strict=True):
        assert b - a <= longest and d - c <= most_keys
        k, v = (t[c:d].repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        scores = scale * torch.einsum("qhw,khw->hqk", query[a:b], k)
        seen = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        made.append(torch.einsum("hqk,khw->qhw", scores.masked_fill(~seen, -torch.inf).softmax(-1), v))
    return torch.cat(made)


@pytest.mark.parametrize("architecture", MODELS)
@settings(max_examples=25)
@given(samples)
def test_paths_behind_one_another_equal_rows(architecture, given_samples):
    """What a card computes in one call, with the kernel replaced by its definition."""
    model, made = MODELS[architecture].double(), []
    scorer = Scorer(model, NODES, 0, "forest")
    with pytest.MonkeyPatch.context() as patch:
        for one_call in (False, True):
            if one_call:
                patch.setattr(attention, "varlen_attn", varlen)
                patch.setattr(attention, "_in_rows", attention._in_one_call)
            made.append(gradients(model, scorer.batch(given_samples), scorer))
    model.float()
    for rows, paths in zip(*made, strict=True):
        torch.testing.assert_close(paths, rows, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_kernel_is_chosen_by_what_the_training_computes_in(autocast, monkeypatch):
    """Under autocast, too, where queries and keys come in float32: else it would never be the flash kernel."""
    seen, rows, model = [], attention._in_rows, MODELS["qwen2"]

    def watched(module, query, *others):
        seen.append(attention.computes_in(query))
        return rows(module, query, *others)

    monkeypatch.setattr(attention, "_in_rows", watched)
    scorer = Scorer(model, NODES, 0, "forest")
    one = Sample("a", {c: [1, 2] for c in ("x", "x+", "x-")}, {y: [3, 4] for y in ("y+", "y-", "yo")})
    with scorer.attention(model), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scorer(model, scorer.batch([one])).sum().backward()
    assert seen == 2 * [torch.bfloat16 if autocast else torch.float32]


@pytest.mark.parametrize("architecture", MODELS)
def test_packed_equals_each_sample_alone(architecture):
    model = MODELS[architecture].double()
    scorer = Scorer(model, NODES, 0, "forest")
    two = [
        Sample("a", {"x": [1], "x+": [2, 3, 4], "x-": [5, 6]}, {"y+": [7, 8], "y-": [9], "yo": [7, 8]}),
        Sample("b", {"x": [4, 4], "x+": [2], "x-": [1, 2, 3]}, {"y+": [3], "y-": [3, 1, 4, 1, 5], "yo": [2]}),
    ]
    with scorer.attention(model):
        alone = torch.cat([scorer(model, scorer.batch([one])) for one in two])
        packed = scorer(model, scorer.batch(two))
    model.float()
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-9)


@given(st.integers(1, 9), st.integers(1, 300), st.integers(0, 10_000))
@settings(max_examples=50)
def test_tiles_of_the_vocabulary_equal_the_full_softmax(tokens, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocabulary, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, vocabulary, (tokens,), generator=generator)
    upstream = torch.randn(tokens, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(logprobs.TILE, "cpu", 128)
        ours = TokenLogps.apply(hidden, weight, target)
        found = torch.autograd.grad(ours @ upstream, (hidden, weight))
    plain = (hidden @ weight.t()).log_softmax(-1)[torch.arange(tokens), target]
    expected = torch.autograd.grad(plain @ upstream, (hidden, weight))
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Products(TorchDispatchMode):
    """Keeps the matrix products within, as lists of their matrices."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function.overloadpacket is torch.ops.aten.mm:
            self.made.append([*args[:2], made])
        return made


def aligned(matrix):
    """Whether its rows, or its columns, lie one behind the other and each begins at a multiple of 16 bytes."""
    leading = max(matrix.stride()) if min(matrix.shape) > 1 else 8
    bytes_of = matrix.element_size()
    return 1 in matrix.stride() and leading * bytes_of % 16 == 0 and matrix.storage_offset() * bytes_of % 16 == 0


@given(st.integers(1, 40), st.integers(1, 3000), st.integers(0, 4000))
@settings(max_examples=60)
def test_every_matrix_of_the_head_is_aligned(tokens, vocabulary, tile):
    hidden, weight = (torch.randn(n, 16).bfloat16().requires_grad_() for n in (tokens, vocabulary))
    with pytest.MonkeyPatch.context() as patch, Products() as products:
        patch.setitem(logprobs.TILE, "cpu", tile * tokens)
        TokenLogps.apply(hidden, weight, torch.zeros(tokens, dtype=torch.long)).sum().backward()
    tiles = -(-vocabulary // max(256, tile // 256 * 256))
    assert len(products.made) == 4 * tiles  # logits, again, and what goes into hidden and weight
    assert all(aligned(matrix) for product in products.made for matrix in product)


def test_bfloat16_weights_are_summed_in_float32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32).bfloat16(), torch.randn(5000, 32).bfloat16()
    target = torch.randint(0, 5000, (64,))
    logp = TokenLogps.apply(hidden.requires_grad_(), weight.requires_grad_(), target)
    exact = (hidden.double() @ weight.double().t()).log_softmax(-1)[torch.arange(64), target]
    assert logp.dtype == torch.float32
    # Products round to 8 bits, sums of 5,000 of them don't: the error stays that of one product.
    assert (logp - exact).abs().max() < 0.15
    logp.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    slope = torch.autograd.grad(exact.sum(), hidden)[0]
    assert (hidden.grad.double() - slope).norm() < 0.02 * slope.norm()


def test_nothing_of_tokens_times_vocabulary_is_kept():
    saved = []

    def keep(tensor):
        saved.append(tensor)
        return tensor

    hidden, weight = torch.randn(50, 8, requires_grad=True), torch.randn(3000, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        TokenLogps.apply(hidden, weight, torch.zeros(50, dtype=torch.long))
    assert max(tensor.numel() for tensor in saved) == weight.numel()


def test_a_frozen_head_gets_no_gradient():
    hidden, weight = torch.randn(3, 8, requires_grad=True), torch.randn(20, 8)
    TokenLogps.apply(hidden, weight, torch.tensor([1, 2, 3])).sum().backward()
    assert hidden.grad is not None and weight.grad is None


def test_a_model_that_can_take_no_forest_is_scored_in_rows():
    other = tiny("gemma2", final_logit_softcapping=3.0)
    assert Scorer(other, NODES, 0).layout == "padded"
    windows = tiny("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0)
    assert Scorer(windows, NODES, 0).layout == "padded"
    with pytest.raises(InputError, match="`forest` does not work with this gemma2 model"):
        Scorer(other, NODES, 0, "forest")


def test_the_head_is_itself_again_even_after_a_failure():
    model = MODELS["qwen2"]
    scorer = Scorer(model, NODES, 0)
    batch = scorer.batch([Sample("a", {c: [1] for c in ("x", "x+", "x-")}, {y: [2] for y in ("y+", "y-", "yo")})])
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError), scorer.attention(model):
        scorer(model, {**batch, "position_ids": torch.zeros(3, 3, 3)})
    assert model.config._attn_implementation == before
    assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 90)
