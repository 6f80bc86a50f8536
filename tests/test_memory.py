"""What weights take: loaded as they are stored, cast where they are used, and the plan beside what was measured."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from sso import chat
from sso.records import write
from sso.settings import Backbone
from sso.train.run import save
from sso.train.settings import Training
from sso.worlds.micro.models import build
from tests.conftest import REPOSITORY
from tests.test_training import triple
from workflow.arithmetic import ACTIVATIONS_GB, Arithmetic
from workflow.machine import this_machine
from workflow.shapes import shape

SIZES = {"small": 64, "large": 2048}
"""Widths: the difference between two models is that of their weights."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints stored in bfloat16, and rows to score."""
    folder = tmp_path_factory.mktemp("memory")
    write(folder / "triples.jsonl", [triple(i) for i in range(4)])
    for name, width in SIZES.items():
        model, tokenizer = build(Backbone(architecture="qwen2", hidden_size=width, layers=6), 0)
        save(model.to(torch.bfloat16), tokenizer, folder / name)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_cast_after_loading_are_those_that_were_loaded_so(folder, tmp_path, stored, dtype):
    AutoModelForCausalLM.from_pretrained(folder / "small", dtype=stored).save_pretrained(tmp_path)
    known = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    made = chat.cast(AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto"), dtype)
    assert made.dtype == dtype and made.config.dtype == known.config.dtype
    for one, other in zip(made.state_dict().values(), known.state_dict().values(), strict=True):
        assert one.dtype == other.dtype and one.equal(other)
    buffers = dict(known.named_buffers())
    assert buffers and all(buffer.equal(buffers[name]) for name, buffer in made.named_buffers())
    ids = torch.arange(5, 30)[None]
    assert made(ids).logits.equal(known(ids).logits)


@pytest.mark.parametrize(("engine", "width"), [("ddp", 4), ("zero2", 2)])
def test_the_plans_bytes_a_weight_are_what_scoring_takes(folder, tmp_path, engine, width):
    """On CPU, where weights lie in the host's memory: float32 under autocast is cast out of the mapped file, whose
    pages count as well; bfloat16 weights are the file itself."""
    peaks, planned = {}, {}
    work = Arithmetic(this_machine(True))
    for name in SIZES:
        out = tmp_path / f"{name}.safetensors"
        settings = json.dumps({"engine": engine, "max_length": 128, "tokens_per_batch": 128})
        files = ["--model", str(folder / name), "--data", str(folder / "triples.jsonl"), "--out", str(out)]
        command = ["reference", *files, "--objectives", "pairs", "--settings", settings]
        subprocess.run([sys.executable, "-m", "sso.cli", *command], check=True, cwd=REPOSITORY, capture_output=True)
        peaks[name] = json.loads(out.with_name(out.name + ".run.json").read_text())["peak_rss_mb"] / 1e3
        given = Training.model_validate_json(settings)
        assert (2 if given.numerics == "bfloat16 weights" else 4) == width
        planned[name] = work.score(shape(str(folder / name), {}), 0, 1, width).memory_gb - ACTIVATIONS_GB
    more, said = peaks["large"] - peaks["small"], planned["large"] - planned["small"]
    file = (folder / "large" / "model.safetensors").stat().st_size / 1e9
    mapped = file if width == 4 else 0
    assert said == pytest.approx(width / 2 * file, rel=0.05)
    print(more, said, mapped)
    assert 0.7 * said < more < 1.1 * (said + mapped) + 0.1
