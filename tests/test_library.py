"""The library against the command: same weights, same losses; and what only a library has to keep."""

import copy
import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, TrainerCallback

import sso
from sso import SSOConfig, SSOTrainer, generate_triples, reference
from sso.chat import load_model, load_tokenizer
from sso.cli import main
from sso.errors import InputError
from sso.library import from_authors
from sso.objective import Scores, build
from sso.packing import tokenize
from sso.records import Pair, write
from sso.sampling.settings import Sampling, Writer
from sso.settings import Backbone
from sso.train import checkpoints
from sso.train.run import save
from sso.train.settings import Training
from sso.worlds.micro.models import build as build_model
from tests.conftest import REPOSITORY
from tests.test_training import triple

TRIPLES = [triple(i) for i in range(10)]
PAIRS = [Pair(id=t.id, prompt=t.prompt, chosen=t.chosen, rejected=t.rejected) for t in TRIPLES]
SETTINGS = {"learning_rate": 1e-3, "num_train_epochs": 2, "bf16": False, "disable_tqdm": True, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("library")
    save(*build_model(Backbone(architecture="qwen2", layers=2), 0), path / "start")
    write(path / "triples.jsonl", TRIPLES)
    write(path / "pairs.jsonl", PAIRS)
    return path


@pytest.fixture
def rows():
    return Dataset.from_list([t.model_dump(exclude={"second", "cut"}) for t in TRIPLES])


def config(out, **settings):
    return SSOConfig(
        str(out), **{**SETTINGS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2} | settings
    )


def by_command(folder, out, data, **settings):
    """Weights that `sso train` saves."""
    values = {"batch_size": 4, "epochs": 2, "dtype": "float32", "learning_rates": [1e-3], **settings}
    files = ["--model", folder / "start", "--data", folder / data, "--out", out]
    assert main(["train", *map(str, files), "--settings", json.dumps(values), "--seed", "3"]) == 0
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()


def turn(text):
    return [{"role": "assistant", "content": text.strip()}]


def equal(model, weights):
    own = model.state_dict()
    return own.keys() == weights.keys() and all(own[name].equal(weights[name]) for name in own)


OWN = {"mine": [{"context": "x+", "winner": "y+", "loser": "yo", "weight": 0.5, "sft": "gamma"}]}


@pytest.mark.parametrize(
    "settings",
    [{"objective": "sso_v2"}, {"objective": "sso_v1"}, {"objective": "mine", "objectives": OWN}],
    ids=lambda settings: settings["objective"],
)
def test_the_weights_are_those_of_sso_train_bit_for_bit(folder, rows, tmp_path, settings):
    expected = by_command(folder, tmp_path / "command", "triples.jsonl", **settings)
    trainer = SSOTrainer(folder / "start", config(tmp_path / "out", **settings), rows)
    assert trainer.args.global_batch_size == 4
    trainer.train()
    assert equal(trainer.model, expected) and trainer.state.global_step == 6
    # A model in memory, of a prompt in text, with evaluations in between: again the same.
    texts = rows.map(lambda row: {"prompt": row["prompt"][0]["content"]}, remove_columns=["prompt"])
    model, tokenizer = load_model(folder / "start"), load_tokenizer(folder / "start")
    arguments = config(tmp_path / "other", **settings, eval_strategy="steps", eval_steps=1, logging_steps=2)
    other = SSOTrainer(model, arguments, texts, eval_dataset=texts.select(range(3)), processing_class=tokenizer)
    other.train()
    assert equal(model, expected) and sum("eval_loss" in row for row in other.state.log_history) == 6
    steps = [row["loss_per_sample"] for row in trainer.state.log_history if "loss" in row]
    seen = [row["loss_per_sample"] for row in other.state.log_history if "loss" in row]
    # Means over the samples of two batches each: evaluations in between have no part in them.
    sizes = (4, 4), (2, 4), (4, 2)
    means = [(m * a + n * b) / (m + n) for a, b, (m, n) in zip(steps[::2], steps[1::2], sizes, strict=True)]
    assert seen == pytest.approx(means)


def test_bfloat16_is_the_commands_too_and_saving_leaves_the_model_alone(folder, rows, tmp_path):
    expected = by_command(folder, tmp_path / "command", "triples.jsonl", objective="sso_v2", dtype="bfloat16")
    trainer = SSOTrainer(folder / "start", config(tmp_path / "out", bf16=True), rows, eval_dataset=rows)
    first = trainer.evaluate()  # in bfloat16 too: policy and reference are one
    assert first["eval_x+:y+>y-/margin"] == first["eval_x-:yo>y+/margin"] == 0
    trainer.train()
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.save_model(tmp_path / "out")
    assert equal(trainer.model, before)
    assert list(tmp_path.glob("out/checkpoint-*")), "saving took the checkpoints away"
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert saved.dtype == torch.bfloat16 and equal(saved.float(), expected)
    for load in (load_tokenizer, AutoTokenizer.from_pretrained):
        own, first = load(tmp_path / "out"), load(folder / "start")
        assert own("x is 7.").input_ids == first("x is 7.").input_ids and own.chat_template == first.chat_template


def test_plain_pairs_are_dpo_as_the_command_trains_it_in_each_of_trls_layouts(folder, tmp_path):
    expected = by_command(folder, tmp_path / "command", "pairs.jsonl", objective="pairs")
    standard = [{"prompt": t.prompt[0].content, "chosen": t.chosen, "rejected": t.rejected} for t in TRIPLES]
    conversational = [pair.model_dump(include={"prompt", "chosen", "rejected"}) for pair in PAIRS]
    implicit = [{side: [*row["prompt"], *row[side]] for side in ("chosen", "rejected")} for row in conversational]
    for number, layout in enumerate((standard, conversational, implicit)):
        arguments = config(tmp_path / f"out{number}", objective="pairs")
        trainer = SSOTrainer(folder / "start", arguments, Dataset.from_list(layout))
        trainer.train()
        assert equal(trainer.model, expected)


def test_the_loss_on_held_out_rows_is_the_objectives_from_whole_unpadded_passes(folder, rows, tmp_path):
    trained = rows.select(range(6))
    held = DatasetDict(near=rows.select(range(6, 8)), far=rows.select(range(8, 10)))
    arguments = config(tmp_path / "out", objective="sso_v1", num_train_epochs=4)
    trainer = SSOTrainer(folder / "start", arguments, trained, eval_dataset=held)
    trainer.train()
    found = trainer.evaluate()
    objective, tokenizer = build(Training(objective="sso_v1")), load_tokenizer(folder / "start")
    models = copy.deepcopy(trainer.model).eval().double(), load_model(folder / "start").double()

    def logp(model, context, response):
        with torch.no_grad():
            logits = model(torch.tensor([context + response])).logits[0].log_softmax(-1)
        return sum(logits[len(context) - 1 + i, token] for i, token in enumerate(response))

    for name, part in (("near", TRIPLES[6:8]), ("far", TRIPLES[8:])):
        samples = tokenize(part, tokenizer, 4096).samples
        tables = [
            {node: torch.stack([logp(model, *s.node(node)) for s in samples]) for node in objective.nodes}
            for model in models
        ]
        counts = {node: torch.tensor([len(s.node(node)[1]) for s in samples]) for node in objective.nodes}
        scores = Scores(*tables, counts)
        assert found[f"eval_{name}_loss"] == pytest.approx(float(objective(scores).mean()), rel=1e-4)
        margin = objective.terms(scores)[0]["margin"].mean()
        assert found[f"eval_{name}_x:y+>y-/margin"] == pytest.approx(float(margin), rel=1e-3, abs=1e-3)
    with pytest.raises(InputError, match="the reference is the model before training"):
        trainer.evaluate(held["near"])


def test_reference_scores_are_read_again_and_made_again_for_another_model(folder, rows, tmp_path, capsys):
    file, arguments = tmp_path / "out.reference.safetensors", config(tmp_path / "out")
    SSOTrainer(folder / "start", arguments, rows)
    made = file.read_bytes(), file.stat().st_mtime_ns
    command = ["reference", "--model", folder / "start", "--data", folder / "triples.jsonl", "--objectives", "sso_v2"]
    values = json.dumps({"dtype": "float32", "objective": "sso_v2"})
    assert main([*map(str, command), "--settings", values, "--out", str(tmp_path / "command.safetensors")]) == 0
    by_sso = reference.load(tmp_path / "command.safetensors")
    kept = reference.load(file, by_sso.key)  # the same key: each reads the other's
    assert kept.logp.equal(by_sso.logp) and kept.ids == [t.id for t in TRIPLES]
    SSOTrainer(folder / "start", arguments, rows)
    assert (file.read_bytes(), file.stat().st_mtime_ns) == made
    model, tokenizer = load_model(folder / "start"), load_tokenizer(folder / "start")
    for _ in range(2):
        SSOTrainer(model, arguments, rows, processing_class=tokenizer)
    assert capsys.readouterr().out.count("made again") == 1  # a model in memory is told by its tensors
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    fixed = config(tmp_path / "out", reference_scores=str(file))
    with pytest.raises(InputError, match=r"out.reference.safetensors: made with other weights"):
        SSOTrainer(model, fixed, rows, processing_class=tokenizer)
    SSOTrainer(model, arguments, rows, processing_class=tokenizer)
    assert not reference.load(file).logp.equal(kept.logp)


def test_adapters_start_from_the_reference_and_are_saved_merged(folder, rows, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    lora = {"rank": 4, "alpha": 8}
    expected = by_command(folder, tmp_path / "command", "triples.jsonl", objective="sso_v2", lora=lora)
    peft = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SSOTrainer(folder / "start", config(tmp_path / "out"), rows, rows.select([0]), peft_config=peft)
    trainer.train()
    first, last = (trainer.state.log_history[i] for i in (0, -2))
    assert first["x+:y+>y-/base"] == first["x-:yo>y+/base"] == pytest.approx(math.log(2), abs=1e-5)
    assert last["x+:y+>y-/base"] < math.log(2)
    trainer.save_model(tmp_path / "saved")
    assert isinstance(trainer.model, PeftModel)
    assert equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), expected)
    # The base still scores as the reference: of new rows, and of a model that comes with trained adapters.
    known, new = trainer.evaluate(), trainer.evaluate(rows.select([0]))
    assert known["eval_loss"] == new["eval_loss"] and known["eval_x+:y+>y-/margin"] != 0
    own = get_peft_model(load_model(folder / "start"), peft)
    for name, weight in own.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    again = SSOTrainer(own, config(tmp_path / "own"), rows, processing_class=load_tokenizer(folder / "start"))
    assert again.train_dataset.logp.equal(trainer.train_dataset.logp)
    with pytest.raises(InputError, match="has adapters already"):
        SSOTrainer(own, config(tmp_path / "own"), rows, peft_config=peft)


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4  # in the second epoch


class Steps(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(folder, rows, tmp_path):
    whole = SSOTrainer(folder / "start", config(tmp_path / "whole"), rows)
    whole.train()
    settings = {"save_strategy": "steps", "save_steps": 2}
    SSOTrainer(folder / "start", config(tmp_path / "out", **settings), rows, callbacks=[Stop()]).train()
    assert checkpoints.latest(tmp_path / "out").name == "checkpoint-4"
    (tmp_path / "out" / "checkpoint-5").mkdir()  # one that a kill cut off
    taken = Steps()
    rest = SSOTrainer(folder / "start", config(tmp_path / "out", **settings), rows, callbacks=[taken])
    rest.train(resume_from_checkpoint=True)
    assert [row["step"] for row in rest.state.log_history if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert taken.steps == [5, 6]
    assert equal(rest.model, whole.model.state_dict())
    weights_alone = config(tmp_path / "new", **settings, save_only_model=True)
    SSOTrainer(folder / "start", weights_alone, rows, callbacks=[Stop()]).train()
    assert (tmp_path / "new" / "checkpoint-4").is_dir()
    with pytest.raises(InputError, match="no whole checkpoint to go on from"):
        SSOTrainer(folder / "start", config(tmp_path / "new"), rows).train(resume_from_checkpoint=True)


def test_dpo_on_pairs_ends_near_the_weights_of_trls_own_trainer(folder, tmp_path):
    """A batch holds all pairs, so that the order in which each draws them makes no difference."""
    pytest.importorskip("trl")
    from trl import DPOConfig, DPOTrainer

    shared = {**SETTINGS, "per_device_train_batch_size": 10, "num_train_epochs": 6, "weight_decay": 0.1}
    settings = {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "optim": "adamw_torch", "use_cpu": True}
    # Without the spaces at a side's end, which the suite takes away.
    rows = Dataset.from_list(
        [
            {"prompt": [t.prompt[0].model_dump()], "chosen": turn(t.chosen), "rejected": turn(t.rejected)}
            for t in TRIPLES
        ]
    )
    first, theirs, ours = (load_model(folder / "start") for _ in range(3))
    tokenizer = load_tokenizer(folder / "start")
    args = DPOConfig(str(tmp_path / "trl"), **shared, **settings, beta=0.3, max_length=None)
    DPOTrainer(theirs, args=args, train_dataset=rows, processing_class=tokenizer).train()
    args = SSOConfig(str(tmp_path / "out"), **shared, objective="pairs", beta=0.3)
    SSOTrainer(ours, args, rows, processing_class=tokenizer).train()
    moved, apart = (
        torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), theirs.parameters(), strict=True)]).norm()
        for model in (first, ours)
    )
    assert apart < 1e-3 * moved and moved > 0.1


def test_two_processes_train_the_model_that_one_trains(folder, rows, tmp_path):
    code = f"""
import os
from datasets import Dataset
from sso import SSOConfig, SSOTrainer
from tests.test_library import SETTINGS, TRIPLES
rows = Dataset.from_list([t.model_dump(exclude={{"second", "cut"}}) for t in TRIPLES])
args = SSOConfig("{tmp_path}/two", **SETTINGS, per_device_train_batch_size=2, tokens_per_batch=300)
trainer = SSOTrainer("{folder}/start", args, rows, eval_dataset=rows.select([0]))  # less than a row a process
trainer.train()
open(f"{tmp_path}/said{{os.environ['RANK']}}", "w").write(str(trainer.evaluate()["eval_loss"]))
trainer.save_model("{tmp_path}/saved")
"""
    (tmp_path / "run.py").write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*launch, tmp_path / "run.py"], cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one = SSOTrainer(folder / "start", config(tmp_path / "one"), rows, eval_dataset=rows.select([0]))
    one.train()
    two = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    for name, weight in one.model.state_dict().items():
        torch.testing.assert_close(weight, two[name], rtol=1e-2, atol=2e-4)
    said = [float((tmp_path / f"said{rank}").read_text()) for rank in (0, 1)]
    assert said == pytest.approx([one.evaluate()["eval_loss"]] * 2, rel=1e-4)


def test_splits_are_no_prompts():
    from datasets import Dataset, DatasetDict

    both = DatasetDict({name: Dataset.from_list([{"prompt": "a"}]) for name in ("train", "test")})
    with pytest.raises(InputError, match="a mapping of train, test; give one split"):
        generate_triples("no-model", both)


def test_triples_are_the_commands_draws(folder, tmp_path):
    from sso.principles import FALLBACK

    prompts = [t.prompt[0].content for t in TRIPLES[:3]]
    sampling = {"max_new_tokens": 12, "dtype": "float32", "batch_size": 2}
    write(tmp_path / "queries.jsonl", [{"prompt": prompt} for prompt in prompts])
    where = ["--model", str(folder / "start"), "--seed", "5"]
    queries, principles = (str(tmp_path / f"{name}.jsonl") for name in ("queries", "principles"))
    writer = json.dumps({"kind": "policy", "dtype": "float32", "max_new_tokens": 16})
    asked = ["principles", "--queries", queries, "--version", "v2", "--settings", writer, "--out", principles]
    assert main([*asked, *where]) == 0
    drawn = ["sample", "--principles", principles, "--wrapper", "paper", "--settings", json.dumps(sampling)]
    assert main([*drawn, *where, "--responses", "y+,y-,yo", "--out", str(tmp_path / "triples.jsonl")]) == 0
    expected = [json.loads(line) for line in (tmp_path / "triples.jsonl").read_text().splitlines()]
    made = generate_triples(
        load_model(folder / "start"),
        prompts,
        processing_class=load_tokenizer(folder / "start"),
        sampling=Sampling(**sampling),
        writer=Writer(kind="policy", max_new_tokens=16),
        seed=5,
    )
    assert [{k: row.get(k, []) for k in made.column_names} for row in expected] == list(made)
    columns = [{"prompt": p, "good": FALLBACK.good, "bad": FALLBACK.bad, "id": f"q{i}"} for i, p in enumerate(prompts)]
    own = generate_triples(folder / "start", Dataset.from_list(columns), sampling=Sampling(**sampling))
    assert own["id"] == ["q0", "q1", "q2"] and FALLBACK.bad in own["system_bad"][0]
    SSOTrainer(folder / "start", config(tmp_path / "out"), own)


AUTOALIGN = {
    "prompt": "Write a poem.",
    "uuid": "a1",
    "history": [],
    "p_system": "Be good.",
    "n_system": "Be bad.",
    "system": "",
    **{
        name: [{"from": "human", "value": "Write a poem."}, {"from": "gpt", "value": text}]
        for name, text in (("chosen", "Night."), ("rejected", "No."), ("raw", "Stars."))
    },
}
RELEASED = {
    "instruction": "Write a poem.", "idx": "a1", "history": [], "p_system": "Be good.", "n_system": "Be bad.",
    "system": "", "chosen": "Night.", "rejected": "No.", "raw": "Stars.",
}  # fmt: skip


def test_the_authors_triples_come_in_from_both_of_their_formats(tmp_path):
    expected = {
        "prompt": [{"role": "user", "content": "Write a poem."}],
        "system_good": "Be good.", "system_bad": "Be bad.",
        "chosen": "Night.", "rejected": "No.", "original": "Stars.",
    }  # fmt: skip
    assert list(from_authors([AUTOALIGN, RELEASED])) == [{"id": "a1", **expected}, {"id": "a1#1", **expected}]
    for written in ([AUTOALIGN], RELEASED):  # the release's example is one object over many lines
        (tmp_path / "rows.json").write_text(json.dumps(written, indent=1))
        assert list(from_authors(tmp_path / "rows.json")) == [{"id": "a1", **expected}]
    earlier = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]
    longer = {**AUTOALIGN, **{key: [*earlier, *AUTOALIGN[key]] for key in ("chosen", "rejected", "raw")}}
    assert [m["content"] for m in from_authors([longer])[0]["prompt"]] == ["Hi.", "Hello.", "Write a poem."]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"p_system": ""}, "`p_system`: must be a text"),
        ({"n_system": None}, "`n_system`: must be a text"),
        ({"raw": None}, "`raw`: is missing"),
        ({"raw": []}, "`raw`: holds no turn"),
        ({"rejected": AUTOALIGN["chosen"][:1]}, "`rejected`: does not end with an answer"),
        ({"raw": [{"from": "human", "value": "Other."}, AUTOALIGN["raw"][1]]}, "`raw`: follows on another dialogue"),
        ({"system": "Be brief."}, "`system`: must be empty"),
        ({"prompt": "Another."}, "`prompt`: another prompt beside the dialogue"),
    ],
)
def test_a_bad_row_of_the_authors_is_named_with_its_key(change, said):
    with pytest.raises(InputError, match=f"^rows: row 2: {said}"):
        from_authors([AUTOALIGN, {**AUTOALIGN, **change}])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": "sso_v3"}, "unknown objective 'sso_v3'"),
        ({"objectives": OWN, "objective": "mien"}, "unknown objective 'mien'; did you mean .mine."),
        ({"objectives": {"sso_v2": OWN["mine"]}}, "SSOConfig: `objectives`: 'sso_v2' is an objective of"),
        ({"objectives": {"mine": [OWN["mine"][0] | {"sft": "gama"}]}}, "unknown weight 'gama'; did you mean .gamma."),
        ({"objectives": "mine.yaml"}, "SSOConfig: `objectives`: "),
        ({"beta": -1.0}, "SSOConfig: `beta`: input should be greater than 0"),
        ({"base_loss": "ipo", "label_smoothing": 0.1}, "SSOConfig: label_smoothing belongs to base_loss dpo"),
        ({"layout": "tree"}, "SSOConfig: `layout`: "),
        ({"fp16": True}, "SSOConfig: `fp16`: this trainer has no use for it"),
        ({"data_seed": 4}, "SSOConfig: `data_seed`: "),
        ({"bf16_full_eval": True}, "SSOConfig: `bf16_full_eval`: this trainer has no use for it"),
        ({"learning_rate": -1.0}, "learning_rates.0`: input should be greater than 0"),
        ({"train_sampling_strategy": "sequential"}, "SSOConfig: `train_sampling_strategy`: the order of samples"),
    ],
)
def test_arguments_are_checked_as_settings_are(tmp_path, settings, said):
    with pytest.raises(InputError, match=said):
        config(tmp_path, **settings)


def test_defaults_are_the_trainings(tmp_path):
    own = SSOConfig(str(tmp_path))
    assert own.training() == Training(objective="sso_v2") and own.objective == "sso_v2"
    (parsed,) = HfArgumentParser(SSOConfig).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--beta", "0.3", "--objective", "l_plus"]
    )
    assert parsed.training() == Training(objective="l_plus", beta=0.3)
    (parsed,) = HfArgumentParser(SSOConfig).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--objective", "mine", "--objectives", json.dumps(OWN)]
    )
    assert parsed.training() == Training(objective="mine", objectives=OWN)


def test_what_does_not_fit_is_said_in_a_sentence(folder, rows, tmp_path):
    pairs = Dataset.from_list([p.model_dump(include={"prompt", "chosen", "rejected"}) for p in PAIRS])
    cases = [
        ("train_dataset: objective 'sso_v2' needs triples", {"train_dataset": pairs}),
        ("train_dataset: is missing", {}),
        ("train_dataset:1: a str, but must be a row", {"train_dataset": DatasetDict(train=rows)}),
        ("train_dataset:2: `original`: field required", {"train_dataset": [rows[0], {**rows[1], "original": None}]}),
        ("train_dataset:2: id '0' stands in row 1 too", {"train_dataset": [rows[0], rows[0]]}),
        ("train_dataset: row 1 is a triple and row 2 is none", {"train_dataset": [rows[0], pairs[0]]}),
        ("eval_dataset: objective 'sso_v2' needs triples", {"train_dataset": rows, "eval_dataset": pairs}),
    ]
    for said, given in cases:
        with pytest.raises(InputError, match=f"^{said}"), pytest.MonkeyPatch.context() as patch:
            patch.setattr("sso.library.trainer.load_model", lambda *_: pytest.fail("rows are checked first"))
            SSOTrainer(folder / "start", config(tmp_path / "out"), **given)
    with pytest.raises(InputError, match=r"reference_scores: .* is a folder; give a file"):
        SSOTrainer(folder / "start", config(tmp_path / "out", reference_scores=str(tmp_path)), rows)
    with pytest.raises(InputError, match="wrapper: 'papre'; did you mean `paper`"):
        generate_triples(folder / "start", ["a"], wrapper="papre")
    model = build_model(Backbone(architecture="qwen2", layers=2), 0)[0]
    with pytest.raises(InputError, match="processing_class: is missing"):
        SSOTrainer(model, config(tmp_path / "out"), rows)
    with pytest.raises(InputError, match="args: a dict, but must be an SSOConfig"):
        SSOTrainer(folder / "start", {}, rows)


def test_a_checkpoint_is_resumed_with_what_it_was_made_of(folder, rows, tmp_path):
    arguments = config(tmp_path / "out", save_steps=2)
    SSOTrainer(folder / "start", arguments, rows).train()
    (checkpoint, *_) = sorted((tmp_path / "out").glob("checkpoint-*"))
    for trainer in (
        SSOTrainer(folder / "start", config(tmp_path / "out", save_steps=2), rows.select(range(8))),
        SSOTrainer(folder / "start", config(tmp_path / "out", save_steps=2, objective="l_plus"), rows),
    ):
        with pytest.raises(InputError, match=r"checkpoint-\d+: was made of other rows or another objective"):
            trainer.train(str(checkpoint))
    with pytest.raises(InputError, match=r"nowhere: no whole checkpoint; give one of `output_dir`"):
        trainer.train(str(tmp_path / "nowhere"))


def test_a_loss_that_no_log_has_is_checked_before_it_is_kept(folder, rows, tmp_path):
    for settings in ({"logging_steps": 1000}, {"logging_steps": 1000, "save_steps": 2}):
        trainer = SSOTrainer(folder / "start", config(tmp_path / "out", **settings), rows)
        trainer.train_dataset.logp[3] = torch.nan
        with pytest.raises(InputError, match="the loss is not finite for the samples 3; lower"):
            trainer.train()
        assert not list((tmp_path / "out").glob("checkpoint-*/saved"))


def test_a_training_whose_only_step_is_warm_up_says_so(folder, rows, tmp_path, capsys):
    for warmup, said in ((0.1, True), (0, False)):
        arguments = config(tmp_path / str(warmup), max_steps=1, warmup_steps=warmup)
        SSOTrainer(folder / "start", arguments, rows).train()
        assert ("no weight will move" in capsys.readouterr().err) == said


def test_half_precision_weights_in_memory_are_warned_of(folder, rows, tmp_path, capsys):
    model = load_model(folder / "start").bfloat16()
    SSOTrainer(model, config(tmp_path / "out", bf16=True), rows, processing_class=load_tokenizer(folder / "start"))
    assert "the weights to train are torch.bfloat16" in capsys.readouterr().err


def test_importing_the_package_loads_no_torch():
    code = "import sso, sys; assert 'torch' not in sys.modules; sso.SSOConfig; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
    with pytest.raises(AttributeError, match="has no attribute 'SSOtrainer'"):
        sso.SSOtrainer  # noqa: B018


def test_the_pages_example_runs(folder, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "library.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    write("prompts.jsonl", [{"prompt": t.prompt[0].content} for t in TRIPLES])
    for shown, tiny in (("Qwen/Qwen2.5-0.5B-Instruct", str(folder / "start")), ("=512", "=8"), ("0.05", "0.2")):
        assert shown in code
        code = code.replace(shown, tiny)
    known: dict = {}
    exec(code, known)
    assert known["trainer"].state.global_step == 1 and len(known["parts"]["test"]) == 2
    load_model(tmp_path / "generator" / "final")


def test_the_example_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "examples/train_sso.py"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    place = done.stdout.splitlines()[-1]
    assert "8 triples, 8 steps" in place
    assert AutoModelForCausalLM.from_pretrained(place.rpartition(": ")[2]).dtype == torch.float32
