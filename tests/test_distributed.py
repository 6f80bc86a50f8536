"""Two CPU processes give the run of one, by the engine that was asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sso.cli import main
from sso.errors import InputError
from sso.jobs.distributed import (
    CORES,
    LAUNCHED,
    PATIENCE,
    cores,
    deepspeed_config,
    is_main,
    keep_outputs,
    launched,
    start,
    tell_locks,
    world_size,
)
from sso.records import write
from sso.reference import load
from sso.settings import Backbone
from sso.train.run import check_engine, save
from sso.train.settings import Training
from sso.worlds.micro.models import build as build_model
from tests.conftest import REPOSITORY
from tests.test_training import triple

# 22 samples in batches of 8: the last batch is short, and its micro-batches don't come out even.
SETTINGS = {
    "objective": "sso_v1",
    "learning_rates": [1e-3],
    "batch_size": 8,
    "tokens_per_batch": 300,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    save(*build_model(Backbone(architecture="qwen2", layers=2), 0), folder / "start")
    write(folder / "triples.jsonl", [triple(i) for i in range(22)])
    assert main(command(folder, folder / "out")) == 0
    return folder


def command(folder: Path, out: Path, **settings) -> list[str]:
    given = json.dumps({**SETTINGS, **settings})
    files = ["--model", folder / "start", "--data", folder / "triples.jsonl", "--out", out]
    return ["train", *map(str, files), "--settings", given]


def steps(out: Path) -> list[dict[str, float]]:
    return [row for _, row in json.loads(out.with_name(out.name + ".run.json").read_text())["metrics"]]


@pytest.mark.parametrize(
    ("engine", "said", "more"),
    [
        ("ddp", "DistributedDataParallel on 2 processes", {}),
        ("zero2", "DeepSpeedEngine with ZeRO stage 2 on 2 processes", {}),
        ("zero3", "DeepSpeedEngine with ZeRO stage 3 on 2 processes", {}),
        # As all trainings of the paper's size.
        ("zero3", "DeepSpeedEngine with ZeRO stage 3 on 2 processes", {"gradient_checkpointing": True}),
        pytest.param("zero2_offload", "ZeRO stage 2 on 2 processes", {}, marks=pytest.mark.slow),
        pytest.param("zero3_offload", "ZeRO stage 3 on 2 processes", {}, marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_run_of_one_whatever_the_engine(alone, tmp_path, engine, said, more):
    out = tmp_path / "out"
    arguments = command(alone, out, devices=2, engine=engine, **more)
    done = subprocess.run([sys.executable, "-m", "sso.cli", *arguments], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    ours, expected = steps(out), steps(alone / "out")
    assert len(ours) == 3
    for row, other in zip(ours, expected, strict=True):
        for name in ("loss", "grad_norm", "W", "x-:yo>y+/margin", "x+:y+>y-/accuracy"):
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name
    weights, known = load_file(out / "model.safetensors"), load_file(alone / "out" / "model.safetensors")
    assert weights.keys() == known.keys()
    for name, value in known.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)


WAITING = """
import sys
import torch
from torch.distributed import distributed_c10d
from sso.jobs.command import leave
from sso.jobs.distributed import cores, start
from sso.train.settings import Training

start(Training(engine=sys.argv[1]))
world = distributed_c10d._get_default_group()
print(f"waits {world._get_backend(torch.device('cpu')).options._timeout}, {cores()} cores\\n", end="", flush=True)
leave(0)
"""


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_processes_wait_for_a_main_one_that_works_alone_for_hours(tmp_path, engine):
    """DeepSpeed's own 10 minutes are less than the 200,000 dialogues of UltraChat take."""
    (tmp_path / "waiting.py").write_text(WAITING)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), CORES: "2"}
    done = subprocess.run(
        [*run, str(tmp_path / "waiting.py"), engine], capture_output=True, text=True, cwd=REPOSITORY, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert PATIENCE.total_seconds() >= 3600 * 2
    assert done.stdout.count(f"waits {PATIENCE}, {min(2, len(os.sched_getaffinity(0)))} cores") == 2, done.stdout


@pytest.mark.parametrize(
    ("told", "before", "expected"),
    [("", None, 8), ("4", None, 4), ("32", None, 8), ("1", "4", 4), ("2,2", None, 8), ("0", None, 8)],
)
def test_the_cores_of_a_job_are_those_of_its_threads(monkeypatch, told, before, expected):
    """torchrun tells its processes 1; `launch` keeps what was told before."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.delenv(CORES, raising=False)
    if before:
        monkeypatch.setenv(CORES, before)
    assert cores() == expected


def test_two_processes_score_the_reference_of_one(alone, tmp_path):
    made = {}
    for devices in (1, 2):
        made[devices] = tmp_path / f"{devices}.safetensors"
        settings = json.dumps({"dtype": "float32", "max_length": 256, "tokens_per_batch": 400, "devices": devices})
        files = ["--model", alone / "start", "--data", alone / "triples.jsonl", "--out", made[devices]]
        arguments = ["reference", *map(str, files), "--objectives", "sso_v1", "--settings", settings]
        done = subprocess.run(
            [sys.executable, "-m", "sso.cli", *arguments], capture_output=True, text=True, cwd=REPOSITORY
        )
        assert done.returncode == 0, done.stderr
    one, two = (load(path) for path in made.values())
    assert one.ids == two.ids and one.key == two.key and one.tokens.equal(two.tokens)
    torch.testing.assert_close(one.logp, two.logp, rtol=1e-6, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_engine_that_would_not_run_is_refused(alone, tmp_path, capsys):
    assert main(command(alone, tmp_path / "out", engine="fsdp2")) == 2
    assert capsys.readouterr().err == "error: engine fsdp2: there is no GPU here; use zero3, or ddp.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("engine", ["zero2", "zero3_offload"])
def test_a_missing_compiler_is_told_before_deepspeed_looks_for_it(alone, tmp_path, capsys, monkeypatch, engine):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(command(alone, tmp_path / "out", devices=2, engine=engine)) == 2
    assert capsys.readouterr().err.endswith("and there is no no-such-compiler here; install g++.\n")


def test_lost_processes_are_noticed(monkeypatch):
    from types import SimpleNamespace

    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(distributed_type=SimpleNamespace(value="NO")),
        args=SimpleNamespace(world_size=1),
    )
    check_engine(trainer, "ddp")
    for name, value in zip(LAUNCHED, ("2", "0", "0", "127.0.0.1", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="NO on 1 of 2 processes"):
        check_engine(trainer, "ddp")


@pytest.mark.parametrize(
    ("given", "several"),
    [
        ({}, False),
        ({"WORLD_SIZE": "1"}, False),
        ({"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, False),
        ({"RANK": "3"}, False),
        (dict(zip(LAUNCHED, ("1", "0", "0", "127.0.0.1", "29500"), strict=True)), True),
        (dict(zip(LAUNCHED, ("4", "3", "3", "127.0.0.1", "29500"), strict=True)), True),
        ({"WORLD_SIZE": "2"}, None),
        ({"WORLD_SIZE": "two", "RANK": "0"}, None),
    ],
)
def test_a_process_is_one_of_several_only_where_a_launcher_says_all_of_it(monkeypatch, given, several):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if several is None:
        with pytest.raises(InputError, match=r"WORLD_SIZE is '.*', but .* is not set; start with torchrun"):
            launched()
        return
    assert launched() == several
    assert world_size() == (int(given["WORLD_SIZE"]) if several else 1)
    assert is_main() == (not several or given["RANK"] == "0")
    if not several:
        start(Training())  # joins nothing, and leaves nothing that torch or accelerate would take for a launcher
        assert not torch.distributed.is_initialized() and not set(LAUNCHED) & set(os.environ)


@pytest.mark.parametrize("several", [True, False])
def test_one_of_several_processes_skips_the_end_of_the_interpreter(several):
    """Under the threads of gloo and DeepSpeed it now and then aborts, after all is written."""
    script = "import atexit; from sso.jobs.command import leave; atexit.register(print, 'end'); print('done'); leave(3)"
    given = dict(zip(LAUNCHED, ("2", "1", "1", "127.0.0.1", "29500"), strict=True)) if several else {}
    environment = {**{name: value for name, value in os.environ.items() if name not in LAUNCHED}, **given}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, env=environment
    )
    assert (done.returncode, done.stdout) == (3, "done\n" if several else "done\nend\n")


def test_a_stray_world_size_trains_as_one_process(alone, tmp_path, monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(command(alone, tmp_path / "out")) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (alone / "out" / "model.safetensors").read_bytes()


def test_offloading_uses_the_optimizer_made_for_it():
    plain, offloaded = deepspeed_config("zero3"), deepspeed_config("zero3_offload")
    assert "optimizer" not in plain and offloaded["optimizer"]["type"] == "AdamW"
    assert offloaded["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert "offload_param" not in deepspeed_config("zero2_offload")["zero_optimization"]


STEP_0 = """
import json, sys
import transformers.training_args
from sso.cli import main
from sso.jobs.command import leave
from sso.train.preference import PreferenceTrainer

# transformers refuses bfloat16 where there is no GPU unless DeepSpeed is left out.
transformers.training_args.is_torch_bf16_gpu_available = lambda: True
out, rows, sums = sys.argv.pop(1), [], PreferenceTrainer._sums

def keep(self, scores, losses, batch):
    if self.state.global_step == 0:
        for node in scores.policy:
            rows.extend(zip(scores.policy[node].tolist(), scores.reference[node].tolist()))
        with open(f"{out}{self.args.process_index}.json", "w") as file:
            json.dump(rows, file)
    return sums(self, scores, losses, batch)

PreferenceTrainer._sums = keep
leave(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("engine", "dtype", "autocast"),
    [
        ("ddp", "float32", False),
        ("ddp", "bfloat16", True),
        pytest.param("zero2", "bfloat16", False, marks=pytest.mark.slow),
        ("zero3", "bfloat16", False),
    ],
)
def test_before_the_first_update_policy_and_reference_say_the_same(alone, tmp_path, engine, dtype, autocast):
    """By training's own forward pass, to rounding; with bfloat16 the two ways to compute are told apart."""
    (tmp_path / "step0.py").write_text(STEP_0)
    settings = {"engine": engine, "dtype": dtype, "devices": 2}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = [str(tmp_path / "step0.py"), f"{tmp_path}/", *command(alone, tmp_path / "out", **settings)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*run, *arguments], capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    assert done.returncode == 0, done.stderr
    scores = [torch.tensor(json.loads((tmp_path / f"{rank}.json").read_text())) for rank in (0, 1)]
    policy, reference = torch.cat(scores).double().unbind(1)
    assert len(policy) == 8 * 6  # one batch, six nodes
    torch.testing.assert_close(policy, reference, rtol=0, atol=2e-5)

    made = load(tmp_path / "out.reference.safetensors")
    assert made.key["dtype"] == Training(engine=engine, dtype=dtype).numerics
    # `sso reference` is the same, by one process and without the engine.
    files = ["--model", alone / "start", "--data", alone / "triples.jsonl", "--out", tmp_path / "alone.safetensors"]
    own_settings = json.dumps({**SETTINGS, **settings, "devices": 1})
    assert main(["reference", *map(str, files), "--objectives", "sso_v1", "--settings", own_settings]) == 0
    again = load(tmp_path / "alone.safetensors", made.key)
    torch.testing.assert_close(again.logp, made.logp, rtol=0, atol=2e-5)
    # The other way to compute in bfloat16 is not the same to rounding.
    own_settings = json.dumps({**SETTINGS, "engine": "zero3" if autocast else "ddp", "dtype": "bfloat16"})
    assert main(["reference", *map(str, files), "--objectives", "sso_v1", "--settings", own_settings]) == 0
    assert (load(tmp_path / "alone.safetensors").logp - made.logp).abs().max() > 1e-3
    with pytest.raises(InputError, match="made with other dtype"):
        load(tmp_path / "alone.safetensors", made.key)


def test_fsdp2_hands_log_probabilities_on_as_they_are():
    from types import SimpleNamespace

    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(mixed_precision_policy=policy))
    keep_outputs(SimpleNamespace(state=state))
    assert state.fsdp_plugin.mixed_precision_policy == MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, None)
    keep_outputs(SimpleNamespace(state=SimpleNamespace()))  # another engine, which `check_engine` tells


FSDP2 = """
import os, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from sso.logprobs import Scorer
from tests.test_logprobs import tiny
from tests.test_packing import NODES, Sample

dist.init_process_group("gloo")
two = [
    Sample("a", {"x": [1], "x+": [2, 3, 4], "x-": [5, 6]}, {"y+": [7, 8], "y-": [9], "yo": [7, 8]}),
    Sample("b", {"x": [4, 4], "x+": [2], "x-": [1, 2, 3]}, {"y+": [3], "y-": [3, 1, 4, 1, 5], "yo": [2]}),
]
whole, model = tiny("llama", tie_word_embeddings=True), tiny("llama", tie_word_embeddings=True)
scorer = Scorer(model, NODES, 0, "forest")
with scorer.attention(whole):
    expected = scorer(whole, scorer.batch(two))
    expected.sum().backward()
mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
for layer in model.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
with scorer.attention(model):
    logp = scorer(model, scorer.batch(two))
    logp.sum().backward()
torch.testing.assert_close(logp, expected, rtol=1e-5, atol=1e-5)
for (name, sharded), plain in zip(model.named_parameters(), whole.parameters(), strict=True):
    assert type(sharded).__name__ == "DTensor", name
    torch.testing.assert_close(sharded.grad.full_tensor(), plain.grad, rtol=1e-4, atol=1e-5)

# bfloat16: the policy that accelerate makes, its outputs kept as they are.
from types import SimpleNamespace
from torch.distributed.fsdp import MixedPrecisionPolicy
from sso.jobs.distributed import keep_outputs

plugin = SimpleNamespace(mixed_precision_policy=MixedPrecisionPolicy(*[torch.bfloat16] * 3))
keep_outputs(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
model = tiny("llama", tie_word_embeddings=True)
for layer in model.model.layers:
    fully_shard(layer, mesh=mesh, mp_policy=plugin.mixed_precision_policy)
fully_shard(model, mesh=mesh, mp_policy=plugin.mixed_precision_policy)
cast = tiny("llama", tie_word_embeddings=True).bfloat16()
with scorer.attention(model), scorer.attention(cast), torch.no_grad():
    logp, reference = scorer(model, scorer.batch(two)), scorer(cast, scorer.batch(two))
assert logp.dtype == torch.float32
# Inputs of layers are cast once more: a rounding of bfloat16 may fall otherwise, in a few nodes.
torch.testing.assert_close(logp, reference, rtol=0, atol=2e-3)
near, far = (logp - reference).abs().mean(), (logp - expected).abs().mean()
assert near < far / 5, (near, far)
print("rank", dist.get_rank(), "agrees", flush=True)
dist.destroy_process_group()
"""


def test_weights_sharded_by_fsdp2_give_the_same_scores_and_gradients(tmp_path):
    """accelerate has no FSDP on CPU, so this shards by torch itself: inside its own forward the head is whole."""
    (tmp_path / "fsdp2.py").write_text(FSDP2)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*run, str(tmp_path / "fsdp2.py")], capture_output=True, text=True, cwd=REPOSITORY, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("agrees") == 2


def test_the_lock_of_a_killed_compilation_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    tell_locks()
    assert capsys.readouterr().err == ""
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    tell_locks()
    assert f"{lock}: waiting for a compilation; delete it where none runs" in capsys.readouterr().err
