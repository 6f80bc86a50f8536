"""Reward models: RewardBench's definition, what training promises, and what happens to bad rows."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardbench import data, score
from rewardbench.settings import Reward
from sso.errors import InputError
from sso.jobs.tracking import Run
from sso.settings import ROOT

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def rows(subset: str, wins: int, losses: int, ties: int = 0, nans: int = 0) -> list[tuple[str, float, float]]:
    kinds = [((1.0, 0.0), wins), ((0.0, 1.0), losses), ((0.5, 0.5), ties), ((math.nan, 0.0), nans)]
    return [(subset, *values) for values, count in kinds for _ in range(count)]


# The aggregation, against numbers worked out by hand from the definition.


def test_section_is_the_weighted_mean_of_its_subsets():
    made = [*rows("alpacaeval-easy", 3, 1), *rows("alpacaeval-length", 1, 1), *rows("alpacaeval-hard", 1, 0)]
    made += [*rows("mt-bench-easy", 0, 2), *rows("mt-bench-med", 1, 3), *rows("mt-bench-hard", 1, 0)]
    made += [*rows("refusals-offensive", 1, 0), *rows("hep-cpp", 1, 0), *rows("math-prm", 1, 3)]
    weights = score.weights_for(name for name, *_ in made)
    result = score.aggregate(made, weights)
    # Chat: (100*75 + 95*50 + 95*100 + 28*0 + 40*25) / 358 = 22750 / 358
    assert result["sections"]["rewardbench_chat"] == pytest.approx(63.5474860335, abs=1e-9)
    assert result["sections"]["rewardbench_chat_hard"] == 100.0
    # Reasoning: (984*25 + 164*100) / 1148 = 41000 / 1148
    assert result["sections"]["rewardbench_reasoning"] == pytest.approx(35.7142857143, abs=1e-9)
    # (63.5474860335 + 100 + 100 + 35.7142857143) / 4
    assert result["rewardbench_avg"] == pytest.approx(74.8154429370, abs=1e-9)
    assert "hep-go" in result["missing_subsets"]


def test_math_prm_counts_as_much_as_the_six_code_subsets():
    languages = ("cpp", "go", "java", "js", "python", "rust")
    code = [row for language in languages for row in rows(f"hep-{language}", 1, 0)]
    result = score.aggregate([*code, *rows("math-prm", 0, 1)], score.read_weights(score.WEIGHTS[0]))
    assert result["sections"]["rewardbench_reasoning"] == 50.0


def test_a_tie_or_nan_is_no_win_and_is_counted():
    result = score.aggregate(rows("micro-chat", 2, 3, ties=4, nans=1), score.weights_for(["micro-chat"]))
    assert result["subsets"]["micro-chat"] == {"accuracy": 20.0, "n": 10, "ties": 4, "nan": 1}


def test_no_average_without_all_four_sections():
    result = score.aggregate(rows("micro-chat", 1, 0), score.weights_for(["micro-chat"]))
    assert result["sections"]["rewardbench_safety"] is None and result["rewardbench_avg"] is None


def test_micro_has_one_subset_a_section():
    made = [*rows("micro-chat", 4, 0), *rows("micro-chat-hard", 1, 3), *rows("micro-safety", 2, 2)]
    result = score.aggregate([*made, *rows("micro-reasoning", 3, 1)], score.weights_for(name for name, *_ in made))
    assert list(result["sections"].values()) == [100.0, 25.0, 50.0, 75.0] and result["rewardbench_avg"] == 62.5


def test_an_unknown_subset_is_named():
    with pytest.raises(InputError, match="'hep-perl'"):
        score.weights_for(["hep-cpp", "hep-perl"])


def test_weights_are_the_papers():
    with (ROOT / "results/paper/rewardbench_v1.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 23 and {row["section"] for row in table} == set(score.SECTIONS)


# Rows.


def write(path: Path, *values: dict) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def pair(name: str, chosen: str, rejected: str, prompt: str = "say a word") -> dict:
    sides = {"chosen": chosen, "rejected": rejected}
    turns = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"id": name, "prompt": [{"role": "user", "content": prompt}], **turns}


def test_bad_pairs_are_set_aside_by_name(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        pair("a", "yes", "no"),
        pair("b", "x", "x"),
        pair("c", "", "x"),
        {**pair("d", "x", "y"), "rejected": None},
    )
    pairs, left_out, _ = data.read_pairs(path)
    assert [data.text_pair(p).chosen for p in pairs] == ["yes"]
    assert left_out == {"equal sides": ["b"], "empty side": ["c"], "missing side": ["d"]}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"chosen": " "}, "row 'r7': `chosen` is empty"),
        ({"rejected": "good"}, "row 'r7': chosen and rejected are equal"),
        ({"subset": ""}, ":1: `subset`"),
        ({"prompt": []}, ":1: `prompt`"),
    ],
)
def test_bad_bench_rows_are_named(tmp_path, change, message):
    row = {"id": "r7", "subset": "micro-chat", "prompt": "hello", "chosen": "good", "rejected": "bad", **change}
    with pytest.raises(InputError, match=message):
        data.read_bench(write(tmp_path / "b.jsonl", row))


def test_the_hubs_rows(tmp_path):
    """Numbers repeat between subsets; a side may be a whole dialogue."""
    row = {"id": 0, "prompt": "q", "chosen": "good", "rejected": "bad", "chosen_model": "m"}
    dialogue = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}]
    path = write(tmp_path / "b.jsonl", {**row, "subset": "hep-cpp"}, {**row, "subset": "hep-go", "chosen": dialogue})
    first, second = data.read_bench(path)
    assert (first.id, second.id, second.chosen) == ("0", "hep-go/0", "good")
    with pytest.raises(InputError, match="id '0' stands twice in subset hep-go"):
        data.read_bench(write(path, *[{**row, "subset": "hep-go"}] * 3))


@pytest.mark.shared_data
def test_llmbar_is_chat_hard(shared_data):
    """Its five files are RewardBench's subsets, with the row counts of the weights."""
    rows = data.read_bench(shared_data / "llmbar")
    weights = score.read_weights(score.WEIGHTS[0])
    result = score.aggregate([(row.subset, 1.0, 0.0) for row in rows], weights)
    assert {name: row["n"] for name, row in result["subsets"].items()} == {
        name: weight for name, (_, weight) in weights.items() if name.startswith("llmbar")
    }
    assert result["sections"]["rewardbench_chat_hard"] == 100.0 and result["rewardbench_avg"] is None
    with (shared_data / "llmbar/Natural.json").open() as file:
        first = json.load(file)[0]
    assert rows[0].chosen == first[f"output_{first['label']}"]


# Training and scoring, with tiny random models.


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def checkpoint(request, tmp_path_factory) -> Path:
    """A random causal model with a byte-level tokenizer and a ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "attention_dropout": 0.1,
    }
    torch.manual_seed(0)
    kinds = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    config, model = kinds[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model(config(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def separable(count: int = 60) -> list[data.TextPair]:
    """Pairs that one word tells apart, in responses of unequal length."""
    from sso.records import Message

    def one(i: int) -> data.TextPair:
        prompt = [Message(role="user", content=f"question {i}")]
        return data.TextPair(str(i), prompt, "fine" + " so" * (i % 4), "awful" + " so" * (i % 3))

    return [one(i) for i in range(count)]


SETTINGS = Reward(label="t", arm="t", learning_rate=2e-3, epochs=6, batch_size=8)


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    from rewardbench.train import train

    run, out = Run(), tmp_path_factory.mktemp("reward") / "model"
    train(checkpoint, separable(), SETTINGS, 3, out, run)
    return out, run


def test_a_forest_gives_the_rewards_and_the_gradients_of_rows(checkpoint):
    import torch

    from rewardbench.score import encode
    from rewardbench.train import start
    from sso.attention import forests
    from sso.reward_model import in_batch, read

    model, tokenizer = start(checkpoint, 0)
    chosen, rejected = encode(tokenizer, separable(9))
    sequences, made = [*chosen, *rejected, chosen[0][:-1]], {}
    upstream = torch.randn(len(sequences), generator=torch.Generator().manual_seed(0))
    for layout in ("forest", "padded"):
        model.zero_grad()
        with forests(model, layout == "forest"):
            rewards = read(model, in_batch(sequences, tokenizer.pad_token_id, layout))
            (rewards @ upstream).backward()
        made[layout] = rewards.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])
    (rewards, slope), (expected, other) = made["forest"], made["padded"]
    torch.testing.assert_close(rewards, expected, rtol=1e-5, atol=1e-5)
    assert (slope - other).norm() <= 1e-5 * other.norm() and rewards.std() > 0
    assert len(in_batch(sequences, 0, "forest")["input_ids"][0]) < sum(map(len, sequences)) / 2
    assert model(torch.tensor([sequences[0]])).logits.item() == pytest.approx(expected[0].item(), abs=1e-5)


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_both_layouts_learn(checkpoint, layout, tmp_path):
    from rewardbench.train import train

    run = Run()
    train(
        checkpoint,
        separable(),
        SETTINGS.model_copy(update={"layout": layout, "tokens_per_batch": 300}),
        3,
        tmp_path,
        run,
    )
    assert run.summary["accuracy_held_out"] == 1.0 and (run.metrics[0][1]["padding"] == 0) == (layout == "forest")


def test_training_lowers_the_loss_and_ranks_held_out_pairs(trained):
    _, run = trained
    losses = [values["loss"] for _, values in run.metrics if "loss" in values]
    assert losses[-1] < 0.5 * losses[0]
    assert run.summary["accuracy_train"] > 0.95 and run.summary["accuracy_held_out"] == 1.0
    assert (run.summary["pairs_train"], run.summary["pairs_held_out"]) == (54, 6)


def test_the_folder_is_a_plain_model_without_pickles(trained):
    out, _ = trained
    names = {path.name for path in out.iterdir()}
    assert "model.safetensors" in names and not [n for n in names if n.endswith((".bin", ".pt", ".pth", ".pkl"))]
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification") and config["pad_token_id"] == 0
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


def test_plain_from_pretrained_gives_the_same_rewards(trained):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out, _ = trained
    model, tokenizer = score.load(out)
    chosen, _ = score.encode(tokenizer, separable(5), 128)
    ours = score.rewards(model, chosen, 5)
    plain_model, plain_tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(out),
        AutoTokenizer.from_pretrained(out),
    )
    for i, row in enumerate(separable(5)):
        messages = [*[m.model_dump() for m in row.prompt], {"role": "assistant", "content": row.chosen}]
        text = plain_tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
        with torch.no_grad():
            logit = plain_model(**plain_tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits
        assert logit.shape == (1, 1) and logit.item() == pytest.approx(ours[i], abs=1e-5)


def test_rewards_do_not_depend_on_the_batch(trained):
    out, _ = trained
    model, tokenizer = score.load(out)
    chosen, rejected = score.encode(tokenizer, separable(17), 128)
    alone = score.rewards(model, [*chosen, *rejected], 1)
    for size in (3, 34):
        assert score.rewards(model, [*chosen, *rejected], size) == pytest.approx(alone, abs=1e-5)


def test_close_rewards_of_a_half_precision_model_do_not_tie(trained):
    """bfloat16 itself has 8 bits: the head, which computes in float32, tells apart what its steps would make equal."""
    import torch

    out, _ = trained
    model, tokenizer = score.load(out, "bfloat16")
    assert model.model.dtype == torch.bfloat16
    chosen, rejected = score.encode(tokenizer, separable(17), 128)
    values = torch.tensor(score.rewards(model, [*chosen, *rejected], 8))
    exact, _ = score.load(out)
    assert values.tolist() == pytest.approx(score.rewards(exact, [*chosen, *rejected], 8), rel=0.1, abs=0.1)
    assert (values != values.bfloat16().double()).float().mean() > 0.9


def test_the_reward_is_read_at_the_end_of_turn(trained):
    """The pooled token is the response's last one, whatever stands to its right in the batch."""
    import torch

    out, _ = trained
    model, tokenizer = score.load(out)
    chosen, _ = score.encode(tokenizer, separable(4), 128)
    assert all(ids[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id for ids in chosen)
    with torch.no_grad():
        hidden = [model.model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in chosen]
        expected = [model.score(row).item() for row in hidden]
    assert score.rewards(model, chosen, 4) == pytest.approx(expected, abs=1e-5)


def test_the_same_seed_gives_the_same_model(checkpoint, tmp_path):
    from rewardbench.train import train
    from sso.records import file_digest

    short = SETTINGS.model_copy(update={"epochs": 1})
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(checkpoint, separable(24), short, seed, tmp_path / name, Run())
    a, b, c = (file_digest(tmp_path / name / "model.safetensors") for name in "abc")
    assert a == b != c


def test_dropout_is_off_while_training(checkpoint):
    from rewardbench.train import start

    model, _ = start(checkpoint, 0)
    model.train()
    assert model.config.attention_dropout == 0.0
    assert all(getattr(module, "attention_dropout", 0.0) == 0.0 for module in model.modules())


def test_a_pair_beyond_the_context_is_named(trained):
    out, _ = trained
    _, tokenizer = score.load(out)
    with pytest.raises(InputError, match=r"pair '0': \d+ tokens, but the model's context holds 16"):
        score.encode(tokenizer, separable(1), 16)


def test_a_causal_checkpoint_is_no_reward_model(checkpoint):
    with pytest.raises(InputError, match="not a reward model"):
        score.load(checkpoint)


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_micro_world_from_start_to_score(architecture, tmp_path):
    """A micro model keeps its own tokenizer through training and loading, and its four sections are scored."""
    from random import Random

    from rewardbench.train import train
    from sso.settings import Backbone
    from sso.worlds.micro.data import benchmarks
    from sso.worlds.micro.models import build
    from sso.worlds.micro.world import Writer
    from sso.worlds.settings import MicroWorld

    model, tokenizer = build(Backbone(architecture=architecture), 0)
    model.save_pretrained(tmp_path / "sft")
    tokenizer.save_pretrained(tmp_path / "sft")
    writer, random, pairs = Writer(MicroWorld()), Random(0), []
    for i in range(24):
        text = writer.prompt(random)
        prompt = data.Message(role="user", content=text)
        good, bad = (writer.respond([prompt], random, ["accuracy", "safety"], good=kind) for kind in (True, False))
        if good != bad:
            pairs.append(data.TextPair(str(i), [prompt], good, bad))
    train(tmp_path / "sft", pairs, SETTINGS, 0, tmp_path / "reward", Run())
    _, reloaded = score.load(tmp_path / "reward")
    assert score.encode(reloaded, pairs, 256) == score.encode(tokenizer, pairs, 256)
    bench = write(tmp_path / "bench.jsonl", *benchmarks(writer, 3, set())["rewardbench"])
    rows = data.read_bench(bench)
    values = score.by_reward_model(rows, tmp_path / "reward")
    result = score.write(rows, values, tmp_path / "rewardbench.json", {"kind": "reward model"})
    assert [row["n"] for row in result["subsets"].values()] == [3] * 4
    assert result == json.loads((tmp_path / "rewardbench.json").read_text())


def test_a_diverged_training_is_named(checkpoint, tmp_path):
    from rewardbench.train import train

    wild = SETTINGS.model_copy(update={"learning_rate": math.inf, "epochs": 1})
    with pytest.raises(InputError, match="the loss is not finite for the samples "):
        train(checkpoint, separable(24), wild, 0, tmp_path / "model", Run())
    assert not (tmp_path / "model").exists()


def test_commands(trained, checkpoint, tmp_path, capsys):
    """train and score as a shell would call them, with a pair set aside and a bad row."""
    from rewardbench.cli import main

    def call(*argv: object) -> int:
        return main([str(a) for a in argv])

    pairs = [pair(f"p{i}", "fine" + " so" * (i % 4), "awful") for i in range(12)]
    file = write(tmp_path / "pairs.jsonl", *pairs, pair("same", "x", "x"))
    settings = json.dumps({"arm": "sso", "learning_rate": 1e-3, "epochs": 1, "batch_size": 6})
    model = tmp_path / "model"
    train_argv = ("train", "--model", checkpoint, "--pairs", file, "--settings", settings, "--seed", 1, "--out", model)
    assert call(*train_argv) == 0
    assert "left out 1 rows (equal sides): same" in capsys.readouterr().err
    record = json.loads((tmp_path / "model.run.json").read_text())
    assert record["summary"]["equal_sides"] == 1 and record["status"] == "finished"

    names = ("micro-chat", "micro-chat-hard", "micro-safety", "micro-reasoning")
    bench = [{"id": n, "subset": n, "prompt": "q", "chosen": "fine", "rejected": "awful"} for n in names]
    file, out = write(tmp_path / "bench.jsonl", *bench), tmp_path / "rewardbench.json"
    assert call("score", "--model", trained[0], "--data", file, "--out", out) == 0
    assert json.loads(out.read_text())["rewardbench_avg"] == 100.0

    bad = ("--settings", json.dumps({"epoch": 1}))
    assert call("train", "--model", checkpoint, "--pairs", file, *bad, "--out", tmp_path / "x") == 2
    assert "`epoch`" in capsys.readouterr().err
    assert call("score", "--model", trained[0], "--data", tmp_path / "none.jsonl", "--out", out) == 2
    assert "error:" in capsys.readouterr().err


# The loss and its batches.


def test_loss_by_hand():
    import torch

    from rewardbench.trainer import bradley_terry

    winners, losers = torch.tensor([2.0, 0.5]), torch.tensor([1.0, 1.0])
    plain = bradley_terry(winners, losers)
    # ln(1 + e^-1) and ln(1 + e^0.5)
    assert plain.tolist() == pytest.approx([0.3132616875, 0.9740769842], abs=1e-6)
    margin = bradley_terry(winners, losers, torch.tensor([1.0, 0.0]))
    # ln 2
    assert margin.tolist() == pytest.approx([0.6931471806, 0.9740769842], abs=1e-6)
    # + 0.01 * 3^2, + 0.01 * 1.5^2
    centred = bradley_terry(winners, losers, centering=0.01) - plain
    assert centred.tolist() == pytest.approx([0.09, 0.0225], abs=1e-6)


@given(st.lists(st.integers(2, 400), min_size=1, max_size=40), st.integers(100, 900), st.integers(1, 3))
def test_micro_batches_hold_every_pair_once_within_the_budget(costs, budget, devices):
    from rewardbench.trainer import bucketed

    made = bucketed(costs, budget, devices)
    assert len(made) == devices and len({len(steps) for steps in made}) == 1
    groups = [group for steps in made for group in steps]
    assert sorted(i for group in groups for i in group) == list(range(len(costs)))
    for group in groups:
        assert len(group) < 2 or max(costs[i] for i in group) * len(group) <= budget
    assert all(groups) or len([group for group in groups if group]) == len(costs)
    # Groups that begin with the same length are told apart by where they end.
    in_order = sorted((group for group in groups if group), key=lambda g: (-costs[g[0]], -costs[g[-1]]))
    lengths = [costs[i] for group in in_order for i in group]
    assert lengths == sorted(lengths, reverse=True)


def weights_of(path: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def test_micro_batches_change_nothing(checkpoint, tmp_path):
    import torch

    from rewardbench.train import train

    runs = {}
    for name, tokens in (("whole", 8192), ("single", 1)):
        settings = SETTINGS.model_copy(
            update={"epochs": 1, "tokens_per_batch": tokens, "centering": 0.1, "margin": 0.5}
        )
        runs[name] = Run()
        train(checkpoint, separable(24), settings, 1, tmp_path / name, runs[name])
    whole, single = (weights_of(tmp_path / name) for name in runs)
    for name, value in whole.items():
        torch.testing.assert_close(value, single[name], rtol=1e-4, atol=1e-5)
    assert [v["loss"] for _, v in runs["whole"].metrics] == pytest.approx(
        [v["loss"] for _, v in runs["single"].metrics], rel=1e-4
    )


def test_long_pairs_are_left_out_and_counted(checkpoint, tmp_path, capsys):
    from rewardbench.train import train

    long = data.TextPair("long", separable(1)[0].prompt, "fine " * 40, "awful")
    run, settings = Run(), SETTINGS.model_copy(update={"epochs": 1, "max_length": 90})
    train(checkpoint, [*separable(12), long], settings, 0, tmp_path / "model", run)
    assert run.summary["pairs_too_long"] == 1 and run.summary["pairs_train"] + run.summary["pairs_held_out"] == 12
    assert (
        "left out 1 pairs of more than 90 tokens (max_length, or the model's context): long" in capsys.readouterr().out
    )
    with pytest.raises(InputError, match="all 1 pairs have more than 90 tokens"):
        train(checkpoint, [long], settings, 0, tmp_path / "none", run)


@pytest.fixture(scope="module")
def alone(tiny_checkpoint, tmp_path_factory):
    """Pairs, and the command that trains on them with settings of one's own, run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    rows = [pair(f"p{i}", f"1 plus {i} is {1 + i}." + " Good luck." * (i % 3), f"1 plus {i} is 9.") for i in range(12)]
    pairs = write(folder / "pairs.jsonl", *[row for row in rows if row["chosen"] != row["rejected"]])

    def run(out: Path, **settings) -> subprocess.CompletedProcess:
        text = json.dumps({"epochs": 1, "batch_size": 5, "learning_rate": 1e-3, "tokens_per_batch": 100, **settings})
        command = ["train", "--model", tiny_checkpoint, "--pairs", pairs, "--settings", text, "--out", out]
        argv = [sys.executable, "-m", "rewardbench.cli", *map(str, command)]
        return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)

    done = run(folder / "model")
    assert done.returncode == 0, done.stderr
    return folder / "model", run


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_two_processes_give_the_weights_of_one(alone, tmp_path, engine):
    """Eleven pairs in batches of five: in the last batch one process is idle."""
    import torch

    expected, run = alone
    done = run(tmp_path / "model", devices=2, engine=engine)
    assert done.returncode == 0, done.stderr
    one, two = weights_of(expected), weights_of(tmp_path / "model")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-3, atol=1e-5)
    records = [json.loads(path.with_name("model.run.json").read_text()) for path in (expected, tmp_path / "model")]
    assert records[0]["summary"] == pytest.approx(records[1]["summary"])
    assert records[0]["summary"]["pairs_train"] == 11


def test_a_killed_training_goes_on(checkpoint, tmp_path, monkeypatch):
    import torch

    from rewardbench.train import train
    from rewardbench.trainer import RewardTrainer

    settings = SETTINGS.model_copy(update={"epochs": 2, "save_steps": 2})
    train(checkpoint, separable(24), settings, 1, tmp_path / "whole", Run())
    losses, step = RewardTrainer.sample_losses, []

    def stops(self, *args, **kwargs):
        step.append(self.state.global_step)
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return losses(self, *args, **kwargs)

    monkeypatch.setattr(RewardTrainer, "sample_losses", stops)
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, separable(24), settings, 1, tmp_path / "killed", Run())
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(
        RewardTrainer,
        "sample_losses",
        lambda self, *a, **k: (step.append(self.state.global_step), losses(self, *a, **k))[1],
    )
    step.clear()
    run = Run()
    train(checkpoint, separable(24), settings, 1, tmp_path / "killed", run)
    assert step[0] == 2
    # Whoever looks on sees the whole curve, too.
    assert run.grown == run.metrics and [step for step, _ in run.metrics] == [1, 2, 3, 4, 5, 6]
    whole, killed = (weights_of(tmp_path / name) for name in ("whole", "killed"))
    for name, value in whole.items():
        torch.testing.assert_close(value, killed[name], rtol=1e-5, atol=1e-6)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".work")]


def test_padding_never_ends_a_turn(checkpoint, tmp_path):
    """Llama 3 has no padding token: its end of turn would stand in, and the reward be read before it."""
    from rewardbench.train import _own_padding
    from sso.chat import end_of_turn, load_tokenizer

    tokenizer = load_tokenizer(checkpoint)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|reserved_special_token_0|>"]})
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer.pad_token_id == end_of_turn(tokenizer)
    _own_padding(tokenizer)
    assert tokenizer.pad_token in ("<pad>", "<|reserved_special_token_0|>")


def test_a_plain_pipeline_gives_the_same_rewards(trained):
    from transformers import AutoTokenizer, pipeline

    out, _ = trained
    model, tokenizer = score.load(out)
    rows = separable(5)
    ours = score.rewards(model, score.encode(tokenizer, rows)[0])
    classify = pipeline("text-classification", model=str(out), tokenizer=AutoTokenizer.from_pretrained(out))
    for row, value in zip(rows, ours, strict=True):
        messages = [*[m.model_dump() for m in row.prompt], {"role": "assistant", "content": row.chosen}]
        text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
        # float32 of two batch shapes
        assert classify(text, function_to_apply="none")[0]["score"] == pytest.approx(value, abs=1e-4)


# Other scorers of the same rows.


BENCH = [
    {"id": n, "subset": n, "prompt": f"{n}?", "chosen": "fine so", "rejected": "awful"}
    for n in ("micro-chat", "micro-chat-hard", "micro-safety", "micro-reasoning")
]


def test_a_policys_implicit_reward(checkpoint, tmp_path):
    """Against plain log-probabilities, token by token, of two models."""
    import torch

    from sso import chat

    tokenizer, reference = chat.load_tokenizer(checkpoint), chat.load_model(checkpoint)
    policy = chat.load_model(checkpoint)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    rows = data.read_bench(write(tmp_path / "bench.jsonl", *BENCH))

    def logp(model, row, text) -> tuple[float, int]:
        ids = torch.tensor(chat.encode(tokenizer, row.prompt, text))
        start = len(chat.encode_prompt(tokenizer, row.prompt))
        with torch.no_grad():
            each = model(ids[None]).logits[0].log_softmax(-1)
        return sum(each[i - 1, ids[i]].item() for i in range(start, len(ids))), len(ids) - start

    implicit = score.by_policy(rows, tmp_path / "policy", checkpoint)
    alone = score.by_policy(rows, tmp_path / "policy", None)
    for row, rewards, means in zip(rows, implicit, alone, strict=True):
        for text, reward, mean in zip((row.chosen, row.rejected), rewards, means, strict=True):
            (own, count), (base, _) = logp(policy, row, text), logp(reference, row, text)
            assert reward == pytest.approx(own - base, abs=1e-3) and mean == pytest.approx(own / count, abs=1e-4)
    with pytest.raises(InputError, match="'long': more than the 128 tokens"):
        score.by_policy([data.TextPair("long", rows[0].prompt, "x " * 100, "y")], checkpoint, None)


def test_a_judges_verdicts(tmp_path, capsys):
    """A tie and a verdict of which an order is unreadable are not won; both are counted and the latter are named."""
    from eval.judge import Preference

    class Fixed:
        def pairwise(self, items, draw=0):
            assert [item.a for item in items] == ["fine so"] * 4
            return [
                Preference(1.0, 1.0),
                Preference(1.0, 0.0),
                Preference(math.nan, math.nan),
                Preference(math.nan, 1.0),
            ]

    rows = data.read_bench(write(tmp_path / "bench.jsonl", *BENCH))
    result = score.write(rows, score.by_judge(rows, Fixed()), tmp_path / "r.json", {"kind": "judge"})
    assert [row["accuracy"] for row in result["subsets"].values()] == [100.0, 0.0, 0.0, 0.0]
    assert [(row["ties"], row["nan"]) for row in result["subsets"].values()] == [(0, 0), (1, 0), (0, 1), (0, 1)]
    assert "2 rows have no score and count as lost: micro-safety, micro-reasoning" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "r_rows.jsonl").read_text().splitlines()]
    assert lines[2] == {"id": "micro-safety", "subset": "micro-safety", "chosen": None, "rejected": None}


def test_score_command_takes_a_policy_and_a_judge(tiny_checkpoint, tmp_path):
    from rewardbench.cli import main
    from sso.worlds.micro.data import benchmarks
    from sso.worlds.micro.world import Writer
    from sso.worlds.settings import MicroWorld

    bench = write(tmp_path / "bench.jsonl", *benchmarks(Writer(MicroWorld()), 2, set())["rewardbench"])
    policy = ["--policy", tiny_checkpoint, "--reference", tiny_checkpoint]
    for who in (policy, ["--judge", '{"kind": "oracle"}', "--world", "{}"]):
        assert main([str(a) for a in ("score", *who, "--data", bench, "--out", tmp_path / "r.json")]) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["scorer"]["kind"] == "judge" and result["rewardbench_avg"] == 100.0


# Best of n.


def test_curve_and_calibration_by_hand():
    import numpy as np

    from rewardbench.best_of_n import calibration, curve

    quality = np.array([[0.1, 0.9, 0.5, 0.7], [0.4, 0.2, 0.8, 0.8]])
    rewards = np.array([[0.0, 1.0, 5.0, 2.0], [3.0, 1.0, 0.0, 2.0]])
    one, two, four = curve(rewards, quality)
    assert (one["n"], one["reward"], one["oracle"], one["random"]) == (1, 0.25, 0.25, 0.25)
    # 0.9 and 0.4; 0.9 and 0.4; the mean of the first two of both
    assert (two["reward"], two["oracle"], two["random"]) == pytest.approx((0.65, 0.65, 0.4))
    # 0.5 and 0.4; 0.9 and 0.8
    assert (four["reward"], four["oracle"]) == pytest.approx((0.45, 0.85))
    # Gaps 1 (right), 3 (wrong), 2 (right); the pair of equal quality is left out.
    small, large = calibration(rewards, quality, bins=2)
    assert (small["n"], small["agreement"], small["gap"]) == (2, 1.0, 1.5)
    assert (large["n"], large["agreement"], large["expected"]) == (1, 0.0, pytest.approx(1 / (1 + math.exp(-3))))


def test_best_of_n_command(tiny_checkpoint, tmp_path):
    """A reward model from a tiny checkpoint picks, and more answers leave the first ones as they are."""
    from rewardbench.cli import main
    from rewardbench.train import start
    from sso.records import Answer, read
    from sso.records import write as write_records
    from sso.worlds.micro.data import queries
    from sso.worlds.micro.world import Writer
    from sso.worlds.settings import MicroWorld

    for part in start(tiny_checkpoint, 0):
        part.save_pretrained(tmp_path / "reward")
    write_records(tmp_path / "queries.jsonl", queries(Writer(MicroWorld()), "q", 3, set()))
    files = ("--model", tmp_path / "reward", "--policy", tiny_checkpoint, "--queries", tmp_path / "queries.jsonl")
    options = ("--settings", json.dumps({"max_new_tokens": 6, "temperature": 1, "dtype": "float32"}), "--world", "{}")
    for n in (2, 4):
        argv = ("best-of-n", *files, *options, "--n", n, "--out", tmp_path / f"best{n}.jsonl")
        assert main([str(a) for a in argv]) == 0
    answers = read(tmp_path / "best4.jsonl", Answer)
    assert [a.id for a in answers] == ["q-0", "q-1", "q-2"] and answers[0].model == "best of 4"
    two, four = (json.loads((tmp_path / f"best{n}.report.json").read_text())["best_of_n"] for n in (2, 4))
    assert two == four[:2] and len(four) == 3 and (tmp_path / "best4.svg").stat().st_size > 1000
    # A served policy has its name in the settings.
    from tests.openai_server import serving

    with serving(tmp_path / "server") as server:
        served = {"max_new_tokens": 6, "engine": "endpoint", "endpoint": {"model": "m", "base_url": server.url}}
        argv = ["best-of-n", "--model", tmp_path / "reward", "--queries", tmp_path / "queries.jsonl", "--n", 2]
        argv += ["--settings", json.dumps(served), "--out", tmp_path / "served.jsonl"]
        assert main([str(a) for a in argv]) == 0 and len(server.requests) == 6
        assert main([str(a) for a in (*argv, "--policy", tiny_checkpoint)]) == 2
    assert len(read(tmp_path / "served.jsonl", Answer)) == 3
