"""A killed training goes on, and ends as if nothing had happened; what can't go on says why."""

import json
import os
import signal
import subprocess
import sys
import time

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
from sso.train.settings import Training
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
    (folder / "checkpoint-3" / checkpoints.SAVED).touch()
    (folder / "checkpoint-20").mkdir()
    assert checkpoints.resume_from(folder, {"beta": 0.1}) == folder / "checkpoint-3"
    assert checkpoints.resume_from(folder, {"beta": 0.2}) is None
    assert not (folder / "checkpoint-3").exists()


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
    from sso.train.settings import Sft

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
    killed("resumed")
    capsys.readouterr()
    resumed = tuned("resumed")
    assert f"goes on from {tmp_path}/.resumed.checkpoints/checkpoint-5" in capsys.readouterr().out
    assert all(whole[name].equal(resumed[name]) for name in whole)
    # Neither one of another setting or other data, nor one that was cut while it was written.
    for other in ("rate", "data", "cut"):
        killed(other)
        if other == "data":
            data.write_text(data.read_text() + json.dumps(rows[0]) + "\n")
        if other == "cut":
            (tmp_path / ".cut.checkpoints/checkpoint-5/saved").unlink()
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
