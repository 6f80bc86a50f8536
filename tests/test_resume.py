"""A killed training goes on, and ends as if nothing had happened; what can't go on says why."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sso import chat
from sso.cli import main
from sso.errors import InputError
from sso.objective import build
from sso.packing import tokenize
from sso.records import file_digest, write
from sso.reference import score, weights_digest
from sso.settings import Backbone
from sso.train import checkpoints
from sso.train.global_batch import Batches
from sso.train.preference import fit
from sso.train.run import save, training_arguments
from sso.train.settings import Sft, Training
from sso.worlds.micro.models import build as build_model
from tests.conftest import REPOSITORY
from tests.test_training import run, triple

SETTINGS = {"objective": "sso_v2", "learning_rates": [1e-3], "batch_size": 4, "epochs": 4, "dtype": "float32"}


def command(folder, out, **settings):
    files = ["--model", folder / "start", "--data", folder / "triples.jsonl", "--out", folder / out]
    return ["train", *map(str, files), "--settings", json.dumps({**SETTINGS, "save_steps": 3, **settings})]


def test_killed_and_resumed_ends_with_the_same_weights_as_uninterrupted(tmp_path):
    save(*build_model(Backbone(architecture="llama", layers=2), 0), tmp_path / "start")
    write(tmp_path / "triples.jsonl", [triple(i) for i in range(18)])
    assert main(command(tmp_path, "whole")) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "sso.cli", *command(tmp_path, "killed")],
        cwd=REPOSITORY,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    work = tmp_path / ".killed.work" / "0.001"
    # Step 9 of 20 lies within the second epoch.
    deadline = time.monotonic() + 120
    while not (work / "checkpoint-9" / checkpoints.SAVED).exists() and time.monotonic() < deadline:
        assert process.poll() is None, "the training ended before it was killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    reached = checkpoints.latest(work)
    # A checkpoint cut off half-way is passed over.
    (work / "checkpoint-19").mkdir()
    (work / "checkpoint-19" / "model.safetensors").write_bytes(b"half")
    assert checkpoints.latest(work) == reached
    assert main(command(tmp_path, "killed")) == 0
    assert file_digest(tmp_path / "killed" / "model.safetensors") == file_digest(
        tmp_path / "whole" / "model.safetensors"
    )
    assert not work.parent.exists()
    metrics = [json.loads((tmp_path / f"{n}.run.json").read_text())["metrics"] for n in ("whole", "killed")]
    assert [row["loss"] for _, row in metrics[0]] == [row["loss"] for _, row in metrics[1]]


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(tmp_path):
    folder = tmp_path / "work"
    assert checkpoints.resume_from(folder, {"beta": 0.1}) is None
    (folder / "checkpoint-3").mkdir()
    checkpoints.mark(folder / "checkpoint-3")
    (folder / "checkpoint-20").mkdir()
    assert checkpoints.resume_from(folder, {"beta": 0.1}) == folder / "checkpoint-3"
    assert checkpoints.resume_from(folder, {"beta": 0.2}) is None
    assert not (folder / "checkpoint-3").exists()


@pytest.mark.parametrize(
    ("file", "layout"),
    [
        ("optimizer.pt", "ddp"),
        ("scheduler.pt", "ddp"),
        ("trainer_state.json", "ddp"),
        ("global_step3/zero_pp_rank_1_mp_rank_00_optim_states.pt", "zero"),
        ("optimizer_0/__1_0.distcp", "fsdp2"),
    ],
)
def test_a_checkpoint_that_lacks_a_file_is_not_gone_on_from(tmp_path, file, layout):
    """Half-way through its removal, say: transformers would start without a word where the optimizer is gone."""
    made = {2: tmp_path / "checkpoint-2", 3: tmp_path / "checkpoint-3"}
    for path in made.values():
        for name in ("model.safetensors", "trainer_state.json", file):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).touch()
        checkpoints.mark(path, "rows")
    assert checkpoints.latest(tmp_path) == made[3] and checkpoints.made_of(made[3]) == "rows"
    (made[3] / file).unlink()
    assert checkpoints.latest(tmp_path) == made[2] and checkpoints.made_of(made[3]) is None
    (made[2] / checkpoints.SAVED).write_text('{"made_of": ""}')  # what is no mark of ours
    assert checkpoints.latest(tmp_path) is None


@pytest.mark.parametrize("trainer", ["sft", "preference"])
def test_an_older_checkpoint_goes_after_the_new_ones_mark_and_its_own_mark_first(
    trainer, tiny_checkpoint, tmp_path, monkeypatch
):
    """At any moment there is a whole one from the first on, and none that only looks whole."""
    from sso.train import fine_tune

    removed, rmtree = [], shutil.rmtree

    def watched(path, *args, **kwargs):
        folder = Path(path)
        if folder.name.startswith("checkpoint-"):
            whole = [p.name for p in folder.parent.iterdir() if checkpoints.made_of(p) is not None]
            removed.append((folder.name, sorted(whole), (folder / checkpoints.SAVED).exists()))
        rmtree(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", watched)
    if trainer == "sft":
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
        write(tmp_path / "sft.jsonl", [{"messages": turns}] * 8)
        own = {"data": str(tmp_path / "sft.jsonl"), "batch_size": 2, "micro_batch_size": 2, "dtype": "float32"}
        settings = Sft(**own, steps=4, save_steps=1, gradient_checkpointing=False)
        fine_tune.train(str(tiny_checkpoint), settings, 0, tmp_path / "out")
    else:
        write(tmp_path / "triples.jsonl", [triple(i) for i in range(8)])
        files = ["--model", tiny_checkpoint, "--data", tmp_path / "triples.jsonl", "--out", tmp_path / "out"]
        settings = {**SETTINGS, "epochs": 2, "save_steps": 1}
        assert main(["train", *map(str, files), "--settings", json.dumps(settings)]) == 0
    assert removed == [
        ("checkpoint-1", ["checkpoint-2", "checkpoint-3"], False),
        ("checkpoint-2", ["checkpoint-3", "checkpoint-4"], False),
    ]


def test_batches_depend_on_seed_and_epoch_alone_and_lose_nothing():
    batches = Batches(10, 4, 7)
    first = list(batches)
    assert [len(b) for b in first] == [4, 4, 2] == [4, 4, 2][: len(batches)]
    assert sorted(i for b in first for i in b) == list(range(10))
    batches.set_epoch(1)
    assert list(batches) != first and list(Batches(10, 4, 8)) != first
    batches.set_epoch(0)
    assert list(batches) == first


def test_a_loss_that_is_not_finite_names_its_samples(tmp_path):
    model, tokenizer = build_model(Backbone(architecture="qwen2", layers=1), 0)
    samples = tokenize([triple(i) for i in range(6)], tokenizer, 256).samples
    objective = build(Training(objective="pairs", batch_size=6, dtype="float32"))
    scores = score(model, samples, objective.nodes, tokenizer.pad_token_id, {"dtype": "float32"})
    scores.logp[[1, 4]] = torch.nan
    arguments = training_arguments(objective.training, 1e-3, 0, tmp_path)
    with pytest.raises(InputError, match=r"the loss is not finite for the samples [14], [14]; lower"):
        fit(model, tokenizer, samples, scores, objective, arguments)


def test_a_gradient_that_is_not_finite_ends_the_training(tmp_path):
    tokenizer = build_model(Backbone(architecture="qwen2", layers=2), 0)[1]
    samples = tokenize([triple(i) for i in range(4)], tokenizer, 256).samples
    model = build_model(Backbone(architecture="qwen2", layers=2), 0)[0]
    model.model.norm.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(InputError, match=r"step 1: the gradient is not finite, though the losses of the samples \d"):
        run(samples, tmp_path, model=model)


def test_adapters_are_merged_and_the_reference_is_the_model_without_them(tmp_path):
    save(*build_model(Backbone(architecture="llama", layers=2), 0), tmp_path / "start")
    write(tmp_path / "triples.jsonl", [triple(i) for i in range(8)])
    assert main(command(tmp_path, "out", lora={"rank": 4}, save_steps=0)) == 0
    record = json.loads((tmp_path / "out.run.json").read_text())
    # Adapters start at zero: policy and reference agree, so the margins of the first step are 0.
    assert record["metrics"][0][1]["x+:y+>y-/margin"] == pytest.approx(0, abs=1e-4)
    before, after = (chat.load_model(tmp_path / name).state_dict() for name in ("start", "out"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not before[name].equal(after[name])}
    assert "model.layers.0.self_attn.q_proj.weight" in moved and "model.embed_tokens.weight" not in moved


def test_gradient_checkpointing_changes_nothing(tmp_path):
    tokenizer = build_model(Backbone(architecture="qwen2", layers=2), 0)[1]
    samples = tokenize([triple(i) for i in range(8)], tokenizer, 256).samples
    _, plain = run(samples, tmp_path)
    _, saved = run(samples, tmp_path, gradient_checkpointing=True)
    assert [r["loss"] for r in plain] == pytest.approx([r["loss"] for r in saved], rel=1e-5)


def test_a_fine_tuning_goes_on_from_its_own_checkpoints_alone(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    from safetensors.torch import load_file
    from transformers import Trainer

    from sso.train import fine_tune

    turns = [("user", "hi"), ("assistant", "hello there"), ("user", "well?"), ("assistant", "yes")]
    rows = [{"messages": [{"role": r, "content": f"{c} {i}"} for r, c in turns]} for i in range(8)]
    data = tmp_path / "sft.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"data": str(data), "steps": -1, "epochs": 2, "batch_size": 2, "micro_batch_size": 2, "dtype": "float32"}
    settings = Sft(**own, save_steps=1, learning_rate=1e-3, gradient_checkpointing=False)

    def tuned(name: str, **other) -> dict:
        fine_tune.train(str(tiny_checkpoint), settings.model_copy(update=other), 0, tmp_path / name)
        return load_file(tmp_path / name / "model.safetensors")

    def killed(name: str) -> None:
        """A run that ends in its sixth step."""
        step, calls = Trainer.training_step, iter(range(100))

        def fail(self, *args, **kwargs):
            if next(calls) == 5:
                raise RuntimeError("killed")
            return step(self, *args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
            patch.setattr(Trainer, "training_step", fail)
            tuned(name)

    whole = tuned("whole")
    # From the one before, where the last was cut while it was written or has lost what transformers does not miss.
    for name, lost, last in (("resumed", None, 5), ("cut", "saved", 4), ("lost", "optimizer.pt", 4)):
        killed(name)
        if lost:
            (tmp_path / f".{name}.checkpoints/checkpoint-5" / lost).unlink()
        capsys.readouterr()
        resumed = tuned(name)
        assert f"goes on from {tmp_path}/.{name}.checkpoints/checkpoint-{last}\n" in capsys.readouterr().out
        assert all(whole[name].equal(resumed[name]) for name in whole)
    # Not from one of another setting or other data.
    for other in ("rate", "data"):
        killed(other)
        if other == "data":
            data.write_text(data.read_text() + json.dumps(rows[0]) + "\n")
        capsys.readouterr()
        tuned(other, **({"learning_rate": 2e-3} if other == "rate" else {}))
        assert "goes on from" not in capsys.readouterr().out
        assert not (tmp_path / f".{other}.checkpoints").exists()


def test_weights_that_are_not_here_are_told_apart_by_their_name(tmp_path):
    assert weights_digest("org/one") == "org/one" != weights_digest("org/other")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = weights_digest(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert weights_digest(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert weights_digest(tmp_path) != first
