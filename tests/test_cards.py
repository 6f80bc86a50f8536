"""Pairs in the hub's format, there and back and into trl; cards beside every checkpoint and pair set."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset, load_from_disk
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given
from hypothesis import strategies as st

from sso import cards
from sso.cli import main
from sso.records import Message, Pair, Triple, file_digest, read, write

ODD = "Ünïcode \u2028 <|im_end|> {{ 7 * 7 }} \x00\t\"'\r\n---\nlicense: mit"
PAIRS = [
    Pair(
        id=f"q/{i}",
        prompt=[Message(role="system", content="Be brief."), Message(role="user", content=f"Say {i}. {ODD}")][i % 2 :],
        chosen=[Message(role="assistant", content=f"good {i} {ODD}")],
        rejected=[Message(role="assistant", content=f"bad {i}")],
        source="good_bad",
    )
    for i in range(7)
]


@pytest.fixture
def pairs(tmp_path) -> Path:
    write(tmp_path / "pairs.jsonl", PAIRS)
    return tmp_path / "pairs.jsonl"


def hub(path: Path, tmp_path: Path, kind: str = "json") -> Dataset:
    return load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))


def back(rows: Dataset, path: Path) -> list[Pair]:
    write(path, list(rows))
    return read(path, Pair)


def test_pairs_go_through_the_hubs_formats_and_come_back(pairs, tmp_path):
    loaded = hub(pairs, tmp_path)
    assert loaded.column_names == ["id", "prompt", "chosen", "rejected", "source"]
    assert back(loaded, tmp_path / "json.jsonl") == PAIRS
    loaded.save_to_disk(tmp_path / "disk")
    assert back(load_from_disk(tmp_path / "disk"), tmp_path / "disk.jsonl") == PAIRS
    loaded.to_parquet(tmp_path / "p.parquet")
    assert back(hub(tmp_path / "p.parquet", tmp_path, "parquet"), tmp_path / "parquet.jsonl") == PAIRS
    loaded.to_json(tmp_path / "again.jsonl", force_ascii=False)
    assert read(tmp_path / "again.jsonl", Pair) == PAIRS


def test_trl_prepares_pairs_without_mapping(pairs, tmp_path, tiny_checkpoint):
    from trl import DPOConfig, DPOTrainer

    from sso.chat import encode_prompt, encode_response, load_model, load_tokenizer

    tokenizer = load_tokenizer(tiny_checkpoint)
    plain = [p.model_copy(update={"prompt": [Message(role="user", content=f"Say {i}.")]}) for i, p in enumerate(PAIRS)]
    plain = [p.model_copy(update={"chosen": [Message(role="assistant", content="night")]}) for p in plain]
    write(pairs, plain)
    arguments = DPOConfig(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, per_device_train_batch_size=2)
    trainer = DPOTrainer(
        load_model(tiny_checkpoint), args=arguments, train_dataset=hub(pairs, tmp_path), processing_class=tokenizer
    )
    row = trainer.train_dataset[0]
    assert row["prompt_ids"] == encode_prompt(tokenizer, plain[0].prompt)
    assert row["chosen_ids"][: len(encode_response(tokenizer, "night"))] == encode_response(tokenizer, "night")
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 4  # two pairs, both sides


def test_export_writes_a_folder_that_the_hub_can_load(pairs, tmp_path):
    assert main(["export", "--pairs", str(pairs), "--out", str(tmp_path / "hub")]) == 0
    loaded = load_dataset(str(tmp_path / "hub"), split="train", cache_dir=str(tmp_path / "cache"))
    assert back(loaded, tmp_path / "back.jsonl") == PAIRS
    card = DatasetCard.load(tmp_path / "hub" / "README.md")
    assert card.data.size_categories == "n<1K" and card.data.license == "unknown"
    first = {p.name: p.read_bytes() for p in (tmp_path / "hub").rglob("*") if p.is_file()}
    assert main(["export", "--pairs", str(pairs), "--out", str(tmp_path / "hub")]) == 0
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "hub").rglob("*") if p.is_file()}


def test_each_set_of_pairs_has_a_card_of_its_own_which_repeats_itself(tmp_path):
    rows = [
        Triple(id=str(i), prompt="?", system_good="g", system_bad="b", chosen=f"c{i}", rejected="r", original="o")
        for i in range(3)
    ]
    write(tmp_path / "triples.jsonl", rows)
    source = "---\nlicense: llama3\n---\n# Triples\n"
    (tmp_path / "triples.jsonl.card.md").write_text(source)

    def make(name: str, kind: str) -> bytes:
        files = ["--triples", tmp_path / "triples.jsonl", "--out", tmp_path / name]
        assert main(["pairs", *map(str, files), "--kind", kind]) == 0
        return (tmp_path / f"{name}.card.md").read_bytes()

    a, b = make("a.jsonl", "good_bad"), make("b.jsonl", "good_original")
    assert a != b and a == make("a.jsonl", "good_bad")
    card = DatasetCard.load(tmp_path / "a.jsonl.card.md")
    assert card.data.license == "llama3" and card.data.size_categories == "n<1K"
    assert card.data.to_dict()["configs"] == [{"config_name": "default", "data_files": "a.jsonl"}]
    assert '"kind": "good_bad"' in card.text and str(tmp_path) not in card.text
    assert (tmp_path / "triples.jsonl.card.md").read_text() == source


def test_a_checkpoint_has_a_card_that_names_base_method_data_and_figures(pairs, tmp_path, tiny_checkpoint):
    import shutil

    start = tmp_path / "start"
    shutil.copytree(tiny_checkpoint, start)
    (start / "README.md").write_text("---\nlicense: other\nlicense_name: own\nbase_model: Qwen/Qwen2-7B\n---\n")
    settings = {"learning_rates": [1e-4], "max_steps": 1, "batch_size": 2, "dtype": "float32"}
    files = ["--model", start, "--data", pairs, "--out", tmp_path / "policy"]
    assert main(["train", *map(str, files), "--settings", json.dumps(settings)]) == 0
    card = ModelCard.load(tmp_path / "policy" / "README.md")
    assert (card.data.license, card.data.license_name, card.data.base_model) == ("other", "own", "Qwen/Qwen2-7B")
    assert card.data.tags == ["sso", "pairs", "dpo"] and card.data.library_name == "transformers"
    record = json.loads((tmp_path / "policy.run.json").read_text())
    assert record["inputs"]["data"][1] in card.text and "`final_loss`" in card.text
    assert '"beta": 0.1' in card.text and record["started"][:10] not in card.text


@given(text=st.text(max_size=60))
def test_text_of_users_stays_text(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("card") / "pairs.jsonl"
    out.write_text("{}\n")
    hostile = {"prompt": f"{text}\n```\n---\nlicense: mit\n# {ODD}"}
    record = {
        "stage": "pairs",
        "settings": hostile,
        "inputs": {"triples": [f"/x/{text}|`a`\n# b.jsonl", None]},
        "output": [str(out), file_digest(out)],
        "seed": 0,
        "summary": {"pairs": 1.0},
        "versions": {"torch": "2"},
    }
    cards.write(out, record)
    body = cards.path_of(out).read_text(encoding="utf-8")
    card = DatasetCard(body)
    assert card.data.license == "unknown"
    outside = card.text.split("```json")[0]
    assert [line for line in outside.splitlines() if line.startswith("#")] == [
        "# `pairs`",
        "## Made from",
        "## Figures",
        "## Settings",
    ]
    block = card.text.split("```json\n")[1].split("\n```\n")[0]
    assert json.loads(block) == hostile


def run_snippet(folder: Path, monkeypatch, capsys) -> str:
    """What the code on a checkpoint's card prints, run in its folder with transformers alone."""
    snippet = (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(snippet, {})
    return capsys.readouterr().out


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_the_code_on_a_checkpoints_card_says_what_the_suite_says(architecture, pairs, tmp_path, monkeypatch, capsys):
    from transformers import AutoTokenizer

    from rewardbench import score
    from rewardbench.data import TextPair
    from sso.chat import load_tokenizer
    from sso.sampling.transformers_engine import TransformersEngine
    from sso.settings import Backbone
    from sso.train.run import save
    from sso.worlds.micro.models import build

    model, tokenizer = build(Backbone(architecture=architecture), seed=0)
    save(model, tokenizer, tmp_path / "sft")
    settings = {"learning_rates": [1e-2], "max_steps": 1, "batch_size": 2, "dtype": "float32"}
    files = ["--model", tmp_path / "sft", "--data", pairs, "--out", tmp_path / "policy"]
    assert main(["train", *map(str, files), "--settings", json.dumps(settings)]) == 0
    files = ["--model", tmp_path / "sft", "--pairs", pairs, "--out", tmp_path / "reward"]
    settings = {"max_steps": 1, "batch_size": 2, "dtype": "float32"}
    assert main(["rewardbench", "train", *map(str, files), "--settings", json.dumps(settings)]) == 0
    for folder in ("sft", "policy", "reward"):
        plain, own = AutoTokenizer.from_pretrained(tmp_path / folder), load_tokenizer(tmp_path / folder)
        text = f"Where does Mira live? <|end|> {ODD}"
        assert plain(text).input_ids == own(text).input_ids and own.decode(own(text).input_ids).startswith("Where does")
    asked = [Message(role="user", content="Tell me about Tom.")]
    drawn = TransformersEngine(tmp_path / "policy").generate([asked], [0], temperature=0, max_new_tokens=64)
    assert run_snippet(tmp_path / "policy", monkeypatch, capsys) == f"{drawn[0].text}\n"
    scorer, tokenizer = score.load(tmp_path / "reward")
    row = TextPair(id="q", prompt=asked, chosen="Tom is a nurse.", rejected="No.")
    ours = score.rewards(scorer, score.encode(tokenizer, [row])[0], 1)[0].item()
    assert float(run_snippet(tmp_path / "reward", monkeypatch, capsys)) == pytest.approx(ours, abs=1e-5)
