"""A card gives what the CPU gives, and two cards what one gives; `make check-gpu` runs these, and rehearses them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from sso import attention
from sso.logprobs import Scorer
from sso.objective import build
from sso.packing import in_one_row, paths, to_device, tokenize
from sso.records import Message, write
from sso.reference import load
from sso.sampling.transformers_engine import TransformersEngine
from sso.settings import Backbone
from sso.train.run import save
from sso.train.settings import Training
from sso.worlds.micro.models import build as build_model
from tests.conftest import REPOSITORY
from tests.test_distributed import SETTINGS
from tests.test_training import triple

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
gpu = pytest.mark.gpu


def sso(*arguments: object, cards: int | None = None) -> str:
    """What a command printed; `cards`: how many it sees, of those there are."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, sys.path[1:])])}
    if cards is not None and DEVICE == "cuda":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(seen.split(",")[:cards])
    command = [sys.executable, "-m", "sso.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def train(start: Path, out: Path, cards: int | None, **settings: object) -> str:
    how = json.dumps({**SETTINGS, **settings})
    files = ["--model", start / "start", "--data", start / "triples.jsonl", "--out", out]
    return sso("train", *files, "--settings", how, cards=cards)


@pytest.fixture(scope="module")
def tiny():
    return build_model(Backbone(architecture="qwen2", layers=2), 0)


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("gpu")
    save(*tiny, folder / "start")
    write(folder / "triples.jsonl", [triple(i) for i in range(22)])
    return folder


@pytest.fixture(scope="module")
def on_cpu(start):
    """A training without cards."""
    train(start, start / "cpu", cards=0)
    return start / "cpu"


@pytest.fixture(scope="module")
def on_one(start):
    """A training on one card."""
    train(start, start / "one", cards=1)
    return start / "one"


def steps(out: Path) -> list[dict[str, float]]:
    return [row for _, row in json.loads(out.with_name(out.name + ".run.json").read_text())["metrics"]]


def agree(out: Path, known: Path, start: Path, loss: float = 1e-3, moved: float = 2e-3) -> None:
    """The steps' figures are the same to ``loss``, and the weights differ by less than ``moved`` of what was learnt.

    Not weight by weight: Adam divides by a gradient's size, so where that is all rounding, so is the first update. On a
    CPU other micro-batches make 1e-6 of a difference by this measure, a learning rate 2% higher makes 0.02.
    """
    ours, expected = steps(out), steps(known)
    assert len(ours) == len(expected) == 3
    for row, other in zip(ours, expected, strict=True):
        for name in ("loss", "grad_norm", "W", "x-:yo>y+/margin"):
            assert row[name] == pytest.approx(other[name], rel=loss, abs=loss), name
    first, one, two = (load_file(path / "model.safetensors") for path in (start / "start", known, out))
    assert one.keys() == two.keys()
    difference, learnt = (
        sum(float((a[name].double() - b[name].double()).square().sum()) for name in one) ** 0.5
        for a, b in ((one, two), (one, first))
    )
    assert learnt > 0 and difference < moved * learnt, (difference, learnt)


@gpu
@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_a_card_gives_the_scores_and_gradients_of_the_cpu(tiny, layout):
    model, tokenizer = tiny
    nodes = build(Training(objective="sso_v1")).nodes
    samples = tokenize([triple(i) for i in range(8)], tokenizer, 256).samples
    found = []
    for device in ("cpu", DEVICE):
        model = model.to(device)
        model.zero_grad()
        scorer = Scorer(model, nodes, tokenizer.pad_token_id, layout)
        with scorer.attention(model):
            logp = scorer(model, scorer.batch(samples))
            logp.mean().backward()
        found.append((logp.detach().cpu(), [p.grad.detach().cpu() for p in model.parameters()]))
    model.to("cpu")
    (logp, gradients), (other, others) = found
    torch.testing.assert_close(other, logp, rtol=1e-4, atol=1e-3)
    for one, two in zip(gradients, others, strict=True):
        assert (one - two).norm() <= 1e-3 * one.norm() + 1e-6


@gpu
@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_bfloat16_is_float32_to_its_rounding(layout):
    """Each of a response's tokens by less than 0.05 nats, on average."""
    model, tokenizer = build_model(Backbone(architecture="llama", layers=2), 0)
    nodes = build(Training(objective="sso_v2")).nodes
    samples = tokenize([triple(i) for i in range(16)], tokenizer, 256).samples
    made = []
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(DEVICE, dtype)
        scorer = Scorer(model, nodes, tokenizer.pad_token_id, layout)
        with scorer.attention(model), torch.no_grad():
            batch = scorer.batch(samples)
            logp = scorer(model, batch)
        assert logp.dtype == torch.float32 and logp.isfinite().all()
        made.append(logp / batch["tokens"].to(logp.device))
    assert 0 < (made[0] - made[1]).abs().mean() < 0.05


@gpu
def test_one_flash_call_is_attention_row_by_row():
    """Outputs and gradients of the kernel for paths behind one another, in bfloat16, against rows of each path."""
    if DEVICE == "cpu":
        pytest.skip("the kernel is CUDA's")
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(0, 3, (n,), generator=generator).tolist() for n in (3, 40, 70, 70, 129, 1, 200)]
    forest = in_one_row(paths([*sequences, sequences[-1][:150] + sequences[1]]))["layout"].moved(lambda t: t.to(DEVICE))
    module, made = SimpleNamespace(num_key_value_groups=2, training=True), []
    tokens = len(forest.home)
    inputs = [torch.randn(heads, tokens, 64, generator=generator).to(DEVICE, torch.bfloat16) for heads in (4, 2, 2)]
    upstream = torch.randn(tokens, 4, 64, generator=generator).to(DEVICE, torch.bfloat16)
    for way in (attention._in_one_call, attention._in_rows):
        own = [one.clone().requires_grad_() for one in inputs]
        out = way(module, *own, forest, {"scaling": 64**-0.5})
        made.append([out.detach(), *torch.autograd.grad(out, own, upstream)])
    for one, two in zip(*made, strict=True):
        assert (one - two).float().norm() < 0.01 * two.float().norm()


@gpu
def test_nothing_waits_within_a_step():
    """Forward and backward pass of a forest on the card, while torch forbids what waits for it."""
    if DEVICE == "cpu":
        pytest.skip("nothing is waited for on the CPU")
    model, tokenizer = build_model(Backbone(architecture="llama", layers=2), 0)
    model = model.to(DEVICE, torch.bfloat16)
    scorer = Scorer(model, build(Training(objective="sso_v2")).nodes, tokenizer.pad_token_id)
    samples = tokenize([triple(i) for i in range(8)], tokenizer, 256).samples
    with scorer.attention(model):
        for number in range(2):
            batch = to_device(scorer.batch(samples), model.device)
            if number:  # the first one finds kernels and memory
                torch.cuda.set_sync_debug_mode("error")
            try:
                scorer(model, batch).sum().backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")


@gpu
def test_a_card_decodes_greedily_what_the_cpu_decodes(start):
    asked = [[Message(role="user", content=f"What is {i} and {i + 3}?")] for i in range(16)]
    drawn = []
    for device in ("cpu", DEVICE):
        engine = TransformersEngine(start / "start", batch_size=16)
        engine.model = engine.model.to(device)
        drawn.append([g.text for g in engine.generate(asked, [0] * 16, temperature=0, max_new_tokens=12)])
    same = sum(one == two for one, two in zip(*drawn, strict=True))
    assert any(drawn[0]) and same >= 15  # a tie in float32 may fall otherwise


@gpu
def test_a_training_on_a_card_is_that_of_the_cpu(start, on_cpu, on_one):
    agree(on_one, on_cpu, start)


@gpu
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_in_bfloat16_learns_what_float32_learns(start, on_one, tmp_path, checkpointing):
    """In which a card computes by its own kernels: autocast, with and without gradient checkpointing."""
    if DEVICE == "cpu":
        pytest.skip("transformers refuses bfloat16 on the CPU")
    train(start, tmp_path / "out", cards=1, dtype="bfloat16", gradient_checkpointing=checkpointing)
    ours, expected = steps(tmp_path / "out"), steps(on_one)
    assert len(ours) == len(expected)
    assert ours[0]["loss"] == pytest.approx(expected[0]["loss"], rel=0.05)


ENGINES = {
    "ddp": "DistributedDataParallel on {n} process",
    "zero2": "DeepSpeedEngine with ZeRO stage 2 on {n} process",
    "zero3": "DeepSpeedEngine with ZeRO stage 3 on {n} process",
    "fsdp2": "on {n} process",
}


def needs(engine: str) -> None:
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")


@gpu
@pytest.mark.parametrize(
    "engine", ["zero3", pytest.param("fsdp2", marks=gpu(cpu=False)), pytest.param("zero2", marks=pytest.mark.slow)]
)
def test_an_engine_that_shards_gives_the_run_of_a_plain_one_on_one_card(start, on_one, tmp_path, engine):
    """By NCCL, in a group of one: what a single card can show of it."""
    needs(engine)
    said = train(start, tmp_path / "out", cards=1, engine=engine)
    assert ENGINES[engine].format(n=1) in said
    agree(tmp_path / "out", on_one, start)


@gpu(cards=2)
@pytest.mark.parametrize(
    "engine",
    ["ddp", "zero3", pytest.param("fsdp2", marks=gpu(cpu=False)), pytest.param("zero2", marks=pytest.mark.slow)],
)
def test_two_cards_give_the_run_of_one_whatever_the_engine(start, on_one, tmp_path, engine):
    """NCCL, on as many cards as processes."""
    needs(engine)
    said = train(start, tmp_path / "out", cards=2, devices=2, engine=engine)
    assert ENGINES[engine].format(n=2) in said
    agree(tmp_path / "out", on_one, start)


@gpu(cards=2, cpu=False)
@pytest.mark.parametrize("engine", ["ddp", "zero3", "fsdp2"])
def test_two_cards_in_bfloat16_start_where_one_starts(start, tmp_path, engine):
    """Before the first update nothing has been learnt, whatever computes; and what is saved is in bfloat16, whole."""
    needs(engine)
    for devices in (1, 2):
        out = tmp_path / str(devices)
        train(start, out, cards=devices, devices=devices, engine=engine, dtype="bfloat16")
        weights = load_file(out / "model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
        assert weights.keys() == load_file(start / "start" / "model.safetensors").keys()
    one, two = (steps(tmp_path / name)[0] for name in ("1", "2"))
    assert abs(two["x+:y+>y-/margin"]) < 0.05 and two["loss"] == pytest.approx(one["loss"], rel=0.02)


@gpu(cards=2)
def test_two_cards_score_the_reference_of_one(start, tmp_path):
    made = []
    for devices in (1, 2):
        out = tmp_path / f"{devices}.safetensors"
        how = json.dumps({"dtype": "float32", "max_length": 256, "tokens_per_batch": 400, "devices": devices})
        files = ["--model", start / "start", "--data", start / "triples.jsonl", "--out", out]
        sso("reference", *files, "--objectives", "sso_v1", "--settings", how, cards=devices)
        made.append(load(out))
    one, two = made
    assert one.ids == two.ids and one.key == two.key and one.tokens.equal(two.tokens)
    torch.testing.assert_close(one.logp, two.logp, rtol=1e-5, atol=1e-3)
