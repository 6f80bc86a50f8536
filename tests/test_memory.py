"""What weights take: loaded as they are stored, cast where they are used, and the plan beside what was measured."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sso import chat
from sso.attention import forests
from sso.packing import in_one_row, paths
from sso.records import write
from sso.settings import Backbone
from sso.train.run import save
from sso.train.settings import Training
from sso.worlds.micro.models import build
from tests.conftest import REPOSITORY
from tests.test_training import triple
from workflow.arithmetic import ACTIVATIONS_GB, Arithmetic
from workflow.machine import this_machine
from workflow.shapes import Shape, shape

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
    work = Arithmetic(this_machine(None))
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


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_layer_keeps_as_many_bytes_of_a_token_as_the_plan_says(kind, autocast):
    """Of a forward pass in bfloat16: four layers less two, by the storages that the backward pass holds."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_key_value_heads": 2}
    row = in_one_row(paths([[i % 90, *range(199)] for i in range(1, 3)]))
    layer = 256 * (2 * 256 + 2 * 128) + 3 * 256 * 1024

    def held(layers: int) -> int:
        config = AutoConfig.for_model(kind, vocab_size=200, num_hidden_layers=layers, **sizes)
        model = AutoModelForCausalLM.from_config(config).to(torch.float32 if autocast else torch.bfloat16)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with (
            forests(model),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            ids = {name: row[name] for name in ("input_ids", "position_ids")}
            model.model(**ids, forest=row["layout"], use_cache=False)
        return sum(size for size, _ in storages.values())

    cast = 2 * layer if autocast else 0  # the weights in bfloat16, which the plan counts once, not by token
    measured = ((held(4) - held(2)) / 2 - cast) / row["input_ids"].numel()
    assert measured == pytest.approx(Shape(0, 1, 256, 128, 200, 1024).kept, rel=0.15)
