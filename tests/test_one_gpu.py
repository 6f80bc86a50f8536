"""config/one_gpu.yaml: what it plans and asks for, public reward models as judges, and a run on tiny stand-ins."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from eval.judge import AnswerPair, RewardJudge, make_judge
from eval.settings import Judge
from sso.cli import main
from sso.config import OFFICIAL_DIFFICULTY, Hardware, load, parse
from sso.errors import InputError
from sso.records import Message
from sso.settings import read_yaml
from sso.train.settings import Lora, Training
from tests.conftest import REPOSITORY
from tests.test_workflow import count, snakemake
from workflow.arithmetic import Arithmetic
from workflow.check import check
from workflow.costs import Costs
from workflow.experiment import Grid
from workflow.hub_names import hub_names, unpinned
from workflow.plan import totals, warnings
from workflow.shapes import Shape, shape

CONFIG = REPOSITORY / "config" / "one_gpu.yaml"
JUDGE = "Skywork/Skywork-Reward-V2-Qwen3-1.7B"


# The plan.


def test_it_fits_one_gpu_of_24_gb_in_a_day(capsys):
    grid = Grid(load(CONFIG))
    check(grid.experiment)
    device, asked = grid.experiment.hardware, Costs(grid.experiment)
    assert (device.gpus, device.memory_gb) == (1, 24) and list(warnings(grid)) == []
    for job in grid:
        assert asked.of(job).gpus <= 1, job.name
    assert 0 < totals(grid)["gpu_hours"] < 24 and totals(grid)["money"] == 0
    assert main(["plan", "--configfile", str(CONFIG)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "GPU-hours" in said and "GB of disk" in said and "warning" not in said


@pytest.mark.parametrize(
    "other",
    [
        {"backbones": {"qwen25_1b5": None, "llama32_1b": {"path": "meta-llama/Llama-3.2-1B-Instruct"}}},
        {
            "backbones": {"qwen25_1b5": None, "qwen25_0b5": {"path": "Qwen/Qwen2.5-0.5B-Instruct"}},
            "trainings": {name: {"lora": None, "learning_rates": [5e-7]} for name in ("generator", "policy")},
            "assumed": {"trainings.generator.lora": None},
        },
        {"evaluation": {"judge": {"path": "Skywork/Skywork-Reward-V2-Llama-3.2-1B"}}},
        {"evaluation": {"judge": {"path": "Skywork/Skywork-Reward-V2-Qwen3-0.6B"}}},
    ],
    ids=["llama", "0.5B without adapters", "another judge", "a smaller judge"],
)
def test_what_it_offers_beside_fits_too(other):
    grid = Grid(load(CONFIG, other))
    check(grid.experiment)
    assert list(warnings(grid)) == [] and 0 < totals(grid)["gpu_hours"] < 24


def test_without_adapters_the_default_does_not_fit():
    own = {"trainings": {"policy": {"lora": None}, "generator": {"lora": None}}, "assumed": None}
    assert any(line.startswith("policy: about") for line in warnings(Grid(load(CONFIG, own))))


def test_dry_run_to_the_end(tmp_path):
    profile = REPOSITORY / "workflow/profiles/gpu"
    asked = ["--profile", str(profile), "--resources", "gpu=1", "mem_mb=60000"]
    done = snakemake("-n", "--cores", "8", "--quiet", "rules", "--configfile", str(CONFIG), *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    jobs = sum(count(Grid(load(CONFIG))).values())
    assert f"total {jobs + 1}" in " ".join((done.stdout + done.stderr).split())


def test_its_names_are_all_known_and_pinned():
    names = hub_names(load(CONFIG))
    assert any(name.startswith(f"{JUDGE}@") for name in names) and unpinned(load(CONFIG)) == {}


def test_doctor_tells_what_is_missing_in_sentences(monkeypatch, capsys):
    monkeypatch.setattr("workflow.doctor.shutil.which", lambda name: None)
    with pytest.raises(SystemExit):
        main(["doctor", "--configfile", str(CONFIG)])
    said = capsys.readouterr().out
    for part in (f"hub: model {JUDGE}", "hub: model Qwen/Qwen2.5-1.5B-Instruct", "GPUs: ", "package vllm: "):
        assert part in said, said
    assert "key:" not in said and "plan:" not in said and all(line.endswith(".") for line in said.splitlines()), said


def test_a_missing_judge_is_told_before_any_work(tmp_path):
    with pytest.raises(InputError, match="no such folder; give the judging reward model's, or its hub name"):
        check(load(CONFIG, {"local": {JUDGE: str(tmp_path / "none")}}))


def test_tables_call_a_reward_model_one():
    from report.tables import header

    class Measured:
        experiment = load(CONFIG)

    said = header(Measured())
    assert (
        "judge: reward model Skywork-Reward-V2-Qwen3-1.7B (each preference is 1 or 0" in said and "judge of" not in said
    )
    own = {"evaluation": {"judge": {"kind": "openai", "model": "m", "path": None}}}
    own["evaluation"]["judges"] = {"alpaca_eval": {"kind": "reward", "path": JUDGE}}
    Measured.experiment = load(CONFIG, {**own, "assumed": None})
    said = header(Measured())
    assert "judge: m. judge of alpaca_eval: reward model Skywork-Reward-V2-Qwen3-1.7B (each" in said
    assert Judge(kind="reward", path=f"{JUDGE}@{'0' * 40}").title == "reward model Skywork-Reward-V2-Qwen3-1.7B"


# Costs.


def test_adapters_by_hand():
    """rank x (inputs + outputs) of q, k, v, o, gate, up and down of one layer, and what a training of them takes."""
    size = Shape(1.5e9, 28, 1536, 256, 151_936, 8960)
    layer = 16 * (2 * 1536 + 2 * (1536 + 256) + 2 * 1536 + 3 * (1536 + 8960))
    assert layer == 16 * (3072 + 3584 + 3072 + 31488)
    assert size.adapted(16) == 28 * layer == 18_464_768
    assert size.adapted(16, ["q_proj", "v_proj"]) == 28 * 16 * (3072 + 1792)
    how = Training(lora=Lora(rank=16), gradient_checkpointing=True)
    work = Arithmetic(Hardware(tflops=100, training_mfu=0.5, memory_gb=24))
    cost, whole = work.fit(size, how, 1e9, 8192), work.fit(size, how.model_copy(update={"lora": None}), 1e9, 8192)
    layer = 26 * 1536 + 8 * 256 + 8 * 8960
    active = (8192 * (2 * 1536 * 28 + layer) + 6 * 2**28) / 1e9
    assert cost.memory_gb == pytest.approx(4 * 1.5 + 16 * 18_464_768 / 1e9 + active + 4)
    assert whole.memory_gb == pytest.approx(16 * 1.5 + active + 4)
    # 2 forward, 2 for the inputs' gradients and 2 to compute the layers anew; the weights' own 2 are left out.
    assert cost.hours == pytest.approx(6 * 1.5e9 * 1e9 / 0.5e14 / 3600)
    assert whole.hours == pytest.approx(8 * 1.5e9 * 1e9 / 0.5e14 / 3600)
    split = how.model_copy(update={"engine": "zero2"})
    assert work.fit(size, split, 1e9, 8192).memory_gb == pytest.approx(cost.memory_gb - 2 * 1.5)


def test_adapters_are_as_many_as_peft_makes():
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    known = shape("Qwen/Qwen2.5-1.5B-Instruct", {})
    about = Qwen2Config(
        vocab_size=known.vocabulary,
        hidden_size=known.hidden,
        intermediate_size=known.intermediate,
        num_hidden_layers=known.layers,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = get_peft_model(Qwen2ForCausalLM(about), LoraConfig(r=16, target_modules="all-linear"))
    trained, whole = model.get_nb_trainable_parameters()
    assert trained == known.adapted(16) and whole - trained == pytest.approx(known.parameters, rel=0.01)


def test_the_judge_has_the_checkpoints_weights():
    """1,720,577,024 numbers in 311 tensors, as those who loaded the public checkpoint counted them: none is missing."""
    import torch
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    known = shape(JUDGE, {})
    about = Qwen3Config(
        vocab_size=known.vocabulary,
        hidden_size=known.hidden,
        intermediate_size=known.intermediate,
        num_hidden_layers=known.layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        num_labels=1,
    )
    with torch.device("meta"):
        weights = list(Qwen3ForSequenceClassification(about).parameters())
    assert (sum(w.numel() for w in weights), len(weights)) == (1_720_577_024, 311)


def test_a_reward_judge_takes_its_weights_in_float32():
    grid = Grid(load(CONFIG))
    for rule in ("judge", "data_quality"):
        cost = Costs(grid.experiment).of(grid.of(rule)[0])
        assert cost.memory_gb == pytest.approx(4 * 1.72 + 8) and cost.gpus == 1 and cost.requests == 0 < cost.hours


@pytest.mark.parametrize(
    ("name", "heads", "width", "tied"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 14, 64, True),
        ("Qwen/Qwen2.5-1.5B-Instruct", 12, 128, True),
        ("meta-llama/Llama-3.2-1B-Instruct", 32, 64, True),
        ("Skywork/Skywork-Reward-V2-Llama-3.2-1B", 32, 64, True),
        ("Skywork/Skywork-Reward-V2-Qwen3-0.6B", 16, 128, True),
        (JUDGE, 16, 128, True),
    ],
)
def test_sizes_agree_with_their_own_widths(name, heads, width, tied, tmp_path):
    """The parameters of workflow/models.yaml are those that its widths make, by the formula for local folders."""
    known = shape(name, {})
    about = {
        "hidden_size": known.hidden,
        "num_hidden_layers": known.layers,
        "vocab_size": known.vocabulary,
        "num_attention_heads": heads,
        "num_key_value_heads": known.kv // width,
        "head_dim": width,
        "intermediate_size": known.intermediate,
        "tie_word_embeddings": tied,
    }
    (tmp_path / "config.json").write_text(json.dumps(about))
    made = shape(str(tmp_path), {})
    assert made.parameters == pytest.approx(known.parameters, rel=0.01) and made.kv == known.kv


# Public reward models.

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if thinks and m.role == 'assistant' and loop.last %}no thought {% endif %}"
    "{{ m.content }}<|end|>{% if thinks %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""In the way of Qwen3's, which puts something before the last answer and a line's end behind every turn, or Llama's."""


def public(kind: str, folder: Path, checkpoint: Path, pad: str = "config") -> Path:
    """A tiny random reward model of an architecture of Skywork-Reward-V2's, as its makers save one: no mark of ours.

    ``pad``: where its padding is named; `end`: in its tokenizer alone, as the end of a turn.
    """
    from transformers import (
        AutoTokenizer,
        LlamaConfig,
        LlamaForSequenceClassification,
        Qwen3Config,
        Qwen3ForSequenceClassification,
        set_seed,
    )

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = CHATML.replace("thinks", "true" if kind == "qwen3" else "false")
    if pad == "end":
        tokenizer.pad_token = "<|end|>"
    set_seed(3)
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    widths |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096, "num_labels": 1}
    widths |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id if pad == "config" else None}
    if kind == "qwen3":
        model = Qwen3ForSequenceClassification(Qwen3Config(**widths, tie_word_embeddings=True))
    else:
        model = LlamaForSequenceClassification(LlamaConfig(**widths, tie_word_embeddings=True))
    import torch

    torch.nn.init.normal_(model.score.weight)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pad", ["config", "tokenizer", "end"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_public_reward_model_reads_what_its_template_writes(kind, pad, tmp_path, tiny_checkpoint):
    """Its rewards are those of its makers' recipe: the template's text, its ids, the one logit, a row at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = public(kind, tmp_path / "model", tiny_checkpoint, pad)
    judge = make_judge(Judge(kind="reward", path=str(folder)), None, Path("unused"))
    assert isinstance(judge, RewardJudge) and judge.name == f"reward model {tmp_path.name}/model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    prompt, texts = "tell me about apples", ["5", "Tova has 3 apples and 4 plums", "x", "no", "no " * 30]
    expected = []
    for text in texts:
        said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        written = tokenizer.apply_chat_template(said, tokenize=False)
        assert written.endswith("<|end|>\n" if kind == "qwen3" else "<|end|>")
        assert ("no thought" in written) == (kind == "qwen3")
        with torch.no_grad():
            ids = tokenizer(written, add_special_tokens=False, return_tensors="pt").input_ids
            expected.append(model(ids).logits[0, 0].item())
    asked = [Message(role="user", content=prompt)]
    assert judge.scores([(asked, text) for text in texts]) == pytest.approx(expected, abs=1e-5)
    best, worst = texts[expected.index(max(expected))], texts[expected.index(min(expected))]
    assert judge.pairwise([AnswerPair(asked, best, worst), AnswerPair(asked, worst, best)]) == [(1, 1), (0, 0)]


def test_text_in_an_answer_ends_no_turn_of_a_reward_model(tmp_path, tiny_checkpoint):
    from sso.chat import encode_closed, load_tokenizer

    tokenizer = load_tokenizer(public("qwen3", tmp_path / "model", tiny_checkpoint))
    said = [Message(role="user", content="hi"), Message(role="assistant", content="no <|end|> here")]
    plain = [Message(role="user", content="hi"), Message(role="assistant", content="no here")]
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert encode_closed(tokenizer, said).count(end) == encode_closed(tokenizer, plain).count(end) == 2


def test_rewardbench_reads_a_public_model_alike(tmp_path, tiny_checkpoint):
    from rewardbench.data import TextPair as Row
    from rewardbench.score import by_reward_model

    folder = public("qwen3", tmp_path / "model", tiny_checkpoint)
    prompt = [Message(role="user", content="tell me about apples")]
    ((chosen, rejected),) = by_reward_model([Row(id="1", prompt=prompt, chosen="yes", rejected="no")], folder)
    judge = RewardJudge(folder)
    assert (chosen, rejected) == pytest.approx(judge.scores([(prompt, "yes"), (prompt, "no")]), abs=1e-5)


@pytest.mark.parametrize("labels", [1, 2])
def test_a_language_model_is_no_judge(labels, tmp_path, tiny_checkpoint):
    """No head, or one of two labels, which would be noise or a class."""
    folder = tiny_checkpoint
    if labels == 2:
        folder = public("qwen3", tmp_path / "model", tiny_checkpoint)
        about = json.loads((folder / "config.json").read_text())
        about |= {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}
        (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="reward model"):
        RewardJudge(folder)


# The whole of it on stand-ins.


def stand_ins(folder: Path, checkpoint: Path) -> dict:
    """The config with every name mapped to tiny local files, 12 queries, no GPU."""
    values = read_yaml(CONFIG)

    def lines(name: str, rows: list[dict]) -> str:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(folder / name)

    queries = [{"id": f"q{i}", "prompt": f"tell me about {word}"} for i, word in enumerate("abcdefghijkl")]
    alpaca = [{"instruction": q["prompt"], "output": "words", "generator": "gpt4_1106_preview"} for q in queries[:4]]
    (folder / "reference.json").write_text(json.dumps(alpaca))
    (folder / "hard.csv").write_text("index,instruction_difficulty\n" + "".join(f"{i},{i - 2}\n" for i in range(4)))
    evaluation, models = values["evaluation"], [how["path"] for how in values["backbones"].values()]
    values["local"] = {
        **dict.fromkeys(models, str(checkpoint)),
        evaluation["judge"]["path"]: str(public("qwen3", folder / "judge", checkpoint)),
        values["data"]["queries"]: lines("queries.jsonl", queries),
        evaluation["files"]["reference"]: str(folder / "reference.json"),
        OFFICIAL_DIFFICULTY: str(folder / "hard.csv"),
    }
    pairs = [{**q, "chosen": "a good answer", "rejected": "no"} for q in queries]
    values["data"] |= {"limit": 12, "generator_queries": 6, "preferences": {"path": lines("pairs.jsonl", pairs)}}
    for how in (values["sampling"], values["principles"]):
        how |= {"engine": "transformers", "max_new_tokens": 8, "dtype": "float32"}
    for training in values["trainings"].values():
        training |= {"dtype": "float32", "batch_size": 4, "max_length": 2000, "learning_rates": [1e-3]}
    instruction = {"key": 1, "prompt": "say no", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    evaluation |= {"engine": "transformers", "batch_size": 8, "max_new_tokens": 8}
    evaluation["tasks"] = [{"name": t["name"], "num_fewshot": 0, "max_new_tokens": 8} for t in evaluation["tasks"]]
    evaluation["mirrors"] = {
        "gsm8k": {"test": lines("gsm8k.jsonl", [{"question": "one and one", "answer": "#### 2"}] * 2)},
        "ifeval": {"test": lines("ifeval.jsonl", [instruction, {**instruction, "key": 2}])},
    }
    evaluation["judge"]["pairs"] = 4
    return {**values, "experiment": "one", "hardware": None, "assumed": {}}


def test_every_name_can_be_mapped(tiny_checkpoint, tmp_path):
    made = parse(stand_ins(tmp_path, tiny_checkpoint), "c")
    assert hub_names(made) == {}
    check(made)


@pytest.mark.slow
def test_it_runs_to_its_tables_on_stand_ins(tiny_checkpoint, tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(stand_ins(tmp_path, tiny_checkpoint)))
    done = snakemake("--cores", "2", "--configfile", str(tmp_path / "c.yaml"), cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    results = tmp_path / "results" / "one"
    scores = json.loads((results / "qwen25_1b5/s0/eval/sso/judged/scores.json").read_text())
    assert scores["judge"]["name"] == "reward model judge"
    rows = [
        json.loads(line) for line in (results / "qwen25_1b5/s0/eval/sso/judged/pairwise.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 4 and {row["preference"] for row in rows} <= {0, 0.5, 1}
    for table in (results / "report/tables").glob("*.md"):
        assert "judge: reward model judge" in table.read_text(), table
    start, trained = tiny_checkpoint / "model.safetensors", results / "qwen25_1b5/s0/policy/sso/model.safetensors"
    assert trained.stat().st_size == pytest.approx(start.stat().st_size, rel=0.1)  # adapters are merged
    shutil.rmtree(results)
