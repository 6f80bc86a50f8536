"""Full and read-only disks, damaged files: one sentence that names the place, and nothing finished is lost."""

import json
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sso import records, reference
from sso.chat import load_model, load_tokenizer
from sso.cli import main
from sso.errors import InputError
from sso.jobs import lifeline, mlflow_runs, tracking
from sso.records import Pair, read, write
from sso.replies import Replies
from sso.train.run import resuming
from tests.test_training import triple

REPLY = {"text": "fine", "finish": "stop", "logprobs": None, "prompt_tokens": 1, "completion_tokens": 1}


@pytest.fixture
def disk(tmp_path: Path):
    """A function that mounts a small file system of its own; skipped where that is not allowed."""
    mounted = []

    def mount(size: str, *options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no permission to mount a small disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def command(*arguments: object, capsys: pytest.CaptureFixture) -> tuple[int, list[str]]:
    """Exit code of `sso`, and what it said on standard error."""
    code = main([str(a) for a in arguments])
    return code, capsys.readouterr().err.splitlines()


# Disks.


def test_a_full_disk_is_told_and_what_was_there_stays(disk, tmp_path, capsys):
    full, triples = disk("256k"), tmp_path / "triples.jsonl"
    write(triples, [triple(i).model_copy(update={"original": "word " * 200}) for i in range(20)])
    pairs = ["pairs", "--triples", triples, "--kind", "good_original", "--out", full / "pairs.jsonl"]
    assert command(*pairs, capsys=capsys)[0] == 0
    before = (full / "pairs.jsonl").read_bytes()
    write(triples, [triple(i).model_copy(update={"original": "word " * 200}) for i in range(400)])
    code, said = command(*pairs, capsys=capsys)
    assert code == 2 and said == [
        f"error: {full}/pairs.jsonl: the disk is full; make room and run the same command again: what is finished is "
        "kept."
    ]
    assert (full / "pairs.jsonl").read_bytes() == before and not list(full.glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(full)], check=True)
    assert command(*pairs, capsys=capsys)[0] == 0 and len(read(full / "pairs.jsonl", Pair)) == 400


@pytest.mark.parametrize("save_steps", [0, 1], ids=["weights", "checkpoint"])
def test_a_training_on_a_full_disk_is_told(save_steps, disk, tiny_checkpoint, tmp_path, capsys):
    """safetensors and torch have their own errors for it."""
    full = disk("300k")
    write(tmp_path / "triples.jsonl", [triple(i) for i in range(4)])
    training = {"objective": "sso_v2", "batch_size": 4, "dtype": "float32", "save_steps": save_steps}
    files = ["--model", tiny_checkpoint, "--data", tmp_path / "triples.jsonl", "--out", full / "policy"]
    code, said = command("train", *files, "--settings", json.dumps(training), capsys=capsys)
    assert code == 2 and said[-1].startswith(f"error: {full}/") and "the disk is full; make room" in said[-1]
    assert not (full / "policy").exists()


def test_replies_on_a_full_disk_are_told_and_the_paid_ones_stay(disk):
    full = disk("256k")
    replies = Replies(full / "c.db", "u", "m")
    with pytest.raises(InputError, match=f"{full}/c.db: the disk is full; make room"):
        for i in range(1000):
            replies.put(str(i), "{}", "p", 0, REPLY | {"text": "x" * 1000})
    assert i > 10
    replies.connection.close()
    subprocess.run(["mount", "-o", "remount,size=4m", str(full)], check=True)
    again = Replies(full / "c.db", "u", "m")
    assert all(again.get(str(k)) for k in range(i)) and again.spent().prompt_tokens == i


def test_a_read_only_folder_is_told(disk, tmp_path, capsys):
    folder = disk("256k", "ro")
    write(tmp_path / "triples.jsonl", [triple(0)])
    pairs = ["pairs", "--triples", tmp_path / "triples.jsonl", "--kind", "good_original", "--out", folder / "p.jsonl"]
    code, said = command(*pairs, capsys=capsys)
    assert code == 2 and len(said) == 1 and ": the folder is read-only; write elsewhere" in said[0]
    with pytest.raises(SystemExit, match=f"error: {folder}/x: can't be written"):
        lifeline.hold(folder / "x")


def test_a_file_larger_than_allowed_is_told(tmp_path):
    """By the shell's limit, which any user may set: what the disks above show, where none can be mounted."""
    write(tmp_path / "triples.jsonl", [triple(i) for i in range(200)])
    pairs = f"pairs --triples {tmp_path}/triples.jsonl --kind good_original --out {tmp_path}/p.jsonl"
    script = f"ulimit -f 8; trap '' XFSZ; exec {sys.executable} -m sso.cli {pairs}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path}/p.jsonl: the file is larger than allowed; raise the limit")
    assert not list(tmp_path.glob("*p.jsonl*tmp"))


def test_what_killed_writers_left_is_removed(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = [tmp_path / f".out.jsonl.{gone.pid}.tmp", tmp_path / f".out.{gone.pid}.tmp"]
    left[0].write_text("half")
    left[1].mkdir()
    (left[1] / "model.safetensors").write_text("half")
    living = tmp_path / ".out.jsonl.1.tmp"
    living.write_text("still being written")
    write(tmp_path / "out.jsonl", [{"id": "a"}])
    with records.whole_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert [path.name for path in sorted(tmp_path.iterdir())] == [living.name, "out", "out.jsonl"]


# JSON Lines.

GOOD = b'{"id": "a", "prompt": "x", "chosen": "y", "rejected": "z"}\n'


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "f.jsonl: holds no record"),
        (b"\n \n", "f.jsonl: holds no record"),
        (GOOD + GOOD.replace(b'"a"', b'"b"')[:30], r"f.jsonl:2: not valid JSON \("),  # cut off
        (GOOD.replace(b'"prompt"', b'"p\xf2ompt"'), "f.jsonl:1: not UTF-8 text"),  # a flipped bit
        (GOOD.replace(b'"prompt"', b'"prompu"'), "f.jsonl:1: `prompt`: field required"),  # another
        (GOOD.replace(b":", b"\x1a", 1), r"f.jsonl:1: not valid JSON \("),  # another
        ("gr\xfc\xdfe".join(GOOD.decode().split("x")).encode("latin-1"), "f.jsonl:1: not UTF-8 text"),
        (GOOD.decode().encode("utf-16"), "f.jsonl:1: not UTF-8 text"),
        (b"\xef\xbb\xbf" + GOOD, "f.jsonl:1: not valid JSON"),
        (GOOD * 2, "f.jsonl:2: id 'a' stands in line 1 too; ids must differ"),
        (b"[1]\n", "f.jsonl:1: a list, but every line must be a JSON object"),
        (b"[" * 10**6 + b"\n", "f.jsonl:1: not valid JSON"),
        (b'{"id": 1' + b"0" * 5000 + b"}\n", r"f.jsonl:1: not valid JSON \(Exceeds the limit"),
        (GOOD.replace(b'"y"', b"NaN"), "f.jsonl:1: `chosen`"),
        (GOOD.replace(b'"x"', b'"\\ud800"'), "f.jsonl:1: half a character"),  # half a character
        (b'{"id": "a", "prompt": []}\n', "f.jsonl:1: `prompt`"),
    ],
)
def test_a_damaged_file_is_named_with_its_row(content, sentence, tmp_path):
    (tmp_path / "f.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=sentence) as error:
        read(tmp_path / "f.jsonl", Pair)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_line_of_a_gigabyte_is_refused_in_little_memory(tmp_path):
    with (tmp_path / "f.jsonl").open("wb") as file:
        file.write(GOOD + b'{"id": "')
        file.truncate(1 << 30)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"f.jsonl:2: a line of more than 64 MiB"):
        read(tmp_path / "f.jsonl", Pair)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * records.LONGEST_LINE


# Weights and scores.


@contextmanager
def changed(path: Path, change):
    """The file with its bytes changed while the block lasts."""
    before = path.read_bytes()
    path.write_bytes(change(before))
    yield
    path.write_bytes(before)


@pytest.fixture
def model(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


@pytest.mark.parametrize(
    "change",
    [lambda b: b[: len(b) // 2], lambda b: b[:5], lambda b: b"", lambda b: flipped(b, 3), lambda b: flipped(b, 9)],
    ids=["half", "stub", "empty", "flipped length", "flipped header"],
)
def test_damaged_weights_are_named(change, model):
    with (
        changed(model / "model.safetensors", change),
        pytest.raises(InputError, match=f"{model}: no causal model can be loaded") as error,
    ):
        load_model(model)
    assert "\n" not in str(error.value)
    load_model(model)


def test_missing_and_unsound_weights_are_named(model):
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in weights.items() if k != name}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"{model}: the checkpoint lacks 1 weights \\({name}\\)"):
        load_model(model)
    for bad in (torch.nan, torch.inf, -torch.inf):
        weights[name][3, 5] = bad
        save_file(weights, model / "model.safetensors", {"format": "pt"})
        with pytest.raises(InputError, match=f"{model}: {name} holds values that are not finite"):
            load_model(model)


def test_damaged_scores_are_named(tmp_path):
    path = tmp_path / "r.safetensors"
    logp, tokens = torch.full((4, 2), -1.5), torch.full((4, 2), 3, dtype=torch.int32)
    reference.save(reference.Reference(list("abcd"), [("x", "y+"), ("x", "y-")], logp, tokens, {"dtype": "f"}), path)
    data = path.read_bytes()
    for place in [0, 9, len(data) // 2, len(data) - 40, len(data) - 1]:
        for change in (lambda b, at=place: flipped(b, at), lambda b, at=place: b[:at]):
            with changed(path, change), pytest.raises(InputError, match=f"{path}: .*delete it and score again"):
                reference.load(path)
    assert torch.equal(reference.load(path).logp, logp)


# SQLite.


@pytest.mark.parametrize(
    "change",
    [lambda b: b"not a database" * 999, lambda b: b[:5000], lambda b: b[:100] + b"\xff" * 8000 + b[8100:]],
    ids=["another file", "cut off", "overwritten"],
)
def test_a_damaged_file_of_replies_is_named(change, tmp_path):
    path = tmp_path / "c.db"
    replies = Replies(path, "u", "m")
    for i in range(50):
        replies.put(str(i), "{}", "p", 0, REPLY | {"text": "x" * 500})
    replies.connection.close()
    with changed(path, change), pytest.raises(InputError, match=f"{path}: no sound file of replies .* move it away"):
        damaged = Replies(path, "u", "m")
        for i in range(50):
            damaged.get(str(i))
    assert Replies(path, "u", "m").get("7")


def test_a_damaged_mlflow_store_costs_a_warning(tmp_path, capsys):
    with tracking.run(tmp_path / "out", "sft", {}, {}):
        pass
    (tmp_path / "mlflow.db").write_bytes(b"not a database" * 999)
    assert mlflow_runs.sync(tmp_path) is None
    assert capsys.readouterr().err.count("warning: MLflow at sqlite:///") == 1
    assert json.loads((tmp_path / "out.run.json").read_text())["status"] == "finished"


def test_a_damaged_record_is_named_and_the_others_are_uploaded(tmp_path, capsys):
    for name in "ab":
        with tracking.run(tmp_path / name, "sft", {}, {}):
            pass
    (tmp_path / "a.run.json").write_text('{"stage": "sf')
    assert mlflow_runs.sync(tmp_path) == 1
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert f"{tmp_path}/a.run.json" in warning


# Pickles and code.


class Evil:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_weights_are_not_loaded(model, tmp_path):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(InputError, match=f"{model}: no causal model can be loaded"):
        load_model(model)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_a_training_checkpoint_is_not_loaded(file, tiny_checkpoint, tmp_path, capsys, monkeypatch):
    write(tmp_path / "triples.jsonl", [triple(i) for i in range(8)])
    training = {"objective": "sso_v2", "batch_size": 4, "dtype": "float32", "save_steps": 1}
    files = ["--model", tiny_checkpoint, "--data", tmp_path / "triples.jsonl", "--out", tmp_path / "policy"]
    train = ["train", *files, "--settings", json.dumps(training)]
    with monkeypatch.context() as patch:
        patch.setattr("sso.train.run.save_trained", lambda *_: (_ for _ in ()).throw(InputError("stopped")))
        assert command(*train, capsys=capsys)[0] == 2
    checkpoint = tmp_path / ".policy.work" / "5e-07" / "checkpoint-1"
    shutil.rmtree(checkpoint.with_name("checkpoint-2"))
    (checkpoint / file).write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    code, said = command(*train, capsys=capsys)
    assert code == 2 and said[-1].startswith(f"error: {checkpoint}: holds what a checkpoint of tensors does not")
    assert not (tmp_path / "ran").exists()


def test_a_pickle_in_a_sharded_checkpoint_is_not_loaded(tmp_path):
    """As DeepSpeed reads its files, which asks torch for any pickle, and FSDP2's, whose metadata torch unpickles."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from torch.distributed import checkpoint as sharded

    zero, fsdp = tmp_path / "zero", tmp_path / "fsdp2"
    (zero / "global_step1").mkdir(parents=True)
    state = zero / "global_step1" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"step": torch.ones(2), "loss_scaler": LossScaler(2)}, state)
    values = {"optimizer": {"exp_avg": torch.ones(2), "step": torch.tensor(3, dtype=torch.int64), "lr": 0.5}}
    sharded.save(values, storage_writer=sharded.FileSystemWriter(fsdp / "optimizer_0"), no_dist=True)
    found = {"optimizer": {"exp_avg": torch.zeros(2), "step": torch.tensor(0), "lr": 0.0}}
    with resuming(zero):
        assert torch.load(state, weights_only=False)["loss_scaler"].cur_scale == 2
    with resuming(fsdp):
        sharded.load(found, storage_reader=sharded.FileSystemReader(fsdp / "optimizer_0"), no_dist=True)
    assert found["optimizer"]["exp_avg"].equal(torch.ones(2)) and found["optimizer"]["lr"] == 0.5
    torch.save({"step": Evil(tmp_path / "ran")}, state)
    with pytest.raises(InputError, match=f"{zero}: holds what a checkpoint of tensors does not"), resuming(zero):
        torch.load(state, weights_only=False)
    (fsdp / "optimizer_0/.metadata").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(InputError, match=f"{fsdp}: holds what a checkpoint of tensors does not"), resuming(fsdp):
        sharded.load(found, storage_reader=sharded.FileSystemReader(fsdp / "optimizer_0"), no_dist=True)
    assert not (tmp_path / "ran").exists()
    torch.load(state, weights_only=False)  # as it is outside
    assert (tmp_path / "ran").exists()


def test_a_checkpoints_own_code_is_not_run(model, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask at a terminal
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"{model}: no causal model can be loaded"):
        load_model(model)
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert load_tokenizer(model)("Be safe.").input_ids  # its tokenizer.json needs no code
    (model / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=f"{model}: no tokenizer can be loaded"):
        load_tokenizer(model)
    assert not (tmp_path / "ran").exists()
